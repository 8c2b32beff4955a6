"""Corruption errors, absolute and relative to a reference model (mCE)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hf_distill.evaluation.measures import Floats

Errors = Mapping[str, Sequence[float]]
"""Name of a corruption -> its error rates in [0, 1], one per severity."""


@dataclass(frozen=True)
class CorruptionError:
    """Errors under corruption as a multiple of a reference model's: 1 is as bad as the reference.

    Attributes:
        mean: mCE, the mean of ``by_corruption``. Papers print 100 times this.
        relative: relative mCE; None if no clean errors were given.
        by_corruption: CE_c by name of the corruption.
        relative_by_corruption: relative CE_c; empty if no clean errors were given.
        reason: Why a figure is NaN; empty if none is.
    """

    mean: float
    relative: float | None
    by_corruption: dict[str, float]
    relative_by_corruption: dict[str, float]
    reason: str


def mean_corruption_error(
    errors: Errors, reference: Errors, clean: tuple[float, float] | None = None
) -> CorruptionError:
    """mCE, the mean over c of CE_c = sum_s E_{s,c} / sum_s R_{s,c}, and relative mCE.

    E and R are the error rates of the model and of the reference at severity s. The relative CE_c
    compares what corruption costs: sum_s (E_{s,c} - E_clean) / sum_s (R_{s,c} - R_clean). With the
    student without a teacher as the reference, mCE < 1 means that distillation helped.

    A reference without errors (or, for the relative one, that loses nothing) has no ratio: the
    figure of this corruption and the mean are NaN, and ``reason`` contains the place.

    Args:
        errors: the model's error rates, by corruption and severity.
        reference: the reference's, for the same corruptions and severities.
        clean: the clean error rates of the model and of the reference.

    Raises:
        ValueError: the two do not cover the same, or a rate is outside [0, 1].

    Reference: Hendrycks and Dietterich, 2019, "Benchmarking Neural Network Robustness to Common
        Corruptions and Perturbations", arXiv:1903.12261. Their reference is AlexNet.

    >>> mean_corruption_error({"fog": [0.1, 0.3]}, {"fog": [0.2, 0.6]}).mean
    0.5
    """
    ours, theirs = _rates(errors, "errors"), _rates(reference, "reference")
    if {n: len(v) for n, v in ours.items()} != {n: len(v) for n, v in theirs.items()}:
        raise ValueError(
            "mean_corruption_error needs the same corruptions at the same severities for both, got "
            f"{sorted((n, len(v)) for n, v in ours.items())} and for the reference "
            f"{sorted((n, len(v)) for n, v in theirs.items())} (name, number of severities)."
        )
    plain = {name: _ratio(ours[name].sum(), theirs[name].sum()) for name in ours}
    missing = [f"the reference makes no errors under {n}" for n, v in plain.items() if v != v]
    relative: dict[str, float] = {}
    if clean is not None:
        own, other = _rates({"clean": clean}, "clean")["clean"]
        relative = {n: _ratio((ours[n] - own).sum(), (theirs[n] - other).sum()) for n in ours}
        missing += [f"the reference loses nothing under {n}" for n, v in relative.items() if v != v]
    return CorruptionError(
        mean=float(np.mean(list(plain.values()))),
        relative=float(np.mean(list(relative.values()))) if relative else None,
        by_corruption=plain,
        relative_by_corruption=relative,
        reason="; ".join(missing),
    )


def _rates(errors: Errors, name: str) -> dict[str, Floats]:
    rates = {n: np.asarray(values, dtype=float) for n, values in errors.items()}
    bad = [
        n for n, v in rates.items() if v.ndim != 1 or not v.size or not ((v >= 0) & (v <= 1)).all()
    ]
    if bad or not rates:
        raise ValueError(
            f"Expected {name} by name: a list of error rates in [0, 1] each (not percentages), got "
            f"{ {n: errors[n] for n in bad} or 'no corruption at all' }."
        )
    return rates


def _ratio(numerator: float, denominator: float) -> float:
    """NaN where the denominator is 0 but for rounding: sums of a few rates."""
    return float(numerator / denominator) if abs(denominator) > 1e-12 else math.nan
