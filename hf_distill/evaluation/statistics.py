"""Intervals and tests for two models on the same examples, and for two methods on the same seeds.

Which claim needs which test is in :mod:`hf_distill.evaluation.verdicts`. Tests need scipy (extra
``recipes``).
"""

import itertools
import math
from collections.abc import Mapping
from statistics import NormalDist
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_distill.evaluation.measures import correctness


class Estimate(NamedTuple):
    """A mean, its interval, and the two-sided p-value of "the mean is 0"."""

    mean: float
    low: float
    high: float
    p: float


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion: within [0, 1], valid for small n.

    (q + z²/2n ± z √(q (1 - q)/n + z²/4n²)) / (1 + z²/n), with q = successes / n.

    Raises:
        ValueError: not 0 <= successes <= n with n >= 1, or a level outside (0, 1).

    Reference: Wilson, 1927, "Probable Inference, the Law of Succession, and Statistical Inference".

    >>> low, high = wilson(0, 10)
    >>> round(low, 3), round(high, 3)
    (0.0, 0.278)
    """
    _check_level(level)
    if not (n >= 1 and 0 <= successes <= n):
        raise ValueError(f"Expected 0 <= successes <= n and n >= 1, got {successes} of {n}.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the bound is exact, and not off by one rounding.
    low = (centre - half) / scale if successes else 0.0
    high = (centre + half) / scale if successes < n else 1.0
    return low, high


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Exact two-sided p-value of McNemar's test: both models err equally often.

    Of ``correct_a`` and ``correct_b`` ``(N,)``, 0 or 1 for the same examples, those b + c count on
    which only one model is right: p = 2 P(Binomial(b + c, 1/2) <= min(b, c)), at most 1.

    It is about these two files: two runs of one method are "different" by it in 12 to 28 % of
    cases. For methods see :func:`paired_t`.

    Reference: McNemar, 1947, "Note on the Sampling Error of the Difference Between Correlated
        Proportions or Percentages".

    >>> mcnemar([1, 1, 1, 1, 0], [0, 0, 0, 0, 0])
    0.125
    """
    only_a, only_b = _discordant(correct_a, correct_b)
    if only_a + only_b == 0:
        return 1.0
    return float(_scipy_stats().binomtest(min(only_a, only_b), only_a + only_b).pvalue)


def mcnemar_interval(
    correct_a: ArrayLike, correct_b: ArrayLike, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean of a - b that excludes 0 exactly where :func:`mcnemar` is <= 1 - level.

    Clopper and Pearson's interval of the share θ of examples on which a is right, of the m = b + c
    on which only one of them is, as a difference of accuracies: m (2θ - 1) / N.

    Reference: Clopper and Pearson, 1934, "The Use of Confidence or Fiducial Limits Illustrated in
        the Case of the Binomial".

    >>> low, high = mcnemar_interval([1, 1, 1, 1, 0], [0, 0, 0, 0, 0])
    >>> round(low, 3), high
    (-0.164, 0.8)
    """
    only_a, only_b = _discordant(correct_a, correct_b)
    differing = only_a + only_b
    _check_level(level)
    if not differing:
        return 0.0, 0.0
    share = _scipy_stats().binomtest(only_a, differing).proportion_ci(level, method="exact")
    low, high = (
        differing * (2 * float(end) - 1) / np.size(correct_a) for end in (share.low, share.high)
    )
    return low, high


def _discordant(correct_a: ArrayLike, correct_b: ArrayLike) -> tuple[int, int]:
    """The numbers of examples on which only a, and only b, is right."""
    a, b = correctness(correct_a), correctness(correct_b)
    _check_pair(a, b)
    return int((a & ~b).sum()), int((b & ~a).sum())


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Estimate:
    """The mean of a - b over examples, with a percentile interval from resampled examples.

    ``a`` and ``b`` ``(N,)`` are scores of the same examples, whose order does not matter. ``p`` is
    twice the share of resamples on the other side of 0 (at least 2 / (draws + 1)); it is at most
    1 - level exactly where the interval leaves 0 out.

    Raises:
        ValueError: not the same number of finite scores, a level outside (0, 1), or no draws.

    Reference: Efron and Tibshirani, 1993, "An Introduction to the Bootstrap"; Koehn, 2004,
        "Statistical Significance Tests for Machine Translation Evaluation" (paired).
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    _check_pair(first, second)
    values = np.sort(first - second)
    if not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"Expected finite scores of some examples, got shape {values.shape}. Leave out "
            "examples that have no score in one of the runs."
        )
    _check_level(level)
    if draws < 1:
        raise ValueError(f"Expected at least 1 draw, got draws={draws}.")
    rng = np.random.default_rng(seed)
    chunks = [
        values[rng.integers(len(values), size=(len(part), len(values)))].mean(-1)
        for part in np.array_split(np.arange(draws), math.ceil(draws * len(values) / 2**20))
    ]
    means = np.sort(np.concatenate(chunks))
    # So many may lie beyond 0 for p to be at most 1 - level: the interval begins at the next.
    place = max(0, math.floor(round((1 - level) * (draws + 1) / 2, 9)) - 1)
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (1 + beyond) / (draws + 1))
    return Estimate(float(values.mean()), float(means[place]), float(means[-1 - place]), float(p))


