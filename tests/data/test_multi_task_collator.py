"""Batches with labels of several tasks."""

from __future__ import annotations

import pytest
import torch
from multi_task_models import HEADS, collator, examples


def test_labels_stand_at_their_heads_and_rows() -> None:
    """A label would count for another task or another example, or a missing one as class 0."""
    batch = collator()(examples(4))
    assert batch["tasks"].tolist() == [[True] * 4, [True, False, False, False], *[[True] * 4] * 2]
    assert batch["topic_labels"].tolist() == [0, 1, -100, 1]
    assert batch["stars_labels"].isnan().tolist() == [False, True, True, False]
    assert batch["themes_labels"].isnan().all(-1).tolist() == [True, True, False, True]
    assert batch["themes_labels"][2].tolist() == [1.0, 0.0]
    tags, mask = batch["tags_labels"], batch["attention_mask"]
    assert tags.shape == batch["input_ids"].shape
    assert (tags[mask == 0] == -100).all()
    assert (tags[1:3] == -100).all()
    assert tags[3, 1:6].tolist() == (batch["input_ids"][3, 1:6] % 4).tolist()
    assert "labels" not in batch
    assert "task" not in batch


def test_tokens_padded_on_the_left_have_their_labels() -> None:
    """Labels would be shifted against tokens that a tokenizer pads on the left."""
    make = collator()

    def left(rows: list) -> dict:
        found = {"input_ids": torch.zeros(len(rows), 6, dtype=torch.long)}
        for place, row in zip(found["input_ids"], rows, strict=True):
            place[6 - len(row["input_ids"]) :] = torch.tensor(row["input_ids"])
        return {**found, "attention_mask": (found["input_ids"] > 0).long()}

    make.collate = left
    rows = [{"input_ids": [8, 9], "task": "tags", "labels": [1, 2]}, {"input_ids": [7] * 6}]
    assert make(rows)["tags_labels"].tolist()[0] == [-100] * 4 + [1, 2]


def test_examples_that_cannot_be_read_are_refused() -> None:
    """A label without a task would be dropped without a word."""
    make, ids = collator(), {"input_ids": [5, 6]}
    with pytest.raises(ValueError, match=r"one of .* got 'genre'"):
        make([{**ids, "task": "genre", "labels": 1}])
    with pytest.raises(ValueError, match="Expected the task of an example"):
        make([{**ids, "labels": 1}])
    with pytest.raises(ValueError, match="for each of 2 tokens, got 3"):
        make([{**ids, "task": "tags", "labels": [1, 2, 3]}])
    with pytest.raises(ValueError, match="Expected 2 numbers as a label of the head 'themes'"):
        make([{**ids, "themes_labels": [1.0, 0.0, 1.0]}])
    assert set(make([ids])) == {"input_ids", "attention_mask", "tasks"} | {
        f"{name}_labels" for name in HEADS
    }
