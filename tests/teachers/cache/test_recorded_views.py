"""Views whose parameters are recorded: the teacher's outputs for them fit, and for no others."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import xxhash
from objective_table import MODELS
from tiny_models import collate
from tiny_trainers import Recorder, same, trainer, weights
from torch.utils.data import DataLoader

from hf_distill import ForwardKL, HardLabels, ModelTeacher, Views
from hf_distill.data.views import RandomView, drop_tokens, flip, mixup, noise, plain_key, shift
from hf_distill.teachers import CachedTeacher
from hf_distill.teachers.cache import write_cache
from hf_distill.teachers.cache.recorded_views import (
    FILE,
    AllViews,
    AugmentationLog,
    RecordedViews,
    record_views,
)

Example = dict[str, Any]
CHAIN = (flip(), shift(2), noise(0.1), mixup())


def pictures(rows: int = 6) -> list[Example]:
    generator = torch.Generator().manual_seed(7)
    return [
        {"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": i % 3}
        for i in range(rows)
    ]


def texts(as_list: bool, rows: int = 6) -> list[Example]:
    generator = torch.Generator().manual_seed(8)
    ids = [torch.randint(10, 90, (9 + i,), generator=generator) for i in range(rows)]
    return [{"input_ids": row.tolist() if as_list else row, "labels": 1} for row in ids]


def bits(example: Example) -> str:
    """All of an example, labels included, byte for byte."""
    parts = []
    for name, value in sorted(example.items()):
        array = np.asarray(value)
        parts.append(f"{name} {type(value)} {array.dtype} {array.shape} {array.tobytes().hex()}")
    return "\n".join(parts)


@dataclass(frozen=True)
class Seen(RandomView):
    """Changes nothing, and keeps what it was given: the last of the views sees all of them."""

    views: list[str]

    def draw(self, example: Example, data: Views) -> dict[str, Any]:
        self.views.append(bits(example))
        return {}

    def apply(self, example: Example, parameters: dict[str, Any], data: Views) -> Example:
        return example

    def __repr__(self) -> str:
        return "Seen()"


CASES: dict[str, tuple[Callable[[], list[Example]], tuple[RandomView, ...]]] = {
    "flip": (pictures, (flip(),)),
    "shift": (pictures, (shift(3),)),
    "noise": (pictures, (noise(0.3),)),
    "mixup": (pictures, (mixup(),)),
    "all": (pictures, CHAIN),
    "tokens, lists": (lambda: texts(True), (drop_tokens(99, 0.4, keep=(10,)),)),
    "tokens, tensors": (lambda: texts(False), (drop_tokens(99, 0.4),)),
}


@pytest.mark.parametrize("name", CASES)
def test_views_are_made_again_bit_for_bit(name: str, tmp_path: Path) -> None:
    """One bit off, and the teacher's output for it is not found, or is another's."""
    make, views = CASES[name]
    seen: list[str] = []
    chain = (*views, Seen(seen))
    records = record_views(make(), chain, count=3, seed=1)
    records.save(tmp_path)
    again = AllViews(make(), tmp_path, *chain)
    torch.manual_seed(123)
    made = [bits(again[i]) for i in range(len(again))]
    assert len(made) == 3 * 6
    assert made == seen[-len(made) :]
    assert len(set(made)) > (6 if name == "flip" else 15)  # they are not all alike


def test_views_are_those_of_the_parameters() -> None:
    """Against numpy, from the recorded parameters alone."""
    rows = pictures()
    records = record_views(rows, (flip(), shift(2), mixup()), count=2)
    others = {plain_key(row): row["pixel_values"].numpy() for row in rows}
    found = AllViews(rows, records, flip(), shift(2), mixup())
    for index, row in enumerate(rows):
        place = records.place(plain_key(row))
        assert place == index
        for number, (flipped, moved, mixed) in enumerate(records.parameters(place)):
            x = row["pixel_values"].numpy()
            x = x[:, :, ::-1] if flipped["flip"] else x
            x = np.pad(x, ((0, 0), (2, 2), (2, 2)), mode="edge")
            x = x[:, moved["top"] :, moved["left"] :][:, :8, :8]
            share = np.float64(mixed["share"])
            expected = share * x + (1 - share) * others[mixed["other"]]
            view = found[2 * index + number]
            np.testing.assert_allclose(view["pixel_values"].numpy(), expected, atol=1e-6)
            assert view["labels"] == -100


def test_training_reads_recorded_views_only() -> None:
    """All of them, each about as often: a view that is never read was cached for nothing."""
    records = record_views(pictures(1), (shift(3),), count=4, seed=2)
    possible = [bits(view) for view in AllViews(pictures(1), records, shift(3))]
    assert len(set(possible)) == 4
    torch.manual_seed(0)
    read = [bits(RecordedViews(pictures(1), records, shift(3))[0]) for _ in range(400)]
    counts = [read.count(view) for view in possible]
    assert sum(counts) == 400
    assert all(abs(count - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5 for count in counts)


@pytest.mark.parametrize("views", [CHAIN, (mixup(),)], ids=["all", "mixup"])
def test_places_in_the_data_do_not_matter(views: tuple[RandomView, ...]) -> None:
    """By position, the second epoch of shuffled data gets the targets of other examples."""
    rows = pictures()
    order = [4, 0, 5, 2, 1, 3]
    shuffled = [rows[i] for i in order]
    records = record_views(rows, views, count=3)
    other = record_views(shuffled, views, count=3)
    plain, moved = AllViews(rows, records, *views), AllViews(shuffled, records, *views)
    drawn_moved = AllViews(rows, other, *views)
    for place, index in enumerate(order):
        for number in range(3):
            expected = bits(plain[3 * index + number])
            assert bits(moved[3 * place + number]) == expected
            assert bits(drawn_moved[3 * index + number]) == expected
    assert len(RecordedViews(shuffled, records, *views)) == 6


def test_data_sets_are_filtered_and_formatted() -> None:
    """A `datasets.Dataset` gives lists or tensors, as its format says: the content is the same."""
    rows = [{**row, "pixel_values": row["pixel_values"].tolist()} for row in pictures()]
    data = datasets.Dataset.from_list(rows)
    records = record_views(data, (flip(), shift(1)), count=2)
    expected = {bits(view) for view in AllViews(data, records, flip(), shift(1))}
    fewer = data.shuffle(seed=3).filter(lambda row: row["labels"] != 1)
    found = [bits(view) for view in AllViews(fewer, records, flip(), shift(1))]
    assert len(found) == 8
    assert set(found) < expected
    tensors = AllViews(fewer.with_format("torch"), records, flip(), shift(1))
    assert plain_key(tensors[5]) == plain_key(AllViews(fewer, records, flip(), shift(1))[5])


def test_views_depend_on_the_seed_alone() -> None:
    """Processes that draw other views than the one that wrote the cache find nothing in it."""
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    texts_of = {}
    for name, start, seed in [("a", 0, 0), ("b", 1, 0), ("c", 0, 1)]:
        torch.manual_seed(start)
        before = torch.get_rng_state()
        records = record_views(pictures(), CHAIN, count=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)  # the run's own numbers stay the same
        views = AllViews(pictures(), records, *CHAIN)
        texts_of[name] = [bits(views[i]) for i in range(12)]
    torch.set_rng_state(states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    assert texts_of["a"] == texts_of["b"]
    assert not set(texts_of["a"]) & set(texts_of["c"])


def stacked(rows: list[Example]) -> torch.Tensor:
    return torch.stack([row["pixel_values"] for row in rows])


def test_workers_draw_other_views_every_epoch() -> None:
    """Workers that repeat themselves show one view for the whole training."""
    rows, views = pictures(8), (shift(3), noise(0.1))
    records = record_views(rows, views, count=4)
    allowed = {row["pixel_values"].numpy().tobytes() for row in AllViews(rows, records, *views)}
    loader: Any = DataLoader(
        RecordedViews(rows, records, *views), batch_size=2, num_workers=2, collate_fn=stacked
    )
    torch.manual_seed(0)
    epochs = [torch.cat([batch.clone() for batch in loader]) for _ in range(3)]
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    assert {picture.numpy().tobytes() for epoch in epochs for picture in epoch} <= allowed


class Counted(list):
    """Counts how often an example is read."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        return super().__getitem__(index)