def paired_t(differences: ArrayLike, level: float = 0.95) -> Estimate:
    """Student's t interval and test of the mean of per-seed ``differences`` ``(S,)``, S >= 2.

    Differences that are all the same have no spread: p is 1 if they are 0, and otherwise 0.

    Raises:
        ValueError: fewer than 2 differences, or one that is not finite.

    Reference: Student, 1908, "The Probable Error of a Mean".

    >>> paired_t([1.0, 2.0, 3.0]).mean
    2.0
    """
    values = _vector(differences, at_least=2)
    _check_level(level)
    mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
    if error <= 1e-12 * abs(mean):  # the same but for rounding
        return Estimate(mean, mean, mean, float(mean == 0))
    t, freedom = _scipy_stats().t, len(values) - 1
    half = float(t.ppf((1 + level) / 2, freedom)) * error
    return Estimate(mean, mean - half, mean + half, float(2 * t.sf(abs(mean) / error, freedom)))


def sign_flip(differences: ArrayLike) -> float:
    """Exact two-sided p-value of the sign-flip test of a mean of 0, which assumes no normality.

    The share of all 2^S sign patterns of the ``differences`` ``(S,)``, S <= 40, with |sum| at least
    as large as observed. The least possible value is 2 / 2^S, so 5 seeds cannot reach 0.05.

    Raises:
        ValueError: more differences, none, or one that is not finite.

    Reference: Fisher, 1935, "The Design of Experiments"; Pitman, 1937, "Significance Tests Which
        May be Applied to Samples From any Populations".

    >>> sign_flip([0.1, 0.3, 0.2])
    0.25
    """
    values = _vector(differences, at_least=1)
    if len(values) > 40:
        raise ValueError(
            f"sign_flip counts all 2^S patterns, up to S=40, got {len(values)} differences. With "
            "so many, paired_t is as good."
        )
    observed = abs(values.sum()) - 1e-9 * np.abs(values).sum()  # equal sums may be rounded apart
    if observed <= 0:
        return 1.0
    half = len(values) // 2
    left, right = np.zeros(1), np.zeros(1)  # the sums of all patterns of signs of both halves
    for value in values[:half]:
        left = np.append(left + value, left - value)
    for value in values[half:]:
        right = np.append(right + value, right - value)
    at_least = len(right) - np.searchsorted(np.sort(right), observed - left, side="left")
    return float(2 * at_least.sum(dtype=float) / 2.0 ** len(values))


def sign_flip_interval(differences: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean that matches :func:`sign_flip`: all shifts with a p above 1 - level.

    Below the mean, a shift δ of the ``differences`` ``(S,)``, S <= 20, has p = 2 (1 + number of
    non-empty subsets whose mean is at most δ) / 2^S: the ends are the k-th smallest and largest of
    these means, k = ⌊(1 - level) 2^S / 2⌋; infinite where k is 0.

    Raises:
        ValueError: more differences, none, or one that is not finite.

    Reference: Hartigan, 1969, "Using Subsample Values as Typical Values".

    >>> sign_flip_interval([0.1, 0.2, 0.3, 0.1, 0.2, 0.2])
    (0.1, 0.3)
    """
    values = _vector(differences, at_least=1)
    _check_level(level)
    if len(values) > 20:
        raise ValueError(
            f"sign_flip_interval looks at all 2^S subsets, up to S=20, got {len(values)} "
            "differences. With so many, paired_t is as good."
        )
    place = math.floor(round((1 - level) * 2.0 ** (len(values) - 1), 9))
    if place < 1:
        return -math.inf, math.inf
    sums, sizes = np.zeros(1), np.zeros(1)
    for value in values:
        sums, sizes = np.append(sums, sums + value), np.append(sizes, sizes + 1)
    means = np.sort(sums[1:] / sizes[1:])
    means[np.abs(means) <= 1e-9 * np.abs(values).sum()] = 0  # equal but for rounding
    return float(means[place - 1]), float(means[-place])


def holm(pvalues: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number: rejecting where it is <= α keeps any error below α.

    The i-th smallest of m is multiplied by m - i + 1, and made no smaller than those before it.

    Raises:
        ValueError: a value outside [0, 1] or NaN.

    Reference: Holm, 1979, "A Simple Sequentially Rejective Multiple Test Procedure".

    >>> holm({"clean": 0.04, "noise": 0.01})
    {'clean': 0.04, 'noise': 0.02}
    """
    bad = {name: p for name, p in pvalues.items() if not 0 <= p <= 1}
    if bad:
        raise ValueError(f"Expected p-values in [0, 1], got {bad}.")
    order = sorted(pvalues, key=pvalues.__getitem__)
    scaled = [min(1.0, pvalues[name] * (len(order) - rank)) for rank, name in enumerate(order)]
    adjusted = dict(zip(order, itertools.accumulate(scaled, max), strict=True))
    return {name: adjusted[name] for name in pvalues}


def _vector(values: ArrayLike, at_least: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) < at_least or not np.isfinite(array).all():
        raise ValueError(
            f"Expected at least {at_least} finite difference(s), one per same-seed pair, got "
            f"{array.tolist() if array.size <= 8 else array.shape}."
        )
    return array


def _check_pair(a: NDArray, b: NDArray) -> None:
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(
            f"Expected scores of both models for the same examples, got shapes {a.shape} and "
            f"{b.shape}. Evaluate both on the same examples, in the same order."
        )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"Expected a level between 0 and 1, such as 0.95, got {level}.")


def _scipy_stats() -> ModuleType:
    try:
        from scipy import stats
    except ImportError as error:
        message = "Tests and intervals need scipy: pip install 'hf_distill[recipes]'."
        raise ImportError(message) from error
    return stats
