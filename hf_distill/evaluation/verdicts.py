"""Verdicts on two claims, each with its test.

*Checkpoint*: this file beats that file on this data. The examples are the sample: exact McNemar, or
the paired bootstrap. *Method*: distilling helps. The seeds are the sample: paired t and exact
sign-flip over same-seed pairs, both significant after Holm over the axes.
"""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_distill.evaluation import statistics
from hf_distill.evaluation.statistics import Estimate, holm, mcnemar, paired_bootstrap, paired_t
from hf_distill.utils.suggest import did_you_mean

SEEDS = 6  # least number of same-seed pairs for a verdict: with 5, sign-flip cannot reach 0.05
COUNTED = 20  # most pairs for exact sign-flip


@dataclass(frozen=True)
class Verdict:
    """Verdict on one metric.

    Attributes:
        axis: What was measured.
        difference: The mean of ours - theirs, in the unit of the axis.
        low: Lower end of the interval at 1 - level, which leaves 0 out exactly where p is at most
            ``level``: over the examples, or over the seeds (from 6 pairs on the wider one of t and
            sign-flip).
        high: Upper end. Both are NaN if there is a single value.
        p: Of McNemar for 0/1 scores, else the paired bootstrap; over seeds the larger one of paired
            t and sign-flip. NaN with 2 to 5 pairs, and for a single value.
        p_adjusted: p after Holm over the axes.
        seeds: Number of same-seed pairs.
        word: "better", "worse" or "not distinguishable"; "preliminary" with 2 to 5 pairs,
            "checkpoint only" with 1.
        claim: "checkpoint" or "method".
    """

    axis: str
    difference: float
    low: float
    high: float
    p: float
    p_adjusted: float
    seeds: int
    word: str
    claim: str


def no_word_yet(seeds: int) -> str:
    """Reason why 2 to 5 pairs have neither p nor verdict.

    >>> no_word_yet(3)
    'no p: with exact sign-flip over 3 pairs of seeds the least is 0.25; a verdict needs 6'
    """
    least = 2 / 2**seeds
    return (
        f"no p: with exact sign-flip over {seeds} pairs of seeds the least is {least:.3g}; "
        f"a verdict needs {SEEDS}"
    )


def tests_of(seeds: int) -> str:
    """Names of the tests behind interval and p for this number of pairs.

    >>> tests_of(3)
    "Student's t over 3 pairs of seeds"
    """
    if not SEEDS <= seeds <= COUNTED:
        return f"Student's t over {seeds} pairs of seeds"
    return f"Student's t and exact sign-flip over {seeds} pairs of seeds, the wider of the two"


def judge(
    axes: Mapping[str, tuple[ArrayLike, ArrayLike]],
    level: float = 0.05,
    higher_is_better: Mapping[str, bool] | None = None,
) -> dict[str, Verdict]:
    """Verdict for each metric, with Holm's correction over all of them.

    "better" and "worse" need at least 6 same-seed pairs, and both tests significant after Holm.
    Sign-flip cannot go below 2 / 2^S: 6 pairs suffice for one axis only, 8 pairs for up to six.
    Pairs whose scores are the same in all runs, but differ between ours and theirs, count as one.

    Args:
        axes: name -> (ours, theirs), ``(S, N)`` each: the score of example n in the run with seed
            s, be it 0/1 or any number; or ``(S,)``: one value per run, such as its ECE.
        level: the significance level; intervals cover 1 - level.
        higher_is_better: False for axes such as "ece" and "nll"; True if not given.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or an unknown axis.

    >>> runs = np.eye(8)
    >>> judge({"clean": (runs, runs)})["clean"].word
    'not distinguishable'
    """
    if not 0 < level < 1:
        raise ValueError(f"Expected a significance level such as 0.05, got level={level}.")
    upwards = dict.fromkeys(axes, True)
    for axis, up in (higher_is_better or {}).items():
        upwards[_known(axis, axes, "higher_is_better")] = up
    verdicts = {axis: _tested(axis, *_runs(axis, *pair), level) for axis, pair in axes.items()}
    adjusted = holm({axis: v.p for axis, v in verdicts.items() if not math.isnan(v.p)})
    return {
        axis: replace(
            verdict,
            p_adjusted=adjusted.get(axis, math.nan),
            word=_word(verdict, adjusted.get(axis, math.nan), level, upwards[axis]),
        )
        for axis, verdict in verdicts.items()
    }


