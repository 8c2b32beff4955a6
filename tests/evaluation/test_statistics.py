"""hf_distill.evaluation.statistics: intervals and tests."""

import itertools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from hf_distill.evaluation.statistics import (
    holm,
    mcnemar,
    mcnemar_interval,
    paired_bootstrap,
    paired_t,
    sign_flip,
    sign_flip_interval,
    wilson,
)


def discordant(b: int, c: int, both: int = 5, neither: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Correctness of two models: b only the first, c only the second."""
    a = [1] * b + [0] * c + [1] * both + [0] * neither
    return np.array(a), np.array([0] * b + [1] * c + [1] * both + [0] * neither)


# ---- examples ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "level", "expected"),
    [
        (0, 10, 0.95, (0.0, 0.2775327999)),
        (3, 10, 0.95, (0.1077912674, 0.6032218525)),
        (60, 60, 0.95, (0.9398281479, 1.0)),
        (997, 1000, 0.95, (0.9912169859, 0.9989792161)),
        (7, 20, 0.9, (0.2022600401, 0.5334873112)),
        (7, 20, 0.99, (0.1463934414, 0.628338179)),
    ],
)
def test_wilson_matches_statsmodels_and_scipy(
    successes: int, n: int, level: float, expected: tuple[float, float]
) -> None:
    """The usual ±1.96 √(q(1-q)/n) is empty at accuracy 1 (statsmodels 0.15.0)."""
    assert wilson(successes, n, level) == pytest.approx(expected, abs=1e-9)
    interval = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert wilson(successes, n, level) == pytest.approx((interval.low, interval.high))
    assert 0 <= wilson(successes, n, level)[0] <= successes / n <= wilson(successes, n, level)[1]


@pytest.mark.parametrize(
    ("b", "c", "expected"),
    [
        (0, 0, 1.0),
        (4, 0, 0.125),
        (1, 9, 0.021484375),
        (12, 25, 0.04703102743951604),
        (30, 30, 1.0),
        (40, 80, 0.00033040001839131815),
    ],
)
def test_mcnemar_matches_statsmodels(b: int, c: int, expected: float) -> None:
    """The chi-square form calls few disagreements significant; 0/0 for equal models crashes."""
    first, second = discordant(b, c)
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(second, first) == pytest.approx(expected)
    assert mcnemar(first.astype(bool), second.astype(float)) == pytest.approx(expected)


def test_paired_bootstrap_matches_scipy() -> None:
    """Resampling both models apart ignores the pairing and makes the interval far too wide."""
    rng = np.random.default_rng(0)
    easy = rng.normal(size=200)
    a, b = easy + rng.normal(0.1, 0.3, size=200), easy + rng.exponential(0.2, size=200)
    result = paired_bootstrap(a, b, draws=4000)
    other = stats.bootstrap(
        (a - b,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = other.high - other.low
    assert result.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (result.low, result.high) == pytest.approx((other.low, other.high), abs=0.05 * width)
    wide = paired_bootstrap(a, b, level=0.99)
    assert wide.low < result.low < result.high < wide.high


def test_bootstrap_p_agrees_with_the_normal_one() -> None:
    """A one-sided or halved p would double the false alarms; a p of 0 cannot come from draws."""
    for shift in (0.0, 0.12, -0.12):
        difference = np.random.default_rng(2).normal(size=400)
        difference += shift - difference.mean()
        expected = 2 * stats.norm.sf(abs(shift) / (difference.std() / 20))
        assert paired_bootstrap(difference, np.zeros(400)).p == pytest.approx(expected, abs=0.04)
    assert paired_bootstrap(np.ones(9), np.zeros(9), draws=99) == (1, 1, 1, 2 / 100)
    assert paired_bootstrap(np.ones(9), np.ones(9)) == (0, 0, 0, 1)


@pytest.mark.parametrize("function", [mcnemar, paired_bootstrap])
def test_pairs_of_other_examples_are_refused(function: Callable) -> None:
    """A single value would be compared with every example."""
    with pytest.raises(ValueError, match=r"\(3,\) and \(1,\)"):
        function([1, 0, 1], [1])


# ---- seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 5, 8, 30])
def test_paired_t_matches_scipy(seeds: int) -> None:
    """The normal quantile or the population sd makes few seeds look like many."""
    a, b = np.random.default_rng(seeds).normal(size=(2, seeds))
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.9)
    result = paired_t(a - b, level=0.9)
    assert result == pytest.approx((np.mean(a - b), interval.low, interval.high, expected.pvalue))


def test_differences_without_spread() -> None:
    """0/0 would give NaN, which is neither significant nor not: equal arms must have p = 1."""
    assert paired_t([0.0, 0.0, 0.0]) == (0, 0, 0, 1)
    assert paired_t([0.1, 0.1, 0.1]) == pytest.approx((0.1, 0.1, 0.1, 0))
    assert sign_flip([0.0, 0.0]) == 1


@pytest.mark.parametrize("seeds", range(1, 11))
def test_sign_flip_matches_brute_force(seeds: int) -> None:
    """Ties lost to rounding make p too small: it must count "at least as large"."""
    rng = np.random.default_rng(seeds)
    for values in (
        rng.normal(0.5, 1, size=seeds),
        rng.integers(-3, 4, size=seeds) / 10,  # 0.1 + 0.2 is not 0.3: many tied sums
        np.abs(rng.normal(size=seeds)),
    ):
        tenths = [round(v * 1e6) for v in values]  # exact arithmetic
        count = sum(
            abs(sum(s * v for s, v in zip(signs, tenths, strict=True))) >= abs(sum(tenths))
            for signs in itertools.product((-1, 1), repeat=seeds)
        )
        assert sign_flip(np.array(tenths) / 1e6) == count / 2**seeds


def test_sign_flip_matches_scipy_and_is_fast() -> None:
    """2^24 patterns in one array would take half a gigabyte."""
    values = np.random.default_rng(3).normal(0.4, 1, size=10)
    other = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert sign_flip(values) == pytest.approx(other.pvalue)
    assert sign_flip(np.ones(24)) == 2 / 2**24
    for seeds, least in ((3, 0.25), (5, 0.0625), (6, 0.03125), (8, 0.0078125)):
        assert sign_flip(np.arange(1, seeds + 1)) == least
    with pytest.raises(ValueError, match="got 41 differences"):
        sign_flip(np.ones(41))


@pytest.mark.parametrize("function", [paired_t, sign_flip])
@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0, 2.0]]])
def test_bad_differences_are_refused(function: Callable, values: list) -> None:
    """NaN compares as not larger: a failed run would count as no evidence, or as some."""
    with pytest.raises(ValueError, match="finite difference"):
        function(values)
    with pytest.raises(ValueError, match="at least 2"):
        paired_t([1.0])


def _p_of_signs(values: np.ndarray, shift: float) -> float:
    """The two-sided p of the mean of ``values - shift`` over all patterns of signs."""
    moved = values - shift
    sums = [abs(np.dot(signs, moved)) for signs in itertools.product((-1, 1), repeat=len(moved))]
    return float(np.mean(np.array(sums) >= abs(moved.sum()) - 1e-9 * np.abs(values).sum()))


@pytest.mark.parametrize("seeds", [6, 7, 9])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_of_sign_flip_is_of_that_test(seeds: int, level: float) -> None:
    """An interval of another test leaves 0 out where the p beside it says "not significant"."""
    rng = np.random.default_rng(seeds)
    for values in (rng.normal(0.5, 1, seeds), rng.integers(-2, 5, seeds) / 10):
        low, high = sign_flip_interval(values, level)
        for end, outwards in ((low, -1), (high, 1)):
            assert _p_of_signs(values, end) > 1 - level
            assert _p_of_signs(values, end + outwards * 1e-6) <= 1 - level
    assert sign_flip_interval(np.arange(6.0), 0.99) == (-math.inf, math.inf)
    assert sign_flip_interval([0.1, 0.2, -0.3, 0.4, 0.5, 0.6, 0.7])[0] <= 0
    with pytest.raises(ValueError, match="got 21 differences"):
        sign_flip_interval(np.ones(21))


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (6, 0), (12, 25), (12, 24), (1, 9), (200, 3)])
def test_the_interval_of_mcnemar_is_of_that_test(b: int, c: int) -> None:
    """A bootstrap's interval leaves 0 out with 5 examples to none, where McNemar's p is 0.0625."""
    first, second = discordant(b, c)
    low, high = mcnemar_interval(first, second)
    difference = (b - c) / len(first)
    assert low <= difference <= high
    assert (low > 0 or high < 0) == (b + c > 0 and stats.binomtest(b, b + c).pvalue <= 0.05)
    if b + c:  # Clopper and Pearson by their definition
        share = (len(first) * low / (b + c) + 1) / 2
        tail = stats.binom.sf(b - 1, b + c, share)
        assert tail == pytest.approx(0.025 if b else 1.0)


def test_bootstrap_covers_the_truth_and_agrees_with_its_p() -> None:
    """An interval of 95 % that holds in 80 % of cases is a false claim in each card."""
    rng, covered = np.random.default_rng(5), 0
    for _ in range(300):
        scores = 0.3 + rng.normal(0, 1, 60)
        result = paired_bootstrap(scores, np.zeros(60), draws=300)
        covered += result.low <= 0.3 <= result.high
        assert (result.low > 0 or result.high < 0) == (result.p <= 0.05)
        assert result.mean == pytest.approx(scores.mean())
    assert 0.9 <= covered / 300 <= 0.98


def test_bootstrap_depends_on_the_seed_alone() -> None:
    """An interval that moves with the order of the data, or the global state, is not repeatable."""
    values = np.random.default_rng(6).normal(size=50)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    result = paired_bootstrap(values, np.zeros(50), draws=100)
    shuffled = values[np.random.default_rng(7).permutation(50)]
    assert paired_bootstrap(shuffled, np.zeros(50), draws=100) == pytest.approx(result, abs=1e-12)
    assert paired_bootstrap(values, np.zeros(50), draws=100, seed=1) != result
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


def test_bad_bootstraps_are_refused() -> None:
    """NaN compares as not beyond 0: a failed example would count as evidence."""
    for values in ([1.0, math.nan], []):
        with pytest.raises(ValueError, match="finite scores"):
            paired_bootstrap(values, np.zeros(len(values)))
    with pytest.raises(ValueError, match="level between 0 and 1"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0], level=95)
    with pytest.raises(ValueError, match="1 draw"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0], draws=0)


# ---- several axes --------------------------------------------------------------------------------


def test_holm_matches_statsmodels_and_hand() -> None:
    """Without it, one of six axes is "better" by chance in a quarter of the reports (0.15.0)."""
    values = {"a": 0.001, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.2, "f": 0.03}
    expected = dict(zip("abcdef", (0.006, 0.12, 0.12, 0.025, 0.2, 0.12), strict=True))
    assert holm(values) == pytest.approx(expected)
    assert list(holm(values)) == list(values)
    assert holm({"x": 0.6, "y": 0.9}) == {"x": 1.0, "y": 1.0}
    assert holm({}) == {}
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="p-values in"):
            holm({"x": bad})
