"""Tiny recipes of every task on texts, each with the judge of its figures."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_recipes
import transformers
from datasets import DatasetDict
from text_judges import answered, filled, labelled, matched, ranked, tagged, valued
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


def text(n: int) -> str:
    return " ".join(words(n))


def rated() -> DatasetDict:
    def row(n: int) -> dict:
        return {"text": text(n), "label": 0.5 * words(n).count("fox") + n % 3 / 7}

    return parts(row)


def subjects() -> DatasetDict:
    def row(n: int) -> dict:
        found = [name for name in ("fox", "dog", "film") if name in words(n)]
        return {"text": text(n), "label": found}

    return parts(row)


def alike() -> DatasetDict:
    def row(n: int) -> dict:
        return {"text": text(n), "other": text(n + n % 3), "label": "no" if n % 3 else "yes"}

    return parts(row)


def prose() -> DatasetDict:
    return parts(lambda n: {"text": text(n) + " " + text(n + 1)})


def chosen() -> DatasetDict:
    def row(n: int) -> dict:
        choices = [text(n + k + 5) for k in range(3)]
        choices[n % 3] = " ".join(words(n)[:3])
        return {"text": text(n), "choices": choices, "label": n % 3}

    return parts(row)


def searched() -> DatasetDict:
    def row(n: int) -> dict:
        candidates = [text(n + k) for k in range(2 + n % 3)]
        return {"text": text(n), "choices": candidates, "label": [1] + [0] * (len(candidates) - 1)}

    return parts(row)


def paired() -> DatasetDict:
    def row(n: int) -> dict:
        query = n // 3
        return {"text": text(query), "other": text(query + n % 3), "label": 2 - n % 3}

    return parts(row)
"""
TRAINING = {"num_train_epochs": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 8}


@dataclass(frozen=True)
class Row:
    """One task on tiny texts.

    Attributes:
        source: The function of `SOURCE` that makes the data.
        judge: ``(folder of a model, test split, prepared test split) -> metrics`` by stock
            transformers.
        metrics: The metrics that the judge gives.
        task: The recipe's task.
        data: Further keys of the recipe's data.
        tag: The pipeline tag of the card.
        auto: The class that loads the published folder.
        objective: Rows of the objective; default: labels and the teacher's distribution.
        longest: ``model_max_length`` of the tokenizer.
    """

    source: str
    judge: Callable[[Path, Any, Any], dict[str, float]]
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


TEXTS = ("text_classification", "text-classification", "AutoModelForSequenceClassification")
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
    "regression": Row("rated", valued, ("mse", "pearson", "spearman"), *TEXTS),
    "multi_label": Row("subjects", labelled, ("micro_f1_labels", "macro_f1_labels"), *TEXTS),
    "pairs": Row("alike", matched, ("accuracy",), *TEXTS, {"text_pair_column": "other"}),
    "masked_lm": Row(
        "prose",
        filled,
        ("token_perplexity",),
        "masked_lm",
        "fill-mask",
        "AutoModelForMaskedLM",
        {"masking": {"whole_word": True, "fixed": False}},
    ),
    "packed_masked_lm": Row(
        "prose",
        filled,
        ("token_perplexity",),
        "masked_lm",
        "fill-mask",
        "AutoModelForMaskedLM",
        {"masking": {"fixed": True, "probability": 0.3}, "packing": "wrapped"},
    ),
    "multiple_choice": Row(
        "chosen",
        answered,
        ("accuracy",),
        "multiple_choice",
        "multiple-choice",
        "AutoModelForMultipleChoice",
        {"choices_column": "choices"},
        longest=36,
    ),
    "reranker": Row(
        "searched",
        ranked,
        ("mrr@10", "ndcg@10"),
        "reranker",
        "text-ranking",
        "AutoModelForSequenceClassification",
        {"choices_column": "choices"},
        longest=36,
    ),
    "reranker_of_pairs": Row(
        "paired",
        ranked,
        ("mrr@10", "ndcg@10"),
        "reranker",
        "text-ranking",
        "AutoModelForSequenceClassification",
        {"text_pair_column": "other"},
        longest=36,
    ),
}
"""Name -> row."""
