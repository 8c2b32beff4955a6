"""Perturbations of feature vectors and of lists of interactions."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_distill.robustness.perturbations.base import Perturbation, at

DEVIATIONS = (0.1, 0.2, 0.4, 0.7, 1.0)
"""Noise in standard deviations of a feature."""
MISSING = (0.05, 0.1, 0.2, 0.35, 0.5)
"""Share of the features, or of the interactions, that are lost."""


def _features(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value) if isinstance(value, np.ndarray | list | tuple) else np.empty(())
    if array.ndim != 1 or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(
            f"Expected a 1-D array of finite floats in standardised units for {name!r}, got "
            f"{type(value).__name__} of {array.dtype} {array.shape}. Fill missing values, scale "
            "the features to mean 0 and deviation 1, and give one row at a time."
        )
    return array


def _like(array: np.ndarray, value: Any) -> Any:
    return array if isinstance(value, np.ndarray) else type(value)(array.tolist())


def feature_noise(value: Any, severity: int, rng: np.random.Generator) -> Any:
    """x + c n, n from N(0, 1); the features are standardised, so c is in their deviations."""
    array = _features(value, "feature_noise")
    noise = rng.normal(scale=at(severity, DEVIATIONS), size=array.shape)
    return _like((array + noise).astype(array.dtype), value)


def missing_values(value: Any, severity: int, rng: np.random.Generator) -> Any:
    """A share of the features set to 0, which is their mean; features are standardised."""
    array = _features(value, "missing_values").copy()
    array[_lost(len(array), severity, rng)] = 0
    return _like(array, value)


def interaction_drop(value: Any, severity: int, rng: np.random.Generator) -> Any:
    """A share of a list's item ids left out, the others in their order; at least one stays."""
    items = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value
    if not isinstance(items, list | tuple) or not all(isinstance(i, int | str) for i in items):
        raise ValueError(
            "Expected a list, tuple or 1-D array of item ids (whole numbers or texts) for "
            f"'interaction_drop', got {type(value).__name__}: {str(value)[:80]}. For features use "
            "'missing_values'."
        )
    kept = np.ones(len(items), bool)
    kept[_lost(len(items), severity, rng, keep=1)] = False
    if isinstance(value, np.ndarray):
        return value[kept]
    return type(value)(item for item, stays in zip(items, kept, strict=True) if stays)


def _lost(places: int, severity: int, rng: np.random.Generator, keep: int = 0) -> np.ndarray:
    """Mask of the dropped entries; the share is rounded randomly so that its mean is exact."""
    number = int(at(severity, MISSING) * places + rng.random())
    return rng.choice(places, min(number, max(places - keep, 0)), replace=False)


TABULAR: tuple[Perturbation, ...] = (
    Perturbation("feature_noise", "tabular", feature_noise, "noise"),
    Perturbation("missing_values", "tabular", missing_values, "missing"),
    Perturbation("interaction_drop", "tabular", interaction_drop, "missing"),
)
