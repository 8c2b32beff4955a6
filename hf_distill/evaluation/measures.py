"""Measures of one model: accuracy, likelihood, loyalty to the teacher, text attacks.

Arrays in, floats out, everything in float64. Logits are ``(N, C)`` and labels ``(N,)`` class ids.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hf_distill.evaluation.metrics.functional import agreement
from hf_distill.losses import jensen_shannon

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def accuracy(logits: ArrayLike, labels: ArrayLike) -> float:
    """The share of items whose largest logit is at the label; the first among equal ones counts.

    >>> accuracy([[2.0, 0.0], [2.0, 0.0]], [0, 1])
    0.5
    """
    scores, classes = checked(logits, labels)
    return float(np.mean(scores.argmax(-1) == classes))


def nll(logits: ArrayLike, labels: ArrayLike) -> float:
    """Negative log likelihood in nats: the mean of -log p_y, p = softmax(logits); it may be
    infinite.

    >>> round(nll([[0.0, 0.0]], [1]), 4)
    0.6931
    """
    scores, classes = checked(logits, labels)
    return float(np.mean(-log_softmax(scores)[np.arange(len(classes)), classes]))


def brier(logits: ArrayLike, labels: ArrayLike) -> float:
    """The mean of sum_c (p_c - [c = y])², in [0, 2]; with two classes twice the binary score.

    Reference: Brier, 1950, "Verification of Forecasts Expressed in Terms of Probability".

    >>> brier([[0.0, 0.0]], [1])
    0.5
    """
    return float(np.mean(brier_scores(*checked(logits, labels))))


def brier_scores(scores: Floats, classes: Integers) -> Floats:
    """sum_c (p_c - [c = y])² of each item ``(N,)``; logits ``(N, C)``, class ids ``(N,)``."""
    errors = np.exp(log_softmax(scores))
    errors[np.arange(len(classes)), classes] -= 1
    return (errors**2).sum(-1)


def selective_accuracy(
    logits: ArrayLike, labels: ArrayLike, coverages: Sequence[float] = (0.5, 0.8, 0.9, 1.0)
) -> dict[float, float]:
    """Accuracy on the most confident items: coverage -> accuracy on the ⌈coverage · N⌉ of them.

    Confidence is the largest probability. Items with equal confidence are averaged over all their
    orders, so that the order of the data does not matter. Coverages are in (0, 1].

    Reference: Geifman and El-Yaniv, 2017, "Selective Classification for Deep Neural Networks",
        arXiv:1705.08500.

    >>> selective_accuracy([[0.0, 4.0], [0.0, 1.0]], [1, 0], coverages=(0.5, 1.0))
    {0.5: 1.0, 1.0: 0.5}
    """
    wrong = [c for c in coverages if not 0 < c <= 1]
    if wrong:
        raise ValueError(f"Expected coverages above 0 and up to 1 (all items), got {wrong}.")
    hits = _hits_by_confidence(logits, labels)
    # 0.07 * 100 = 7.000000000000001 is 7 items
    return {c: float(np.mean(hits[: math.ceil(round(c * len(hits), 9))])) for c in coverages}


def risk_coverage_area(logits: ArrayLike, labels: ArrayLike) -> float:
    """AURC = 1/N sum_k risk(k): the error rate on the k most confident items, averaged over all k.

    In [0, 1], less is better. Equal confidences are treated as in :func:`selective_accuracy`.

    Reference: Geifman, Uziel and El-Yaniv, 2018, "Bias-Reduced Uncertainty Estimation for Deep
        Neural Classifiers", arXiv:1805.08206.

    >>> risk_coverage_area([[0.0, 4.0], [0.0, 1.0]], [1, 0])
    0.25
    """
    hits = _hits_by_confidence(logits, labels)
    return float(np.mean(1 - np.cumsum(hits) / np.arange(1, len(hits) + 1)))


def _hits_by_confidence(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """1 for right, 0 for wrong, the most confident first; equal confidences share their mean."""
    scores, classes = checked(logits, labels)
    hits = (scores.argmax(-1) == classes).astype(float)
    _, tied, count = np.unique(-confidences(scores), return_inverse=True, return_counts=True)
    return np.repeat(np.bincount(tied, weights=hits) / count, count)


def label_loyalty(student_logits: ArrayLike, teacher_logits: ArrayLike) -> float:
    """The share of items on which the student chooses the teacher's class; logits ``(N, C)``.

    Reference: Xu et al., 2021, "Beyond Preserved Accuracy", arXiv:2109.03228.

    >>> label_loyalty([[1.0, 0.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 3.0]])
    0.5
    """
    return float(agreement(*_pair(student_logits, teacher_logits)).double().mean())


def probability_loyalty(student_logits: ArrayLike, teacher_logits: ArrayLike) -> float:
    """The mean of 1 - √JS(p_t, p_s), with the Jensen-Shannon divergence in bits; in [0, 1].

    Logits ``(N, C)``; reference: see :func:`label_loyalty`.

    >>> probability_loyalty([[1.0, 0.0]], [[2.0, 1.0]])
    1.0
    """
    bits = jensen_shannon(*_pair(student_logits, teacher_logits)) / math.log(2)
    return float((1 - bits.clamp(0, 1).sqrt()).mean())


def _pair(student: ArrayLike, teacher: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(checked_logits(student)), torch.from_numpy(checked_logits(teacher))


def attack_summary(
    original_correct: ArrayLike,
    attacked_correct: ArrayLike,
    queries: ArrayLike,
    words_changed: ArrayLike,
) -> dict[str, float]:
    """The figures of a search attack on text, counted as TextAttack counts them.

    An example that is wrong to begin with is not attacked, and counts as wrong. The success rate
    flatters models with low accuracy; lead with the accuracy under attack.

    Args:
        original_correct: ``(N,)``, 0 or 1.
        attacked_correct: ``(N,)``, 0 or 1; any value for skipped examples.
        queries: ``(N,)``, calls of the model for each example.
        words_changed: ``(N,)``, the share of words changed, in [0, 1].

    Returns:
        ``accuracy`` and ``accuracy_under_attack`` over all N; ``success_rate`` and ``mean_queries``
        over those attacked; ``words_perturbed``, the mean share over the successful; NaN over none.

    Reference: Morris et al., 2020, "TextAttack", arXiv:2005.05909.
    """
    original, attacked = correctness(original_correct), correctness(attacked_correct)
    calls, words = np.asarray(queries, dtype=float), np.asarray(words_changed, dtype=float)
    if not original.shape == attacked.shape == calls.shape == words.shape:
        raise ValueError(
            "attack_summary needs one value per example in all four, got lengths "
            f"{original.shape}, {attacked.shape}, {calls.shape} and {words.shape}."
        )
    if not (((words >= 0) & (words <= 1)).all() and (calls >= 0).all()):
        raise ValueError(
            "Expected words_changed as shares in [0, 1] and queries of 0 or more, got values "
            f"from {words.min()} to {words.max()} and from {calls.min()}."
        )
    succeeded = original & ~attacked
    return {
        "accuracy": float(original.mean()),
        "accuracy_under_attack": float((original & attacked).mean()),
        "success_rate": _mean(succeeded[original]),
        "mean_queries": _mean(calls[original]),
        "words_perturbed": _mean(words[succeeded]),
    }


def _mean(values: NDArray) -> float:
    return float(values.mean()) if values.size else math.nan


def checked(logits: ArrayLike, labels: ArrayLike) -> tuple[Floats, Integers]:
    """Logits in float64 and labels as integers.

    Raises:
        ValueError: no items, shapes that do not fit, labels that are not class ids, or an item
            without a finite largest logit (the model overflowed).
    """
    scores, classes = checked_logits(logits), np.asarray(labels)
    if classes.shape != scores.shape[:1]:
        raise ValueError(
            f"Expected one label per item: logits of shape {scores.shape} want "
            f"({len(scores)},), but labels have the shape {classes.shape}."
        )
    if classes.dtype.kind not in "iub" or classes.min() < 0 or classes.max() >= scores.shape[1]:
        raise ValueError(
            f"Expected labels as class ids from 0 to {scores.shape[1] - 1}, got {classes.dtype} "
            f"from {classes.min()} to {classes.max()}. Leave out items without a label (-100)."
        )
    return scores, classes.astype(np.int64)


def checked_logits(logits: ArrayLike) -> Floats:
    """Logits ``(N, C)`` in float64; ValueError as in :func:`checked`."""
    scores = np.array(logits, dtype=np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(
            f"Expected logits of shape (items, classes), at least one of each, got {scores.shape}. "
            "Flatten tokens or pixels into items."
        )
    bad = np.flatnonzero(~np.isfinite(scores.max(-1)))
    if bad.size:
        raise ValueError(
            f"Expected finite logits, got {scores[bad[0]]} for item {bad[0]} ({bad.size} of "
            f"{len(scores)} items are like it). Evaluate in float32, or look for an overflow."
        )
    return scores


def correctness(values: ArrayLike) -> NDArray[np.bool_]:
    """A vector of 0 and 1 as booleans; ValueError for anything else or nothing."""
    array = np.asarray(values)
    if array.ndim != 1 or not array.size or not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"Expected a vector with 1 (correct) or 0 for every example, got {array.dtype} of "
            f"shape {array.shape}. Compare predictions with labels first."
        )
    return array.astype(bool)


def log_softmax(scores: Floats) -> Floats:
    """log softmax over the classes, ``(N, C)``."""
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def confidences(scores: Floats) -> Floats:
    """The largest probability of each item, ``(N,)``."""
    return 1 / np.exp(scores - scores.max(-1, keepdims=True)).sum(-1)
