"""Batches for language models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from language_models import examples, model, tokenizer

from hf_distill.data.language import LanguageCollator, pack
from hf_distill.models.task_model import TaskModel

ROWS: list[dict[str, Any]] = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "token_weights": [0.0, 1.0, 0.5]},
    {"input_ids": [8, 9], "labels": [-100, 9], "token_weights": [0.0, 2.0]},
]


def test_padding_by_hand() -> None:
    """Padding that is learned, or seen, changes the loss with the length of the batch."""
    batch = LanguageCollator(tokenizer(), pad_to_multiple_of=4)(ROWS)
    end = tokenizer().eos_token_id
    assert tokenizer().pad_token_id is None
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7, end], [8, 9, end, end]],
        "labels": [[-100, 6, 7, -100], [-100, 9, -100, -100]],
        "token_weights": [[0.0, 1.0, 0.5, 0.0], [0.0, 2.0, 0.0, 0.0]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0]],
    }
    assert batch["token_weights"].dtype == torch.float32


def test_an_end_token_within_a_text_is_learned() -> None:
    """Masking every token that looks like padding unlearns the end, and the student never stops."""
    end = tokenizer().eos_token_id
    batch = LanguageCollator(tokenizer())([{"input_ids": [5, end]}, {"input_ids": [5, 6, end]}])
    assert batch["labels"].tolist() == [[-100, end, -100], [-100, 6, end]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_packed_rows_have_positions_in_place_of_a_mask() -> None:
    """With a mask, models take a packed row for one text."""
    rows = [dict(row) for row in pack(examples(True), 12)]
    batch = LanguageCollator(tokenizer())(rows)
    assert set(batch) == {"input_ids", "labels", "token_weights", "position_ids"}
    real = sum(len(row["input_ids"]) for row in rows)
    items = TaskModel(model()).items(batch)
    assert items.masks["hidden"].sum() == real < batch["input_ids"].numel()
    assert items.masks["items"].sum() == sum(label >= 0 for r in rows for label in r["labels"])
    no_labels = [{k: row[k] for k in ("input_ids", "position_ids")} for row in rows]
    labels = LanguageCollator(tokenizer())(no_labels)["labels"]
    assert (labels[batch["position_ids"] == 0] == -100).all()
    assert (labels != -100).sum() == real - len(examples())


def test_numbers_come_along() -> None:
    """A column that an objective asked for would be lost."""
    batch = LanguageCollator(tokenizer())([{**row, "difficulty": 0.5} for row in ROWS])
    assert batch["difficulty"].tolist() == [0.5, 0.5]


def test_rows_that_do_not_fit_are_refused() -> None:
    """Labels of another row are learned without a word."""
    collate = LanguageCollator(tokenizer())
    with pytest.raises(ValueError, match=r"labels to be as long as input_ids, got 2 and 3"):
        collate([{"input_ids": [1, 2, 3], "labels": [1, 2]}])
    with pytest.raises(ValueError, match="both in one batch"):
        collate([{"input_ids": [1]}, {"input_ids": [1], "position_ids": [0]}])
