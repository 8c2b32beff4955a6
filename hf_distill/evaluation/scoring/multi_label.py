"""Metrics of several labels per example: logits ``(N, L)`` and labels 0 or 1 ``(N, L)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hf_distill.evaluation.scoring.areas import Area, average_precision, macro, roc_area
from hf_distill.evaluation.scoring.base import Floats, Metric, Weighted, divided, mean, of_sums


def _checked(logits: Any, labels: Any) -> tuple[Floats, Floats]:
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if scores.ndim != 2 or not scores.shape[1] or truth.shape != scores.shape:
        raise ValueError(
            f"Expected logits and labels of the same shape (N, L), got {scores.shape} and "
            f"{truth.shape}. Give a 0 or 1 for each label of each example."
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"Expected logits that are numbers, got NaN for {int(np.isnan(scores).any(1).sum())} "
            f"of {len(scores)} examples. Evaluate in float32, or look for an overflow."
        )
    if not np.isin(truth, (0, 1)).all():
        raise ValueError(
            f"Expected labels 0 or 1, got {np.unique(truth[~np.isin(truth, (0, 1))])[:5].tolist()}."
            " Leave out examples without labels."
        )
    return scores, truth


def _counts(logits: Any, labels: Any) -> Floats:
    """Hits, predictions and labels of each class ``(N, 3 L)``; predicted: p = sigmoid(z) > 0.5."""
    scores, truth = _checked(logits, labels)
    chosen = (scores > 0).astype(float)
    return np.concatenate([chosen * truth, chosen, truth], axis=1)


def _macro_f1(sums: Floats) -> float:
    hits, predicted, true = sums.reshape(3, -1)
    return float(np.mean(np.where(predicted + true > 0, divided(2 * hits, predicted + true), 0.0)))


def _micro_f1(rows: Floats) -> Weighted:
    if not rows.any():
        raise ValueError(
            f"Expected at least one label that is 1, got {len(rows)} examples without any, and "
            "without a predicted one. Evaluate on a set with labels."
        )

    def value(sums: Floats) -> float:
        hits, predicted, true = sums.reshape(3, -1).sum(-1)
        return float(divided(2 * hits, predicted + true))

    return of_sums(value)(rows)


def _exact(logits: Any, labels: Any) -> Floats:
    scores, truth = _checked(logits, labels)
    return ((scores > 0) == truth).all(1, keepdims=True).astype(float)


def _scored(logits: Any, labels: Any) -> Floats:
    return np.concatenate(_checked(logits, labels), axis=1)


def _areas(area: Area) -> Callable[[Floats], Weighted]:
    def weighted(rows: Floats) -> Weighted:
        scores, truth = np.split(rows, 2, axis=1)
        return macro(area, scores, truth > 0)

    return weighted


METRICS = (
    Metric("micro_f1_labels", "Micro F1", "multi_label", _counts, _micro_f1),
    Metric("macro_f1_labels", "Macro F1", "multi_label", _counts, of_sums(_macro_f1)),
    Metric("exact_match_labels", "Exact match of all labels", "multi_label", _exact, mean),
    Metric("macro_auc_labels", "Macro AUC", "multi_label", _scored, _areas(roc_area)),
    Metric(
        "mean_average_precision_labels",
        "Mean average precision",
        "multi_label",
        _scored,
        _areas(average_precision),
    ),
)