def checkpoint(
    ours: ArrayLike, theirs: ArrayLike, axis: str = "accuracy", level: float = 0.05
) -> Verdict:
    """Compare two checkpoints by scores ``(N,)`` of the same examples; no claim about the methods.

    ``axis`` is what was measured; the interval covers 1 - level. Scores are finite.

    >>> checkpoint([1, 1, 1, 1, 0], [0, 0, 0, 0, 0]).p
    0.125
    """
    a, b = (np.asarray(scores, dtype=float) for scores in (ours, theirs))
    estimate = paired_bootstrap(a, b, 1 - level)
    if all(np.isin(scores, (0, 1)).all() for scores in (a, b)):
        low, high = statistics.mcnemar_interval(a, b, 1 - level)
        estimate = Estimate(estimate.mean, low, high, mcnemar(a, b))
    return _verdict(axis, estimate, 1)


def _tested(axis: str, ours: NDArray, theirs: NDArray, level: float) -> Verdict:
    differences = ours - theirs
    seeds = len(differences)
    if seeds > 1 and differences.any() and all((r == r[0]).all() for r in (ours, theirs)):
        ours, theirs, differences, seeds = ours[:1], theirs[:1], differences[:1], 1
    if seeds == 1:
        if differences.ndim == 2:
            return checkpoint(ours[0], theirs[0], axis, level)
        return _verdict(axis, Estimate(float(differences[0]), math.nan, math.nan, math.nan), 1)
    per_seed = differences.reshape(seeds, -1).mean(-1)
    mean, low, high, p = paired_t(per_seed, 1 - level)
    if seeds < SEEDS:
        p = math.nan
    elif seeds <= COUNTED:
        ends = statistics.sign_flip_interval(per_seed, 1 - level)
        p = max(p, statistics.sign_flip(per_seed))
        low, high = min(low, ends[0]), max(high, ends[1])
    if math.isinf(low):
        low = high = math.nan  # so few pairs have no interval at this level
    return _verdict(axis, Estimate(mean, low, high, p), seeds)


def _verdict(axis: str, estimate: Estimate, seeds: int) -> Verdict:
    word, claim = ("checkpoint only", "checkpoint") if seeds == 1 else ("preliminary", "method")
    return Verdict(axis, *estimate, p_adjusted=estimate.p, seeds=seeds, word=word, claim=claim)


def _word(verdict: Verdict, p: float, level: float, higher_is_better: bool) -> str:
    if verdict.seeds < SEEDS:
        return verdict.word
    if p > level:
        return "not distinguishable"
    return "better" if (verdict.difference > 0) == higher_is_better else "worse"


def _runs(axis: str, ours: ArrayLike, theirs: ArrayLike) -> tuple[NDArray, NDArray]:
    a, b = (np.asarray(scores, dtype=float) for scores in (ours, theirs))
    if a.shape != b.shape or a.ndim not in (1, 2) or not a.size:
        raise ValueError(
            f"Axis {axis!r} needs scores of shape (seeds, examples), or (seeds,), of the same runs "
            f"and examples for both, got {a.shape} and {b.shape}."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(
            f"Axis {axis!r} needs finite scores, got NaN or infinity. Leave out the axis, or the "
            "examples without a score, for both."
        )
    return a, b


_OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_REQUIREMENT = re.compile(rf"\s*([^<>=]*[^<>=\s])\s*(>=|<=|==|>|<)\s*({_NUMBER})\s*")


def require(expressions: Sequence[str], figures: Mapping[str, float]) -> list[str]:
    """Messages for the requirements that are not met.

    Args:
        expressions: such as ``"robustness.noise>=0"``, or without the prefix: an axis, one of >= >
            <= < ==, and a number.
        figures: axis -> the difference of the distilled student against the reference, in the unit
            of the axis. NaN meets no requirement.

    >>> require(["robustness.noise>=0", "clean > -0.01"], {"noise": -0.02, "clean": 0.0})
    ['required robustness.noise>=0, measured -0.02']
    """
    failures = []
    for expression in expressions:
        match = _REQUIREMENT.fullmatch(expression)
        if match is None:
            raise ValueError(
                f"Expected a requirement such as robustness.noise>=0 (an axis, one of "
                f"{' '.join(_OPERATORS)}, a number), got {expression!r}."
            )
        axis, compare, bound = match.groups()
        axis = axis if axis in figures else axis.removeprefix("robustness.")
        value = float(figures[_known(axis, figures, expression)])
        if not _OPERATORS[compare](value, float(bound)):
            failures.append(f"required {expression.strip()}, measured {value:.4g}")
    return failures


def _known(axis: str, axes: Mapping[str, Any], where: str) -> str:
    if axis in axes:
        return axis
    meant = did_you_mean(axis, axes, 0.5)
    raise ValueError(
        f"{where}: there is no axis {axis!r}, only {', '.join(map(repr, axes)) or 'none'}.{meant}"
    )
