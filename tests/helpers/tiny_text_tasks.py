"""Tiny recipes of every task on texts, and the same figures by stock transformers."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tiny_recipes
import torch
import transformers
from datasets import DatasetDict
from scipy import stats
from sklearn.metrics import f1_score, ndcg_score
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


def tagged(model: Path, test: Any, rows: Any) -> dict[str, float]:
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


def scores(model: Path, texts: Sequence[str], others: Sequence[str] | None = None) -> np.ndarray:
    """All logits of the stock pipeline, texts by labels."""
    classify = tf.pipeline("text-classification", model=str(model))
    names: Any = classify.model.config.id2label.values()
    pairs: Sequence[str | None] = others or [None] * len(texts)
    found = []
    for text, other in zip(texts, pairs, strict=True):
        given = text if other is None else {"text": text, "text_pair": other}
        [row] = classify([given], top_k=None, function_to_apply="none", truncation=True)
        by_name = {one["label"]: one["score"] for one in row}
        found.append([by_name[name] for name in names])
    return np.array(found)


def valued(model: Path, test: Any, rows: Any) -> dict[str, float]:
    """Squared error and correlations."""
    found, truth = scores(model, test["text"])[:, 0], np.array(test["label"])
    return {
        "mse": float(((found - truth) ** 2).mean()),
        "pearson": float(stats.pearsonr(found, truth)[0]),
        "spearman": float(stats.spearmanr(found, truth)[0]),
    }


def labelled(model: Path, test: Any, rows: Any) -> dict[str, float]:
    """F1 over labels and examples."""
    names = ["dog", "film", "fox"]
    truth = np.array([[name in row for name in names] for row in test["label"]])
    found = scores(model, test["text"]) > 0
    kinds = {"micro": "micro_f1_labels", "macro": "macro_f1_labels"}
    return {k: f1_score(truth, found, average=a, zero_division=0) for a, k in kinds.items()}


def matched(model: Path, test: Any, rows: Any) -> dict[str, float]:
    """Accuracy of pairs."""
    found = scores(model, test["text"], test["other"]).argmax(1)
    return {
        "accuracy": float(np.mean([["no", "yes"][n] for n in found] == np.array(test["label"])))
    }


def filled(model: Path, test: Any, rows: Any) -> dict[str, float]:
    """Perplexity of the masked tokens, one sequence at a time, by the model's own loss."""
    loaded, total, count = tf.AutoModelForMaskedLM.from_pretrained(model).double().eval(), 0.0, 0
    for row in rows:
        batch = {key: torch.tensor([row[key]]) for key in ("input_ids", "attention_mask", "labels")}
        masks = int((batch["labels"] != -100).sum())
        if masks:
            with torch.no_grad():
                total += float(loaded(**batch).loss) * masks
            count += masks
    return {"token_perplexity": math.exp(total / count)}


def answered(model: Path, test: Any, rows: Any) -> dict[str, float]:
    """Accuracy of choices, one question at a time."""
    loaded = tf.AutoModelForMultipleChoice.from_pretrained(model).double().eval()
    tokenizer, hits = tf.AutoTokenizer.from_pretrained(model), 0
    for row in test:
        texts = [row["text"]] * len(row["choices"])
        options = {"truncation": True, "padding": True, "return_tensors": "pt"}
        batch = {k: v[None] for k, v in tokenizer(texts, row["choices"], **options).items()}
        with torch.no_grad():
            hits += int(loaded(**batch).logits.argmax()) == row["label"]
    return {"accuracy": hits / len(test)}


def ranked(model: Path, test: Any, rows: Any) -> dict[str, float]:
    """Reciprocal rank and NDCG of the candidates of each query."""
    if "choices" in test.column_names:
        queries = [(row["text"], row["choices"], row["label"]) for row in test]
    else:
        parts = {text: [row for row in test if row["text"] == text] for text in test["text"]}
        queries = [
            (text, [r["other"] for r in own], [r["label"] for r in own])
            for text, own in parts.items()
        ]
    reciprocal, gains = [], []
    for text, candidates, relevances in queries:
        found = scores(model, [text] * len(candidates), candidates)[:, 0]
        if not any(relevances):
            continue
        order = np.argsort(-found, kind="stable")
        reciprocal.append(1 / (1 + min(np.flatnonzero(np.array(relevances)[order]))))
        gains.append(1.0 if len(candidates) == 1 else ndcg_score([relevances], [found], k=10))
    return {"mrr@10": float(np.mean(reciprocal)), "ndcg@10": float(np.mean(gains))}


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
