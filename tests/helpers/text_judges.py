"""Figures of saved models on tasks of texts, by stock transformers, scikit-learn and SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy import stats
from sklearn.metrics import f1_score, ndcg_score

tf: Any = transformers


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
