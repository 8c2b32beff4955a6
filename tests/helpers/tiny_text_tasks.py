"""Tiny recipes of every task on texts, and the same figures by stock transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_recipes
import transformers
from datasets import DatasetDict
from two_tokenizers import PIECES

tf: Any = transformers
SOURCE = """
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

WORDS = "the quick brown fox jumps over lazy dog student film boring unbelievable".split()
NAMES = ["O", "B-ANIMAL", "I-ANIMAL", "B-ART"]


def words(n: int) -> list[str]:
    return [WORDS[(n * k + k // 3) % len(WORDS)] for k in range(1, 5 + n % 9)]


def parts(row, sizes=(32, 12, 12)) -> DatasetDict:
    found, first = {}, 0
    for name, size in zip(("train", "validation", "test"), sizes):
        rows = [row(n) for n in range(first, first + size)]
        found[name] = Dataset.from_dict({key: [r[key] for r in rows] for key in rows[0]})
        first += size
    return DatasetDict(found)


def tag(before: str, word: str) -> str:
    if word in ("fox", "dog"):
        return "I-ANIMAL" if before in ("brown", "lazy") else "B-ANIMAL"
    if word in ("brown", "lazy"):
        return "B-ANIMAL"
    return "B-ART" if word == "film" else "O"


def entities() -> DatasetDict:
    def row(n: int) -> dict:
        own = words(n)
        tags = [tag(before, word) for before, word in zip(["", *own], own)]
        return {"tokens": own, "label": [NAMES.index(tag) for tag in tags]}

    return parts(row).cast_column("label", List(ClassLabel(names=NAMES)))
"""
TRAINING = {"num_train_epochs": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 8}


@dataclass(frozen=True)
class Row:
    """One task on tiny texts.

    Attributes:
        source: The function of `SOURCE` that makes the data.
        judge: ``(folder of a model, test split) -> metrics`` by stock transformers.
        metrics: The metrics that the judge gives.
        task: The recipe's task.
        data: Further keys of the recipe's data.
        tag: The pipeline tag of the card.
        auto: The class that loads the published folder.
        objective: Rows of the objective; default: labels and the teacher's distribution.
        longest: ``model_max_length`` of the tokenizer.
    """

    source: str
    judge: Callable[[Path, Any], dict[str, float]]
    metrics: tuple[str, ...]
    task: str
    tag: str
    auto: str
    data: dict[str, Any] = field(default_factory=dict)
    objective: Sequence[dict[str, Any]] | None = None
    longest: int = 24


def recipe(row: Row, folder: Path, **changes: Any) -> Path:
    """Write the recipe of a row, its data and its tokenizer; return the YAML's path."""
    tokenizer = tf.BertTokenizerFast(vocab=PIECES.get_vocab(), do_lower_case=True)
    tokenizer.model_max_length = row.longest
    tokenizer.save_pretrained(folder / "pieces")
    sizes = {"vocab_size": len(PIECES), "max_position_embeddings": 40}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = tiny_recipes.bert(2, **sizes, **(quiet if changes.pop("quiet", False) else {}))
    values: dict[str, Any] = {
        "task": row.task,
        "data": {"source": f"data.py:{row.source}", "processor": "./pieces", **row.data},
        "teacher": {"config": config, "training": {"learning_rate": 1e-2}},
        "student": {"from_teacher_layers": [1]},
        "training": TRAINING,
    }
    if row.objective is not None:
        values["objective"] = list(row.objective)
    for key, value in changes.items():
        old = values.get(key)
        values[key] = {**old, **value} if isinstance(old, dict) else value
    path = tiny_recipes.recipe(folder, **values)
    (folder / "data.py").write_text(SOURCE, encoding="utf-8")
    return path


def splits(row: Row, folder: Path) -> DatasetDict:
    """The data of a recipe, by its own function."""
    spec = importlib.util.spec_from_file_location("data_of_a_test", folder / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: DatasetDict = getattr(module, row.source)()
    return made


# ---- judges --------------------------------------------------------------------------------------


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Entities in IOB2 tags, where I- after another type begins one (conlleval)."""
    starts = [
        at
        for at, tag in enumerate(tags)
        if tag[0] == "B" or (tag[0] == "I" and (at == 0 or tags[at - 1][1:] != tag[1:]))
    ]
    found = set()
    for start in starts:
        end = start + 1
        while end < len(tags) and tags[end] == f"I{tags[start][1:]}":
            end += 1
        found.add((start, end, tags[start][2:]))
    return found


def by_pipeline(model: Path, words: Sequence[str]) -> list[str]:
    """The stock pipeline's label of the first token of each word; O where it gives none."""
    tagger = tf.pipeline("token-classification", model=str(model), ignore_labels=[])
    begins, at = {}, 0
    for number, word in enumerate(words):
        begins[at] = number
        at += len(word) + 1
    tags = ["O"] * len(words)
    for token in tagger(" ".join(words)):
        if token["start"] in begins:
            tags[begins[token["start"]]] = token["entity"]
    return tags


def tagged(model: Path, test: Any) -> dict[str, float]:
    """F1 of entities and accuracy of words."""
    names = test.features["label"].feature.names
    right = both = hits = words = 0
    for row in test:
        truth = [names[tag] for tag in row["label"]]
        ours = by_pipeline(model, row["tokens"])
        right += len(spans(ours) & spans(truth))
        both += len(spans(ours)) + len(spans(truth))
        hits += sum(a == b for a, b in zip(ours, truth, strict=True))
        words += len(truth)
    return {"entity_f1": 2 * right / both, "token_accuracy": hits / words}


ROWS = {
    "entities": Row(
        "entities",
        tagged,
        ("entity_f1", "token_accuracy"),
        "token_classification",
        "token-classification",
        "AutoModelForTokenClassification",
        longest=10,
    ),
}
"""Name -> row."""
