"""Streams that can be read only once: the constructor's look takes no example away."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from language_models import tokenizer
from tiny_models import collate
from tiny_trainers import Recorder, accuracy, config, data, models, trainer
from torch.utils.data import IterableDataset
from transformers import Trainer

from hf_distill import DistillationTrainer, ForwardKL, OnlineDistillationTrainer
from hf_distill.data.language import one_answer_each, pack, tokenize
from hf_distill.data.streams import Replayed, first_of


class Itself(IterableDataset[Any]):
    """Returns one and the same iterator each time."""

    def __init__(self, rows: Any):
        self.rows = iter(rows)

    def __iter__(self) -> Iterator[Any]:
        return self.rows


class Shared(Itself):
    """Makes a new generator each time, over one and the same iterator."""

    def __iter__(self) -> Iterator[Any]:
        yield from self.rows


class Again(IterableDataset[Any]):
    """Starts anew each time."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


class Reset(Again):
    """Returns itself, and starts anew."""

    def __iter__(self) -> Iterator[Any]:
        self.left = list(self.rows)
        return self

    def __next__(self) -> Any:
        if not self.left:
            raise StopIteration
        return self.left.pop(0)


def hugging_face(rows: Any) -> Any:
    """A generator in datasets' own class."""
    left = iter(rows)
    return datasets.IterableDataset.from_generator(lambda: left)


def hugging_face_again(rows: Any) -> Any:
    return datasets.Dataset.from_list(list(rows)).to_iterable_dataset()


KINDS: dict[str, Any] = {
    "itself": Itself,
    "shared": Shared,
    "again": Again,
    "reset": Reset,
    "hugging_face": hugging_face,
    "hugging_face_again": hugging_face_again,
    "list": list,
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_a_stream(tmp_path: Path, kind: str) -> None:
    """It began at the second example: 0.002294 and not 0.001872 as with a list of the same rows."""
    found = []
    for stream in (list, KINDS[kind]):
        record = Recorder()
        ours = trainer(
            tmp_path,
            objective=1.0 * ForwardKL(),
            train_dataset=stream(data()),
            callbacks=[record],
            per_device_train_batch_size=2,
            max_steps=4,
            train_sampling_strategy="sequential",
        )
        ours.train()
        found.append([step["loss"] for step in record.steps])
    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [False, True])
def test_evaluation_on_a_stream(tmp_path: Path, kind: str, named: bool) -> None:
    """Where there is no training data the constructor looks at this one."""
    student, teacher = models()
    rows: Any = data()
    expected = trainer(tmp_path, compute_metrics=accuracy).evaluate()
    given = KINDS[kind](rows)
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        train_dataset=None,
        eval_dataset={"one": given} if named else given,
        compute_metrics=accuracy,
    )
    found = ours.evaluate()
    for key in ("loss", "accuracy", "forward_kl", "hard_labels"):
        value = found[f"eval_one_{key}" if named else f"eval_{key}"]
        assert value == pytest.approx(expected[f"eval_{key}"], rel=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["itself", "shared", "again"])
def test_what_the_stock_trainer_reads(tmp_path: Path, kind: str, workers: int) -> None:
    """Also by processes that load, each of which has a copy of the stream; and a second epoch,
    where there is one."""
    options: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 3 if kind == "again" else 2,
        "dataloader_num_workers": workers,
        "alpha": 0.0,
    }
    found = []
    for cls in (Trainer, DistillationTrainer):
        record = Recorder()
        rows: Any = KINDS[kind](data())
        args = config(tmp_path, **options)
        cls(models()[0], args, collate, rows, callbacks=[record]).train()
        found.append([step["loss"] for step in record.steps])
    assert len(found[0]) == options["max_steps"]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_stream_for_a_joint_training(tmp_path: Path) -> None:
    found = []
    for kind in (list, Shared):
        student, peer = models()
        record = Recorder()
        args = config(tmp_path, train_sampling_strategy="sequential")
        rows: Any = kind(data())
        ours = OnlineDistillationTrainer(
            student, args, collate, rows, peers=peer, callbacks=[record]
        )
        ours.train()
        found.append([step["loss"] for step in record.steps])
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_a_stream_of_texts_is_tokenized_whole() -> None:
    """`tokenize` looks at the first row, `pack` at the columns: each took a row away."""
    texts = [{"text": text} for text in ("a b", "c d", "e f", "g h")]
    rows = tokenize(hugging_face(texts), tokenizer())
    assert len(list(rows)) == 4
    packed = pack(tokenize(hugging_face(texts), tokenizer()), 64)
    (row,) = list(packed)
    assert len(row["input_ids"]) == sum(len(r["input_ids"]) for r in _tokens(texts))


def _tokens(texts: Any) -> list[Any]:
    return list(tokenize(datasets.Dataset.from_list(texts), tokenizer()))


def test_a_stream_of_conversations_keeps_its_first() -> None:
    """Each becomes one row for each answer."""
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    stream = one_answer_each(hugging_face([{"messages": said}] * 2 + [{"messages": said * 2}]))
    assert len(list(stream)) == 4


# ---- the look itself -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["again", "reset", "hugging_face_again"])
def test_a_stream_that_starts_anew_is_left_alone(kind: str) -> None:
    """It may know more than how to be read: shards, epochs, a state."""
    stream = KINDS[kind](data())
    example, found = first_of(stream)
    assert found is stream
    assert list(example["input_ids"]) == data()[0]["input_ids"]


class Drawn(IterableDataset[Any]):
    """Draws its order anew each time, from the global state or from one of its own."""

    def __init__(self, own: bool):
        self.source: Any = random.Random(0) if own else random
        self.epoch = 0

    def __iter__(self) -> Iterator[Any]:
        yield from self.source.sample(range(1000), 5)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 5


def test_a_stream_in_random_order(caplog: pytest.LogCaptureFixture) -> None:
    """With a state of its own nobody can know whether it starts anew; its methods stay."""
    stream = Drawn(own=False)
    state = random.getstate()
    assert first_of(stream)[1] is stream
    assert random.getstate() == state
    with caplog.at_level(logging.WARNING):
        example, found = first_of(Drawn(own=True))
    assert isinstance(found, Replayed)
    assert "put in front of it again" in caplog.text
    assert len(found) == 5  # type: ignore[arg-type]
    found.set_epoch(3)
    assert found._stream.epoch == 3
    first, second = list(found), list(found)
    assert first[0] == example
    assert len(first) == 9, "five, and those that were looked at"
    assert len(second) == 5


@pytest.mark.parametrize(
    "value", [float("nan"), np.array([1.0, np.nan]), torch.tensor([torch.nan]), [{"a": (1, None)}]]
)
def test_examples_are_compared_by_what_they_hold(value: Any) -> None:
    """NaN is a label that is missing; such a stream starts anew as well."""

    class Made(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            copied = value.copy() if isinstance(value, np.ndarray) else value
            copied = value.clone() if isinstance(value, torch.Tensor) else copied
            yield {"x": copied}

    stream = Made()
    assert first_of(stream)[1] is stream


def test_an_empty_stream_is_refused(tmp_path: Path) -> None:
    """It ended with a StopIteration."""
    with pytest.raises(ValueError, match=r"a stream with examples, got an empty one \(Again\)"):
        trainer(tmp_path, train_dataset=Again([]))
