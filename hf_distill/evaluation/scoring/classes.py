"""Metrics of one class per example: logits ``(N, C)`` and class ids ``(N,)``; -100: left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_distill.evaluation.measures import brier_scores, checked, log_softmax
from hf_distill.evaluation.scoring.areas import Area, average_precision, macro, roc_area
from hf_distill.evaluation.scoring.base import Floats, Metric, Weighted, divided, mean

IGNORE = -100


class ClassCounts(NamedTuple):
    """Counts ``(C,)`` of each class: hits, predictions and labels."""

    hits: NDArray[Any]
    predicted: NDArray[Any]
    true: NDArray[Any]


def class_counts(predicted: ArrayLike, true: ArrayLike, times: Floats) -> ClassCounts:
    """Counts of the class ids ``(N,)``; ``times`` ``(N,)``: how often each example counts."""
    ours, theirs = (np.asarray(ids).astype(np.int64) for ids in (predicted, true))
    size = 1 + max(ours.max(), theirs.max())
    return ClassCounts(
        np.bincount(theirs, times * (ours == theirs), size),
        np.bincount(ours, times, size),
        np.bincount(theirs, times, size),
    )


def macro_f1(counts: ClassCounts) -> float:
    """The mean of 2 TP / (2 TP + FP + FN) over the classes that are predicted or labels."""
    there = counts.predicted + counts.true > 0
    return float(np.mean(_f1(counts)[there]))


def _f1(counts: ClassCounts) -> Floats:
    return divided(2 * counts.hits, counts.predicted + counts.true)


def _weighted_f1(counts: ClassCounts) -> float:
    there = counts.true > 0
    return float(_f1(counts)[there] @ counts.true[there] / counts.true.sum())


def _binary_f1(counts: ClassCounts) -> float:
    return float(_f1(counts)[1]) if len(counts.true) > 1 else np.nan


def _balanced_accuracy(counts: ClassCounts) -> float:
    there = counts.true > 0
    return float(np.mean(counts.hits[there] / counts.true[there]))


def _matthews(counts: ClassCounts) -> float:
    """Gorodkin's correlation of C classes; 0 where only one class is predicted or only one is true.

    Reference: Gorodkin, 2004, "Comparing two K-category assignments by a K-category correlation
        coefficient".
    """
    n = counts.true.sum()
    above = counts.hits.sum() * n - counts.predicted @ counts.true
    below = (n**2 - counts.predicted @ counts.predicted) * (n**2 - counts.true @ counts.true)
    return float(above / np.sqrt(below)) if below > 0 else 0.0


def _of_counts(value: Callable[[ClassCounts], float]) -> Callable[[Floats], Weighted]:
    """A metric of the rows (predicted class, true class)."""
    return lambda rows: lambda times: value(class_counts(rows[:, 0], rows[:, 1], times))


def _f1_of_two(rows: Floats) -> Weighted:
    if not rows.any():
        raise ValueError(
            f"Expected examples of class 1, which F1 counts as positive, got {len(rows)} examples "
            "of class 0, all predicted as such. Evaluate on a set with positive examples."
        )
    return _of_counts(_binary_f1)(rows)


def _areas(area: Area) -> Callable[[Floats], Weighted]:
    """The macro mean over the classes, or class 1 alone of two; rows (log p of each class, label).

    With two classes the area under the ROC curve is the same for both.
    """

    def weighted(rows: Floats) -> Weighted:
        scores, labels = rows[:, :-1], rows[:, -1]
        classes = np.arange(scores.shape[1])
        first = 1 if len(classes) == 2 else 0
        return macro(area, scores[:, first:], (labels[:, None] == classes)[:, first:])

    return weighted


def labelled(logits: Any, labels: Any) -> tuple[Floats, np.ndarray]:
    """Logits ``(N, C)`` and labels ``(N,)`` of the examples whose label is not -100.

    Raises:
        ValueError: as `measures.checked`; not two classes at least.
    """
    scores, classes = np.asarray(logits), np.asarray(labels)
    if scores.ndim == 2 and scores.shape[1] < 2:
        raise ValueError(
            f"Expected logits (N, C) of at least two classes, got the shape {scores.shape}. For "
            "one logit per example choose a metric of several labels (macro_f1_labels) or values."
        )
    if scores.ndim == 2 and classes.shape == scores.shape[:1]:
        counted = classes != IGNORE
        scores, classes = scores[counted], classes[counted]
        if not len(scores):
            return np.zeros((0, scores.shape[1])), np.zeros(0, dtype=np.int64)
    return checked(scores, classes)


def _chosen(logits: Any, labels: Any) -> Floats:
    scores, classes = labelled(logits, labels)
    return np.stack([scores.argmax(-1), classes], axis=1).astype(float)


def _chosen_of_two(logits: Any, labels: Any) -> Floats:
    scores, _ = labelled(logits, labels)
    if scores.shape[1] != 2:
        raise ValueError(
            f"f1 is of two classes, of which 1 is positive, got {scores.shape[1]} classes. Choose "
            "macro_f1, micro_f1 or weighted_f1."
        )
    return _chosen(logits, labels)


def _hits(logits: Any, labels: Any) -> Floats:
    chosen = _chosen(logits, labels)
    return (chosen[:, :1] == chosen[:, 1:]).astype(float)


def _top_5(logits: Any, labels: Any) -> Floats:
    """1 where fewer than 5 classes come before the label; of equal logits the first comes first."""
    scores, classes = labelled(logits, labels)
    if scores.shape[1] <= 5:
        raise ValueError(
            f"top_5_accuracy is 1 for any model with {scores.shape[1]} classes; it needs at least "
            "6. Choose accuracy."
        )
    own = scores[np.arange(len(scores)), classes][:, None]
    before = np.arange(scores.shape[1]) < classes[:, None]
    ahead = ((scores > own) | ((scores == own) & before)).sum(-1, keepdims=True)
    return (ahead < 5).astype(float)


def _negative_log_likelihood(logits: Any, labels: Any) -> Floats:
    scores, classes = labelled(logits, labels)
    return -log_softmax(scores)[np.arange(len(classes)), classes][:, None]


def _brier(logits: Any, labels: Any) -> Floats:
    return brier_scores(*labelled(logits, labels))[:, None]


def _scored(logits: Any, labels: Any) -> Floats:
    scores, classes = labelled(logits, labels)
    return np.concatenate([log_softmax(scores), classes[:, None]], axis=1)


METRICS = (
    Metric("accuracy", "Accuracy", "classes", _hits, mean),
    Metric(
        "balanced_accuracy", "Balanced accuracy", "classes", _chosen, _of_counts(_balanced_accuracy)
    ),
    Metric("f1", "F1 (class 1)", "classes", _chosen_of_two, _f1_of_two),
    Metric("macro_f1", "Macro F1", "classes", _chosen, _of_counts(macro_f1)),
    Metric("micro_f1", "Micro F1", "classes", _hits, mean),
    Metric("weighted_f1", "Weighted F1", "classes", _chosen, _of_counts(_weighted_f1)),
    Metric(
        "matthews_correlation", "Matthews correlation", "classes", _chosen, _of_counts(_matthews)
    ),
    Metric("log_loss", "Log loss (nats)", "classes", _negative_log_likelihood, mean),
    Metric("brier", "Brier score", "classes", _brier, mean),
    Metric("macro_auc", "Macro AUC (one against the rest)", "classes", _scored, _areas(roc_area)),
    Metric("average_precision", "Average precision", "classes", _scored, _areas(average_precision)),
    Metric("top_5_accuracy", "Top-5 accuracy", "classes", _top_5, mean),
)
