"""Areas under curves of one class against the rest, for any number of repeats of each example."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hf_distill.evaluation.scoring.base import Floats, Weighted, divided

Area = Callable[[Floats, NDArray[np.bool_]], Weighted]
"""Scores ``(N,)`` and which examples are positive ``(N,)`` -> the area as a function of repeats."""


def roc_area(scores: Floats, positive: NDArray[np.bool_]) -> Weighted:
    """The probability that a positive example has a higher score than a negative one; ties: 1/2.

    Reference: Hanley and McNeil, 1982, "The Meaning and Use of the Area under a Receiver Operating
        Characteristic (ROC) Curve".
    """
    _, group = np.unique(scores, return_inverse=True)

    def area(times: Floats) -> float:
        ours = np.bincount(group, times * positive)
        theirs = np.bincount(group, times * ~positive)
        below = theirs.cumsum() - theirs / 2
        return float(divided(ours @ below, ours.sum() * theirs.sum()))

    return area


def average_precision(scores: Floats, positive: NDArray[np.bool_]) -> Weighted:
    """Σ (R_i - R_{i-1}) P_i over the thresholds from the highest score on, without interpolation.

    P and R are precision and recall of all examples at or above the threshold.
    """
    _, group = np.unique(-scores, return_inverse=True)

    def area(times: Floats) -> float:
        ours = np.bincount(group, times * positive)
        counted = np.bincount(group, times).cumsum()
        precision = divided(ours.cumsum(), counted)
        return float(divided((ours * np.where(counted > 0, precision, 0)).sum(), ours.sum()))

    return area


def macro(area: Area, scores: Floats, positive: NDArray[np.bool_]) -> Weighted:
    """The mean of the areas of all columns of ``scores`` and ``positive`` ``(N, C)``.

    NaN for repeats that leave a class without positive or, for ROC, negative examples.

    Raises:
        ValueError: a class without a positive or a negative example.
    """
    have = positive.sum(0)
    for kind, missing in (("positive", have == 0), ("negative", have == len(positive))):
        if missing.any():
            raise ValueError(
                f"Expected positive and negative examples of each class, got no {kind} one of "
                f"class {np.flatnonzero(missing).tolist()} among {len(positive)} examples. "
                "Evaluate on a set that has them, or choose an F1 score instead."
            )
    columns = [area(scores[:, c], positive[:, c]) for c in range(scores.shape[1])]
    return lambda times: float(np.mean([column(times) for column in columns]))
