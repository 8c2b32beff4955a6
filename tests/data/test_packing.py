"""A packed row teaches what its examples teach one by one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from language_models import KINDS, LENGTHS, examples, model
from tiny_trainers import Recorder, config
from torch import Tensor

from hf_distill import (
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HiddenStates,
    JensenShannon,
    ModelTeacher,
    WeightedSum,
)
from hf_distill.data.language import LanguageCollator, pack
from hf_distill.data.language.packing import first_fit, wrapped
from hf_distill.teachers import CachedTeacher
from hf_distill.teachers.cache import write_cache


class NoTokenizer:
    """All that the collator asks of a tokenizer."""

    pad_token_id = 0
    eos_token_id = 1


COLLATE = LanguageCollator(NoTokenizer())
GOAL = 0.3 * HardLabels() + ForwardKL(temperature=2.0) + JensenShannon() + HiddenStates()


@pytest.mark.parametrize(("name", "attention"), KINDS)
def test_logits_of_a_packed_row_are_those_of_its_examples(name: str, attention: str) -> None:
    """Texts that see each other, or stand at other positions, are silently other texts."""
    lm, data = model(name, attention), examples()
    batch = COLLATE([dict(row) for row in pack(data, 12)])
    assert batch["input_ids"].shape[0] > 2
    assert (batch["position_ids"][:, -1] == 0).any(), "no row is padded: too easy"
    packed = lm(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    alone = {
        tuple(row["input_ids"]): lm(torch.tensor([row["input_ids"]])).logits[0] for row in data
    }
    found = 0
    for ids, positions, logits in zip(
        batch["input_ids"].tolist(), batch["position_ids"], packed, strict=True
    ):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for start, stop in pairwise(starts):
            if stop - start > 1:  # else it is padding
                expected = alone.pop(tuple(ids[start:stop]))
                assert (logits[start:stop] - expected).abs().max() < 1e-10
                found += 1
    assert found == len(LENGTHS)
    assert not alone


class Gradients(Recorder):
    """Also keeps the gradient of the last step."""

    gradient: Tensor

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        found = [p.grad for p in model.parameters() if p.grad is not None]
        self.gradient = torch.cat([g.flatten() for g in found]).clone()


def step(
    folder: Path, data: Any, name: str = "llama", teacher: Any = None, **options: Any
) -> tuple[dict[str, float], Tensor]:
    """The figures and the gradient of one step over all of the data."""
    goal: WeightedSum = options.pop("objective", GOAL)
    watch = Gradients()
    if "per_device_train_batch_size" not in options:
        options["per_device_train_batch_size"] = len(data)
    args = config(folder, max_steps=1, learning_rate=0.0, max_grad_norm=1e9, **options)
    trainer = DistillationTrainer(
        model(name),
        args,
        COLLATE,
        data,
        data,
        teacher_model=model(name, seed=1) if teacher is None else teacher,
        objective=goal,
        callbacks=[watch],
    )
    trainer.train()
    figures = {k: v for k, v in watch.steps[0].items() if k not in ("epoch", "learning_rate")}
    figures.update({k: v for k, v in trainer.evaluate().items() if "runtime" not in k})
    return {k: v for k, v in figures.items() if "per_second" not in k}, watch.gradient


def same(
    found: tuple[dict[str, float], Tensor],
    expected: tuple[dict[str, float], Tensor],
    tolerance: float = 1e-10,
) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6, abs=1e-12)  # logged from float32
    assert expected[1].norm() > 0.01
    assert (found[1] - expected[1]).norm() / expected[1].norm() < tolerance


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2_windows", "gemma3"])
def test_loss_and_gradient_are_the_same_packed_and_not(
    tmp_path: Path, name: str, weighted: bool
) -> None:
    """Packing would train another student, at another learning rate."""
    data = examples(weighted)
    tolerance = 1e-7 if name == "gemma3" else 1e-10  # its norms are in float32, whatever the model
    alone = step(tmp_path, data, name)
    same(step(tmp_path, pack(data, 12), name), alone, tolerance)
    rows = pack(data, 12)
    same(
        step(
            tmp_path,
            rows,
            name,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=len(rows),
        ),
        alone,
        tolerance,
    )


def test_weights_are_packed_with_their_tokens(tmp_path: Path) -> None:
    """Weights that stay behind would fall on other tokens of the row."""
    plain, weighted = (step(tmp_path, pack(examples(w), 12)) for w in (False, True))
    assert (plain[1] - weighted[1]).norm() > 0.01 * plain[1].norm()
    rows = pack(examples(True), 12)
    alone = {tuple(r["input_ids"]): r["token_weights"] for r in examples(True)}
    for row in rows:
        starts = [i for i, at in enumerate(row["position_ids"]) if at == 0] + [len(row["labels"])]
        for start, stop in pairwise(starts):
            own = slice(start, stop)
            assert row["token_weights"][own] == alone[tuple(row["input_ids"][own])]


def test_streams_train_as_data_sets_do(tmp_path: Path) -> None:
    """Data that are too large for the disk would lose their positions or weights on the way."""
    rows = pack(examples(True), 12)
    stream = pack(examples(True).to_iterable_dataset(), 12)
    size = {"per_device_train_batch_size": len(rows), "per_device_eval_batch_size": len(rows)}
    found, expected = (step(tmp_path, data, **size) for data in (stream, rows))
    same(found, expected)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_checkpointed_gradients_are_the_same(tmp_path: Path) -> None:
    """Long rows need checkpointing; recomputed without their positions they would mix."""
    rows = pack(examples(), 30)
    plain = step(tmp_path, rows)
    same(step(tmp_path, rows, gradient_checkpointing=True), plain)
    no_states = 0.5 * HardLabels() + 0.5 * ForwardKL()
    plain = step(tmp_path, rows, objective=no_states)
    same(step(tmp_path, rows, objective=no_states, gradient_checkpointing=True), plain)


def test_a_cache_of_single_examples_serves_packed_rows(tmp_path: Path) -> None:
    """The teacher would have to run again for every length of rows."""
    data, teacher = examples(), model(seed=1)
    goal = HardLabels() + ForwardKL()
    write_cache(
        tmp_path / "cache", ModelTeacher(teacher), list(data), COLLATE, say=lambda line: None
    )
    cached = CachedTeacher(tmp_path / "cache")
    live = step(tmp_path, pack(data, 12), objective=goal)
    same(step(tmp_path, pack(data, 12), teacher=cached, objective=goal), live, 1e-5)  # float32
    same(step(tmp_path, data, teacher=cached, objective=goal), live, 1e-5)


def test_a_cache_of_packed_rows_serves_single_examples(tmp_path: Path) -> None:
    """Padding that has a key of its own would be looked for, and not be found."""
    data, teacher = examples(), model(seed=1)
    write_cache(
        tmp_path / "cache",
        ModelTeacher(teacher),
        list(pack(data, 12)),
        COLLATE,
        batch_size=2,
        say=lambda line: None,
    )
    cached = CachedTeacher(tmp_path / "cache")
    assert cached.describe()["cache"]["examples"] == len(data)
    goal = HardLabels() + ForwardKL()
    live = step(tmp_path, data, objective=goal)
    same(step(tmp_path, data, teacher=cached, objective=goal), live, 1e-5)


# ---- where examples are put --------------------------------------------------------------------


@given(st.lists(st.integers(0, 12), max_size=30), st.integers(2, 12))
@settings(deadline=None)
def test_every_token_has_one_place(lengths: list[int], length: int) -> None:
    """Tokens that are lost are not learned; tokens that are doubled count twice."""
    for rows in (first_fit([min(n, length) for n in lengths], length), wrapped(lengths, length)):
        assert all(0 < sum(b - a for _, a, b in row) <= length for row in rows)
        placed = [(e, i) for row in rows for e, a, b in row for i in range(a, b)]
        assert len(placed) == len(set(placed))
        assert all(b - a > 1 for row in rows for _, a, b in row)
    whole = first_fit([min(n, length) for n in lengths], length)
    parts = sorted(part for row in whole for part in row)
    assert parts == [(e, 0, min(n, length)) for e, n in enumerate(lengths) if n > 1]
    placed = [(e, i) for row in wrapped(lengths, length) for e, a, b in row for i in range(a, b)]
    lost = {(e, i) for e, n in enumerate(lengths) for i in range(n)} - set(placed)
    assert all(i == lengths[e] - 1 for e, i in lost), "only single tokens at the end are left out"
    assert placed == sorted(placed)


def test_first_fit_by_hand() -> None:
    """Rows that are half empty cost twice the time."""
    assert first_fit([6, 5, 4, 1, 3, 2], 10) == [
        [(0, 0, 6), (2, 0, 4)],
        [(1, 0, 5), (4, 0, 3), (5, 0, 2)],
    ]
    assert wrapped([6, 5, 4], 10) == [[(0, 0, 6), (1, 0, 4)], [(2, 0, 4)]]
    assert wrapped([25], 10) == [[(0, 0, 10)], [(0, 10, 20)], [(0, 20, 25)]]


def test_a_cut_example_begins_anew() -> None:
    """The first token of a row would be predicted by whatever stands before it."""
    data = Dataset.from_dict({"input_ids": [list(range(7)), list(range(10, 16))]})
    rows = list(pack(data, 5, strategy="wrapped"))
    assert [r["input_ids"] for r in rows] == [[0, 1, 2, 3, 4], [5, 6, 10, 11, 12], [13, 14, 15]]
    assert [r["position_ids"] for r in rows] == [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2], [0, 1, 2]]
    assert [r["labels"] for r in rows] == [
        [-100, 1, 2, 3, 4],
        [-100, 6, -100, 11, 12],
        [-100, 14, 15],
    ]


def test_streams_are_packed_by_the_buffer() -> None:
    """A stream that must be read to its end before it is packed never starts."""
    stream = examples().to_iterable_dataset()
    assert list(pack(stream, 12)) == list(pack(examples(), 12))
    few = list(pack(stream, 12, buffer_size=2))
    assert few[0]["input_ids"][:9] == examples()[0]["input_ids"]
    assert sum(len(row["input_ids"]) for row in few) == sum(LENGTHS)
    assert max(row["position_ids"].count(0) for row in few) <= 2


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ({"input_ids": [[1] * 9]}, {"length": 8}, ["at most 8", "one of 9", "max_length=8"]),
        ({"input_ids": [[1, 2]]}, {"length": 1}, ["2 tokens or more", "length of 1"]),
        ({"text": ["a"]}, {"length": 8}, ["tokenize", "['text']", "not tokenised"]),
        (
            {"input_ids": [[1, 2]], "position_ids": [[0, 1]]},
            {"length": 8},
            ["position_ids", "packed already"],
        ),
        (
            {"input_ids": [[1, 2]]},
            {"length": 8, "strategy": "bfd"},
            ["'first_fit' or 'wrapped'", "'bfd'"],
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(
    rows: dict[str, Any], options: dict[str, Any], words: list[str]
) -> None:
    """A row cut in silence, or of the wrong column, is found after the training."""
    with pytest.raises(ValueError) as error:
        pack(Dataset.from_dict(rows), **options)
    for word in words:
        assert word in str(error.value)
