"""Metrics of numbers, ``(N,)`` or ``(N, D)``, and of similarities of pairs ``(N,)``.

Of several columns a metric is the mean of those of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hf_distill.evaluation.scoring.base import (
    Floats,
    Metric,
    Weighted,
    divided,
    mean,
    root_mean,
)

Column = Callable[[Floats, Floats], Weighted]
"""Predictions and references ``(N,)`` -> the value as a function of repeats."""


def _checked(predictions: Any, references: Any) -> tuple[Floats, Floats]:
    ours, theirs = (np.asarray(x, dtype=np.float64) for x in (predictions, references))
    if ours.ndim == 2 and ours.shape[1] == 1 and theirs.shape == ours.shape[:1]:
        theirs = theirs[:, None]  # a head with one output
    if ours.ndim not in (1, 2) or ours.shape != theirs.shape:
        raise ValueError(
            f"Expected predictions and references of the same shape (N,) or (N, D), got "
            f"{ours.shape} and {theirs.shape}. Leave out the same examples in both."
        )
    for kind, values in (("predictions", ours), ("references", theirs)):
        if not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
            raise ValueError(
                f"Expected finite {kind}, got {values[bad[0]]} for example {bad[0]} ({len(bad)} of "
                f"{len(values)} are like it). Leave out examples without a value."
            )
    return (ours[:, None], theirs[:, None]) if ours.ndim == 1 else (ours, theirs)


def _squared(predictions: Any, references: Any) -> Floats:
    ours, theirs = _checked(predictions, references)
    return ((ours - theirs) ** 2).mean(-1, keepdims=True)


def _absolute(predictions: Any, references: Any) -> Floats:
    ours, theirs = _checked(predictions, references)
    return np.abs(ours - theirs).mean(-1, keepdims=True)


def _both(predictions: Any, references: Any) -> Floats:
    return np.concatenate(_checked(predictions, references), axis=1)


def _columns(column: Column, *, both: bool) -> Callable[[Floats], Weighted]:
    """The mean over the columns; ``both``: constant predictions have no value either."""

    def weighted(rows: Floats) -> Weighted:
        ours, theirs = np.split(rows, 2, axis=1)
        for kind, values in (("references", theirs), ("predictions", ours))[: 2 if both else 1]:
            if (values == values[0]).all(0).any():
                raise ValueError(
                    f"Expected {kind} that are not all equal, got {len(rows)} times "
                    f"{values[0, (values == values[0]).all(0)][0]}: there is no variance to "
                    "explain. Choose mse or mae, which need none."
                )
        parts = [column(a, b) for a, b in zip(ours.T, theirs.T, strict=True)]
        return lambda times: float(np.mean([part(times) for part in parts]))

    return weighted


def _determination(ours: Floats, theirs: Floats) -> Weighted:
    """1 - Σ (y - p)² / Σ (y - mean y)²."""
    errors = (ours - theirs) ** 2

    def value(times: Floats) -> float:
        centred = theirs - times @ theirs / times.sum()
        return float(1 - divided(times @ errors, _positive(times @ centred**2, times, theirs)))

    return value


def _positive(variance: float, times: Floats, values: Floats) -> float:
    """A variance; exactly 0 where only one value is drawn, and not off by one rounding."""
    there = values[times > 0]
    return 0.0 if (there == there[0]).all() else float(variance)


def _pearson(ours: Floats, theirs: Floats) -> Weighted:
    def value(times: Floats) -> float:
        a, b = (x - times @ x / times.sum() for x in (ours, theirs))
        below = _positive(times @ a**2, times, ours) * _positive(times @ b**2, times, theirs)
        return float(times @ (a * b) / np.sqrt(below)) if below > 0 else np.nan

    return value


def _spearman(ours: Floats, theirs: Floats) -> Weighted:
    """Pearson's correlation of the ranks; equal values have the mean of theirs."""
    groups = [np.unique(x, return_inverse=True)[1] for x in (ours, theirs)]

    def value(times: Floats) -> float:
        counts = [np.bincount(group, times) for group in groups]
        ranks = [(c.cumsum() - c / 2)[g] for c, g in zip(counts, groups, strict=True)]
        return _pearson(*ranks)(times)

    return value


METRICS = (
    Metric("mse", "Mean squared error", "values", _squared, mean),
    Metric("rmse", "Root mean squared error", "values", _squared, root_mean),
    Metric("mae", "Mean absolute error", "values", _absolute, mean),
    Metric("r2", "R²", "values", _both, _columns(_determination, both=False)),
    Metric("pearson", "Pearson correlation", "values", _both, _columns(_pearson, both=True)),
    Metric("spearman", "Spearman correlation", "values", _both, _columns(_spearman, both=True)),
    Metric(
        "similarity_pearson",
        "Pearson correlation of similarities",
        "pairs",
        _both,
        _columns(_pearson, both=True),
    ),
    Metric(
        "similarity_spearman",
        "Spearman correlation of similarities",
        "pairs",
        _both,
        _columns(_spearman, both=True),
    ),
)
