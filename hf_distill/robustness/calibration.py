"""Calibration: ECE with its floor, reliability diagram, temperature scaling.

Logits are ``(N, C)``, labels class ids ``(N,)``. The ECE depends on the bins and has a floor above
0 that falls only slowly with N: do not compare ECEs of fewer than 1000 items.
"""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike

from hf_distill.evaluation.measures import Floats, checked, checked_logits, confidences, log_softmax
from hf_distill.evaluation.metrics.functional import calibration_error, calibration_sums

TEMPERATURES = (0.01, 1000.0)
"""Range of :func:`fit_temperature`."""


def ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: sum_b n_b / N |accuracy_b - confidence_b|, in [0, 1].

    Bin b of B holds the items whose largest probability is in ((b - 1)/B, b/B]; 1 is in the last.

    Raises:
        ValueError: logits and labels that do not fit, or ``bins`` below 1.

    Reference: Guo et al., 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.

    >>> round(ece([[0.0, 1000.0], [0.0, 1000.0]], [1, 0]), 4)
    0.5
    """
    return float(calibration_error(_sums(logits, labels, bins)))


def ece_floor(logits: ArrayLike, bins: int = 15, seed: int = 0, draws: int = 200) -> float:
    """Mean ECE of a perfectly calibrated model with the same confidences.

    Labels are drawn from the model's own probabilities ``draws`` times; the result varies by about
    0.3 / √draws of itself. What the ECE has above this floor is miscalibration.

    Raises:
        ValueError: logits that are not ``(N, C)`` and finite; ``bins`` or ``draws`` below 1.
    """
    if bins < 1 or draws < 1:
        raise ValueError(f"Expected at least 1 bin and 1 draw, got bins={bins} and draws={draws}.")
    # Only whether the top class is right enters the ECE, and it is right with p = confidence.
    confidence = np.sort(confidences(checked_logits(logits)))
    index = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    expected = np.bincount(index, weights=confidence, minlength=bins)
    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(draws):
        hits = rng.random(len(confidence)) < confidence
        total += np.abs(np.bincount(index, weights=hits, minlength=bins) - expected).sum()
    return float(total / draws / len(confidence))


def adaptive_ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """The ECE with bins of equal mass: the edges are the quantiles of the confidences.

    Items of equal confidence are in one bin.

    Raises:
        ValueError: logits and labels that do not fit, or ``bins`` below 1.

    Reference: Nixon et al., 2019, "Measuring Calibration in Deep Learning", arXiv:1904.01685
        (adaptive binning, here of the top class).
    """
    if bins < 1:
        raise ValueError(f"adaptive_ece needs at least 1 bin, got bins={bins}.")
    scores, classes = checked(logits, labels)
    confidence = confidences(scores)
    edges = np.quantile(confidence, np.arange(1, bins) / bins)
    index = np.searchsorted(edges, confidence, side="left")
    gaps = np.bincount(index, weights=(scores.argmax(-1) == classes) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(classes))


def reliability(
    logits: ArrayLike, labels: ArrayLike, bins: int = 15
) -> tuple[Floats, Floats, Floats]:
    """The points of a reliability diagram, by bin of confidence.

    Returns:
        Number of items, mean confidence and accuracy, ``(bins,)`` each; the latter two are NaN for
        an empty bin.

    Raises:
        ValueError: logits and labels that do not fit, or ``bins`` below 1.

    Reference: Guo et al., 2017, arXiv:1706.04599 (figure 1).
    """
    count, confidence, correct = _sums(logits, labels, bins).numpy()
    filled = np.where(count > 0, count, math.nan)
    return count, confidence / filled, correct / filled


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The T > 0 for which softmax(logits / T) has the least NLL.

    The NLL is convex in 1 / T, so its slope, mean(E_p[logit] - logit_y), is bisected.

    Returns:
        T, in [0.01, 1000]. 1.0, thus no change, if every label has the largest logit of its item:
        the NLL then falls for ever as T goes to 0.

    Raises:
        ValueError: logits and labels that do not fit, or a label with a logit of -inf.

    Reference: Guo et al., 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.

    >>> round(fit_temperature([[0.0, 8.0]] * 4, [1, 1, 1, 0]) * math.log(3), 6)
    8.0
    """
    scores, classes = checked(logits, labels)
    scores = scores - scores.max(-1, keepdims=True)
    chosen = scores[np.arange(len(classes)), classes]
    if np.isneginf(chosen).any():
        raise ValueError(
            "Expected finite logits at the labels, got -inf: these classes are ruled out, and no "
            "temperature changes it. Leave those items out."
        )
    if not chosen.any():
        return 1.0
    values = np.where(np.isneginf(scores), 0.0, scores)  # their probability is 0: no 0 * inf

    def falls(log_temperature: float) -> bool:
        """True if a higher temperature has a lower NLL."""
        p = np.exp(log_softmax(scores / math.exp(log_temperature)))
        return bool(np.mean((p * values).sum(-1) - chosen) > 0)

    low, high = map(math.log, TEMPERATURES)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if falls(middle) else (low, middle)
    return math.exp((low + high) / 2)


def _sums(logits: ArrayLike, labels: ArrayLike, bins: int) -> torch.Tensor:
    scores, classes = (torch.from_numpy(array) for array in checked(logits, labels))
    return calibration_sums(scores, classes, torch.ones_like(classes), bins)
