"""Corruption errors relative to a reference model (mCE)."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from hf_distill.evaluation.measures import Floats

Errors = Mapping[str, Sequence[float]]
"""Name of a corruption -> its error rates in [0, 1], one per severity."""


def mean_corruption_error(
    errors: Errors, reference: Errors, clean: tuple[float, float] = (0.0, 0.0)
) -> float:
    """mCE, the mean over c of CE_c = sum_s E_{s,c} / sum_s R_{s,c}; papers print 100 times this.

    E and R are the error rates of the model and of the reference at severity s. With their clean
    error rates in `clean` it is the relative mCE, of sum_s (E_{s,c} - E_clean) and
    sum_s (R_{s,c} - R_clean): what corruption costs. NaN if the reference makes no errors under a
    corruption (or, for the relative one, loses nothing).

    Raises:
        ValueError: the two do not cover the same, or a rate is outside [0, 1].

    Reference: Hendrycks and Dietterich, 2019, "Benchmarking Neural Network Robustness to Common
        Corruptions and Perturbations", arXiv:1903.12261. Their reference is AlexNet.

    >>> mean_corruption_error({"fog": [0.1, 0.3]}, {"fog": [0.2, 0.6]})
    0.5
    """
    ours, theirs = _rates(errors, "errors"), _rates(reference, "reference")
    own, other = _rates({"clean": clean}, "clean")["clean"]
    if {n: len(v) for n, v in ours.items()} != {n: len(v) for n, v in theirs.items()}:
        raise ValueError(
            "mean_corruption_error needs the same corruptions at the same severities for both, got "
            f"{sorted((n, len(v)) for n, v in ours.items())} and for the reference "
            f"{sorted((n, len(v)) for n, v in theirs.items())} (name, number of severities)."
        )
    ratios = []
    for name, rates in ours.items():
        cost = (theirs[name] - other).sum()
        # Not 0 up to rounding: sums of a few rates.
        ratios.append((rates - own).sum() / cost if abs(cost) > 1e-12 else math.nan)
    return float(np.mean(ratios))


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
