"""The base class of metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Metric:
    """A metric of a whole set as a function of one row of statistics per example.

    Attributes:
        name: Its key in `METRICS`.
        title: Its name in tables.
        higher_is_better: True if more is better.
        form: Name of the form of its inputs.
        units: ``(predictions, references) -> (N, K)``, the statistics of each example.
        value: ``(N, K) -> value`` of the whole set.
    """

    name: str
    title: str
    higher_is_better: bool
    form: str
    units: Callable[[Any, Any], np.ndarray]
    value: Callable[[np.ndarray], float]

    def interval(
        self, units: np.ndarray, level: float = 0.95, samples: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """Percentile bootstrap over the rows."""
        draws = np.random.default_rng(seed)
        count = len(units)
        values = [self.value(units[draws.integers(count, size=count)]) for _ in range(samples)]
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)