def test_recorded_mixtures_read_two_examples() -> None:
    """Where nothing was reordered: otherwise every worker reads all data before its first batch."""
    records = record_views(pictures(20), (mixup(),), count=1)
    rows = Counted(pictures(20))
    data = RecordedViews(rows, records, mixup())
    rows.reads = 0
    assert data[11]["labels"] == -100
    assert rows.reads == 2
    reordered = Counted(reversed(pictures(20)))
    data = RecordedViews(reordered, records, mixup())
    for index in range(20):
        data[index]
    assert reordered.reads <= 1 + 20 + 3 * 20  # the first example, one index, the reads


# ---- the file --------------------------------------------------------------------------------


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """One flipped digit of a seed is another view, for which the outputs are wrong ones."""
    views = (flip(), drop_tokens(99))
    path = record_views(
        [{"pixel_values": torch.ones(1, 1, 1), "input_ids": [1]}], views, count=1
    ).save(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]
        )
        with pytest.raises(ValueError, match="truncated or damaged"):
            AugmentationLog.load(tmp_path)
        path.write_bytes(whole[:place])
        with pytest.raises(ValueError, match="truncated or damaged"):
            AugmentationLog.load(tmp_path)
    path.write_bytes(whole + b"\n")
    with pytest.raises(ValueError, match="truncated or damaged"):
        AugmentationLog.load(tmp_path)
    path.write_bytes(whole)
    assert AugmentationLog.load(tmp_path).views == ("flip(chance=0.5)", repr(drop_tokens(99)))


