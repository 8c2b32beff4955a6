"""A metric of a whole set: one row of sufficient statistics per example, a value, an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_distill.utils.directions import higher_is_better as direction

Floats = NDArray[np.float64]
Weighted = Callable[[Floats], float]
"""A value as a function of how often each row counts ``(N,)``; NaN where it is not defined."""

FORMS = {
    "classes": "logits (N, C) and class ids (N,); label -100: left out",
    "multi_label": "logits (N, L) and labels 0 or 1 (N, L)",
    "values": "numbers (N,) or (N, D), twice",
    "pairs": "similarities (N,) and gold scores (N,)",
    "tags": "lists of lists of label names, twice",
    "texts": "list[str] and list[str] or list[list[str]]",
    "answers": "list[str] ('': no answer) and list[list[str]] (empty list: no answer)",
    "maps": "lists of integer arrays (H, W), twice; label 255 or -100: left out",
    "rankings": "scores (N, C) and relevance (N, C); NaN or -100: padding",
    "boxes": "lists of {boxes (n, 4) as x0, y0, x1, y1, scores, labels} and {boxes, labels}",
    "likelihoods": "summed negative log-likelihoods in nats (N,) and numbers of tokens (N,)",
}
"""Forms of the inputs of metrics: predictions and references."""


@dataclass(frozen=True)
class Metric:
    """A metric whose value does not depend on batches, their order or the number of processes.

    `units` turns predictions and references into rows, one per example. Rows of parts of a set are
    concatenated in any order; `value` and `interval` need all of them.

    Attributes:
        name: Key in `METRICS`.
        title: Name on model cards and in tables.
        form: Key in `FORMS`: the form of predictions and references.
        rows: Predictions, references -> rows ``(N, K)``.
        weighted: Rows -> the value as a function of how often each row counts. ValueError where
            the rows have no value.
        library: Package that computes the rows, of the extra ``metrics``; empty: none.
        higher_is_better: None: by the name, see `hf_distill.utils.directions`.

    Raises:
        ValueError: an unknown form, or a name whose direction is not known and is not given.

    >>> hits = Metric("hit_accuracy", "Hits", "texts",
    ...     lambda ours, theirs: [[float(a == b)] for a, b in zip(ours, theirs)], mean)
    >>> hits.value(hits.units(["a", "b"], ["a", "c"]))
    0.5
    """

    name: str
    title: str
    form: str
    rows: Callable[[Any, Any], ArrayLike]
    weighted: Callable[[Floats], Weighted]
    library: str = ""
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"Expected a form of {', '.join(FORMS)}, got {self.form!r}.")
        if self.higher_is_better is None:
            found = direction(self.name)
            if found is None:
                raise ValueError(
                    f"The direction of {self.name!r} does not follow from its name. Give "
                    "higher_is_better=True or False."
                )
            object.__setattr__(self, "higher_is_better", found)

    def units(self, predictions: Any, references: Any) -> Floats:
        """Rows ``(N, K)`` in float64, one per example that counts; N may be 0 for a part of a set.

        Raises:
            ValueError: inputs of another form, of different lengths, or not finite.
            ImportError: the extra ``metrics`` is not installed, and the metric needs it.
        """
        return np.asarray(self.rows(predictions, references), dtype=np.float64)

    def value(self, units: ArrayLike) -> float:
        """The metric of the whole set from its rows ``(N, K)``, whose order does not matter.

        Raises:
            ValueError: no rows, or rows for which the metric is not defined.
        """
        rows = self._ordered(units)
        return float(self.weighted(rows)(np.ones(len(rows))))

    def interval(
        self, units: ArrayLike, level: float = 0.95, samples: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """Percentile bootstrap interval: quantiles of the value over resampled rows.

        Rows are sorted first, so that their order does not matter. Resamples for which the metric
        is not defined (an area under a curve without a positive example) are left out; NaN where
        none is defined.

        Args:
            units: ``(N, K)``, as of `value`.
            level: Share of resamples within the interval, in (0, 1).
            samples: Number of resamples.
            seed: Of numpy's default generator.

        Raises:
            ValueError: as `value`; a level outside (0, 1), or no samples.

        Reference: Efron and Tibshirani, 1993, "An Introduction to the Bootstrap", chapter 13.
        """
        if not 0 < level < 1 or samples < 1:
            raise ValueError(
                f"Expected a level between 0 and 1, such as 0.95, and at least 1 sample, got "
                f"level={level} and samples={samples}."
            )
        rows, rng = self._ordered(units), np.random.default_rng(seed)
        weighted, size = self.weighted(rows), len(rows)
        drawn = np.array(
            [
                weighted(np.bincount(rng.integers(size, size=size), minlength=size).astype(float))
                for _ in range(samples)
            ]
        )
        drawn = drawn[~np.isnan(drawn)]
        if not len(drawn):
            return np.nan, np.nan
        method: Any = "linear" if np.isfinite(drawn).all() else "nearest"
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], method=method)
        return float(low), float(high)

    def _ordered(self, units: ArrayLike) -> Floats:
        rows = np.asarray(units, dtype=np.float64)
        if rows.ndim != 2 or not len(rows):
            raise ValueError(
                f"Expected rows (N, K) of at least one example for {self.name}, got the shape "
                f"{rows.shape}. Evaluate on a set with labelled examples."
            )
        return rows[np.lexsort(rows.T[::-1])]


def of_sums(value: Callable[[Floats], float]) -> Callable[[Floats], Weighted]:
    """A metric that is a function of the sums of the rows ``(K,)``."""

    def weighted(rows: Floats) -> Weighted:
        if np.isfinite(rows).all():
            return lambda times: float(value(times @ rows))
        return lambda times: float(value(times[times > 0] @ rows[times > 0]))  # 0 · ∞ is NaN

    return weighted


def mean(rows: Floats) -> Weighted:
    """The mean of the only column."""
    total = of_sums(lambda sums: sums[0])(rows)
    return lambda times: total(times) / times.sum()


def root_mean(rows: Floats) -> Weighted:
    """The root of the mean of the only column."""
    average = mean(rows)
    return lambda times: float(np.sqrt(average(times)))


def ratio(rows: Floats) -> Weighted:
    """The sum of the first column divided by that of the second; NaN where that is 0.

    Raises:
        ValueError: the second column is 0 in all rows.
    """
    if not rows[:, 1].any():
        raise ValueError(
            f"Expected something to divide by, got {len(rows)} references that are all empty. "
            "Evaluate on a set with references that are not."
        )
    return of_sums(lambda sums: divided(sums[0], sums[1]))(rows)


def divided(above: Any, below: Any) -> Any:
    """``above / below``, NaN or infinite where below is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(above, below)


def check_lengths(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Raise ValueError unless there is one reference for each prediction."""
    if len(predictions) != len(references):
        raise ValueError(
            f"Expected one reference per prediction, got {len(predictions)} predictions and "
            f"{len(references)} references. Leave out the same examples in both."
        )


def needs(package: str, load: Callable[[], ModuleType]) -> ModuleType:
    """A module of the extra ``metrics``.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return load()
    except ImportError as error:
        raise ImportError(
            f"Expected {package} to compute this metric, but it is not installed. Install it: "
            'pip install "hf_distill[metrics]"'
        ) from error
