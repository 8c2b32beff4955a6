"""Importance measured on texts, for the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from hf_distill.data.language import LanguageCollator, tokenize
from hf_distill.models.initialise.importance import Importance, importance

LONGEST = 512
"""Maximum length of texts, in tokens."""
BATCH = 8

Row = dict[str, Any]


def read_texts(path: Path) -> list[Row]:
    """The rows of a file: its lines (``.txt``), or their JSON objects (``.jsonl``).

    Raises:
        ValueError: another kind of file, a line that is not a JSON object, or no texts.
        OSError: a file that cannot be read.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"Expected a .txt or .jsonl file of texts, got {path.name}.")
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = {"text": line} if path.suffix == ".txt" else json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"Expected JSON in line {number} of {path.name}: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"Expected a JSON object in line {number} of {path.name}, got {row}.")
        rows.append(row)
    if not rows:
        raise ValueError(f"Expected texts in {path.name}, got none.")
    return rows


def text_of(row: Row) -> str:
    """The text of a row.

    Raises:
        ValueError: a row without one.
    """
    if not isinstance(row.get("text"), str):
        raise ValueError(f"Expected a column 'text' in each row, got the columns {sorted(row)}.")
    return str(row["text"])


def measure(teacher: PreTrainedModel, processor: Any, rows: list[Row]) -> Importance:
    """Importance of a text model's parts on these rows.

    Raises:
        ValueError: a teacher without a tokenizer; rows that `tokenize` refuses.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        raise ValueError(
            f"Expected a teacher with a tokenizer to read texts, got {type(teacher).__name__} "
            "without. Measure it on batches in Python: hf_distill.models.initialise.importance."
        )
    longest = min(LONGEST, getattr(teacher.config, "max_position_embeddings", None) or LONGEST)
    data: Any = tokenize(Dataset.from_list(rows), tokenizer, max_length=longest)
    collate = LanguageCollator(tokenizer)

    def batches() -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(data), BATCH):
            examples = [data[i] for i in range(start, min(start + BATCH, len(data)))]
            yield collate([{"input_ids": example["input_ids"]} for example in examples])

    return importance(teacher, batches())