def test_a_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk must not cost the records that a cache was written with."""
    folder = tmp_path / "not yet" / "there"
    first = record_views(pictures(), CHAIN, count=2).save(folder).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            record_views(pictures(), CHAIN, count=5).save(folder)
    assert [path.name for path in folder.iterdir()] == [FILE]
    assert (folder / FILE).read_bytes() == first
    records = record_views(pictures(), CHAIN, count=5)
    assert records.save(folder).read_bytes() != first
    loaded = AugmentationLog.load(folder)
    assert loaded.to_json() == {"views": [*map(repr, CHAIN)], "count": 5, "seed": 0}
    assert len(loaded) == 6
    assert [loaded.parameters(i) for i in range(6)] == [records.parameters(i) for i in range(6)]
    assert loaded.save(tmp_path).read_bytes() == (folder / FILE).read_bytes()


def test_a_file_is_plain_json_lines(tmp_path: Path) -> None:
    """Whoever reads it without this package finds what was drawn."""
    lines = record_views(pictures(2), CHAIN, count=2).save(tmp_path).read_text().splitlines()
    header, *rows, end = map(json.loads, lines)
    assert header == {"version": 1, "views": [*map(repr, CHAIN)], "count": 2, "seed": 0}
    assert [row["key"] for row in rows] == [plain_key(row) for row in pictures(2)]
    assert [[*one] for one in rows[1]["views"][1]] == [
        ["flip"],
        ["top", "left"],
        ["seed"],
        ["other", "share"],
    ]
    body = "".join(f"{line}\n" for line in lines[:-1])
    assert end == {"xxh3_128": xxhash.xxh3_128(body.encode()).hexdigest()}


# ---- what is refused -------------------------------------------------------------------------


@dataclass(frozen=True)
class Own(RandomView):
    """A view of one's own, right but for what it is given."""

    drawn: Any = 1
    wild: bool = False

    def draw(self, example: Example, data: Views) -> Any:
        return {"by": self.drawn}

    def apply(self, example: Example, parameters: Any, data: Views) -> Example:
        more = torch.rand(()) if self.wild else parameters["by"]
        return {**example, "pixel_values": example["pixel_values"] + more}


class Nameless(RandomView):
    """Its repr tells no settings."""

    __repr__ = object.__repr__
    draw, apply = Own.draw, Own.apply


class Wild(list):
    """Data that are random themselves."""

    def __getitem__(self, index: Any) -> Any:
        row = super().__getitem__(index)
        return {**row, "pixel_values": row["pixel_values"] + torch.rand(())}


def mirror(example: Example, data: Views) -> Example:
    return example


