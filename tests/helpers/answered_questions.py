"""A tiny recipe of questions with answers in a text, some of them beyond the first window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_recipes
import transformers
from two_tokenizers import PIECES

tf: Any = transformers
SOURCE = """
from datasets import Dataset, DatasetDict

WORDS = "the quick brown jumps over lazy student film boring unbelievable".split()


def asked(without: int = 0, wrong: int = 0) -> DatasetDict:
    def part(first, count):
        rows = {"question": [], "context": [], "answers": []}
        for n in range(first, first + count):
            words = [WORDS[(n * k + k // 3) % len(WORDS)] for k in range(1, 8 + n % 30)]
            animal = ("fox", "dog")[n % 2]
            words.insert(n * 7 % len(words), animal)
            context = " ".join(words)
            start = context.index(animal)
            found = {"text": [animal], "answer_start": [start]}
            if n - first < wrong:
                found["answer_start"] = [start + 1]
            elif n - first < without:
                found = {"text": [], "answer_start": []}
            rows["question"].append(("quick dog", "lazy fox")[n % 3 > 1])
            rows["context"].append(context)
            rows["answers"].append(found)
        return Dataset.from_dict(rows)

    return DatasetDict(train=part(0, 48), validation=part(100, 12), test=part(200, 14))
"""


def questions(folder: Path, **changes: Any) -> Path:
    """Write a tiny recipe of question answering into a folder; return the YAML's path."""
    tokenizer = tf.BertTokenizerFast(vocab=PIECES.get_vocab(), do_lower_case=True)
    tokenizer.model_max_length = 24
    tokenizer.save_pretrained(folder / "pieces")
    sizes = {"vocab_size": len(PIECES), "max_position_embeddings": 24}
    values: dict[str, Any] = {
        "task": "question_answering",
        "data": {"source": "asked.py:asked", "processor": "./pieces"},
        "teacher": {"config": tiny_recipes.bert(2, **sizes)},
        "student": {"from_teacher_layers": [1]},
        "training": {"learning_rate": 1e-2},
    }
    for key, value in changes.items():
        old = values.get(key)
        values[key] = {**old, **value} if isinstance(old, dict) else value
    path = tiny_recipes.recipe(folder, **values)
    (folder / "asked.py").write_text(SOURCE, encoding="utf-8")
    return path