def recorded(*views: RandomView, rows: int = 6) -> AugmentationLog:
    return record_views(pictures(rows), views, count=2)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "settings": (
        lambda: RecordedViews(pictures(), recorded(flip(0.5), shift(4)), flip(0.3)),
        r"recorded with flip\(chance=0.5\), shift\(pixels=4\), given flip\(chance=0.3\)",
    ),
    "order": (
        lambda: AllViews(pictures(), recorded(flip(), shift()), shift(), flip()),
        r"given shift\(pixels=4\), flip\(chance=0.5\)",
    ),
    "function": (lambda: recorded(mirror), "got mirror, which has no draw/apply"),
    "function, read": (
        lambda: RecordedViews(pictures(), recorded(flip()), mirror),
        "got mirror, which has no draw/apply",
    ),
    "class": (lambda: recorded(flip), "got flip, which has no draw/apply"),
    "nameless": (lambda: recorded(Nameless()), "repr tells its settings, got Nameless"),
    "tensor": (lambda: recorded(Own(torch.ones(()))), "plain JSON values from Own"),
    "infinite": (lambda: recorded(Own(float("inf"))), "plain JSON values from Own"),
    "wild view": (lambda: recorded(Own(wild=True)), "depend on their parameters alone"),
    "wild data": (lambda: record_views(Wild(pictures()), (flip(),)), "got another first example"),
    "no views": (lambda: record_views(pictures(), ()), "at least one view"),
    "count": (lambda: record_views(pictures(), (flip(),), count=0), "got count=0"),
    "first": (
        lambda: RecordedViews(pictures(7)[6:], recorded(flip()), flip()),
        "recorded views of example 0, found none.*none of the 6 that were recorded",
    ),
    "later": (
        lambda: RecordedViews(pictures(7), recorded(flip()), flip())[6],
        "recorded views of example 6, found none",
    ),
    "partner": (
        lambda: [*AllViews(pictures()[:1], recorded(mixup()), mixup())],
        "found none: a recorded mixture names it",
    ),
    "no file": (lambda: RecordedViews(pictures(), "nowhere", flip()), "in nowhere, found none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_teach_wrong_targets_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_another_version_is_refused(tmp_path: Path) -> None:
    body = json.dumps({"version": 2, "views": [], "count": 1, "seed": 0}) + "\n"
    end = json.dumps({"xxh3_128": xxhash.xxh3_128(body.encode()).hexdigest()}) + "\n"
    (tmp_path / FILE).write_text(body + end)
    with pytest.raises(ValueError, match="version 1, got 2"):
        AugmentationLog.load(tmp_path)


def test_a_view_of_ones_own_is_recorded() -> None:
    rows = pictures()
    found = AllViews(rows, recorded(Own(0.25), flip()), Own(0.25), flip())
    assert found[0]["pixel_values"].sum() == pytest.approx(
        float(rows[0]["pixel_values"].sum()) + 0.25 * 3 * 64, abs=1e-3
    )


# ---- with a teacher --------------------------------------------------------------------------


def test_outputs_of_the_plain_picture_are_others() -> None:
    """Why un-recorded views are refused: a ViT does not say the same of a picture's mirror image.

    Issue 4 names a cosine of 0.87 between cached and live features of a real ViT under flips.
    """
    _, teacher = MODELS["vit"].models(torch.float32)
    pixels = stacked(MODELS["vit"].data(8, torch.float32))
    with torch.no_grad():
        plain, mirrored = (
            teacher.eval()(pixel_values=x, output_hidden_states=True).hidden_states[-1][:, 0]
            for x in (pixels, pixels.flip(-1))
        )
    cosine = torch.nn.functional.cosine_similarity(plain, mirrored)
    assert cosine.max() < 0.99


def trained(folder: Path, teacher: Any, data: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights and losses of a student after six steps."""
    recorder = Recorder()
    ours = trainer(
        folder,
        model=MODELS["cnn"].models(torch.float32)[0],
        teacher_model=teacher,
        train_dataset=data,
        eval_dataset=data,
        objective=ForwardKL(2.0) + HardLabels(),
        callbacks=[recorder],
        max_steps=6,
    )
    ours.train()
    return weights(ours.model), [step["loss"] for step in recorder.steps]


def test_cached_views_teach_as_the_live_teacher(tmp_path: Path) -> None:
    """The point of it all: the same losses and the same weights, without the teacher.

    And un-recorded views are refused before they are taught the outputs of something else.
    """
    rows, cache = MODELS["cnn"].data(8, torch.float32), tmp_path / "cache"
    teacher = ModelTeacher(MODELS["cnn"].models(torch.float32)[1])
    records = record_views(rows, CHAIN, count=3, seed=4)
    records.save(cache)
    views = AllViews(rows, cache, *CHAIN)
    write_cache(cache, teacher, views, collate, batch_size=4, views=records, say=lambda line: None)
    seen = RecordedViews(list(reversed(rows)), cache, *CHAIN)
    live, live_losses = trained(tmp_path / "live", teacher, seen)
    cached, cached_losses = trained(tmp_path / "cached", CachedTeacher(cache), seen)
    assert len(set(live_losses)) == 6
    assert cached_losses == live_losses
    assert same(cached, live)
    for wrong in (Views(rows, *CHAIN), Views(rows, flip(1.0)), rows):
        with pytest.raises(ValueError, match="record_views"):
            trained(tmp_path / "wrong", CachedTeacher(cache), wrong)


@pytest.mark.parametrize("views", [(flip(0.5),), (shift(2), noise(0.1))], ids=["some", "all"])
def test_a_plain_cache_is_refused_under_augmentation(
    views: tuple[RandomView, ...], tmp_path: Path
) -> None:
    """The peers' error: outputs of the plain picture, taught for its mirror image."""
    rows = MODELS["cnn"].data(8, torch.float32)
    teacher = ModelTeacher(MODELS["cnn"].models(torch.float32)[1])
    write_cache(tmp_path / "cache", teacher, rows, collate, say=lambda line: None)
    trained(tmp_path / "plain", CachedTeacher(tmp_path / "cache"), rows)
    with pytest.raises(ValueError, match=r"not there|got none of 4"):
        trained(tmp_path / "wrong", CachedTeacher(tmp_path / "cache"), Views(rows, *views))
