"""Weights that change during training."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Progress of the training; the same for every micro-batch of an optimizer step."""

    step: int = 0
    epoch: float = 0.0
    max_steps: int = 0


@dataclass(frozen=True)
class Schedule:
    """A weight that goes from ``start`` to ``end`` and then stays there.

    Args:
        shape: ``linear`` or ``cosine`` (half a period).
        start: The weight at the beginning.
        end: The weight at the end.
        over: How long it takes, in units of ``by``; None: the whole training.
        by: ``step`` (optimizer steps) or ``epoch`` (fractions of an epoch count).

    Raises:
        ValueError: a negative weight, an unknown shape or unit, a length of 0.
    """

    shape: str = "linear"
    start: float = 1.0
    end: float = 0.0
    over: float | None = None
    by: str = "step"

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"Expected a schedule 'linear' or 'cosine', got {self.shape!r}.")
        if self.by not in ("step", "epoch"):
            raise ValueError(f"Expected a schedule by 'step' or 'epoch', got {self.by!r}.")
        if self.over is not None and not 0 < self.over < math.inf:
            raise ValueError(f"Expected a schedule over more than 0 {self.by}s, got {self.over}.")
        check_weight(self.start)
        check_weight(self.end)

    def at(self, progress: Progress) -> float:
        """The weight at this point of training."""
        done = float(progress.step) if self.by == "step" or self.over is None else progress.epoch
        total = progress.max_steps if self.over is None else self.over
        part = min(1.0, done / total) if total > 0 else 0.0
        if self.shape == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        return self.start + (self.end - self.start) * part

    def __str__(self) -> str:
        over = "the whole training" if self.over is None else f"{self.over:g} {self.by}s"
        return f"{self.shape}({self.start:g} → {self.end:g} over {over})"

    def __mul__(self, factor: float) -> Schedule:
        if not isinstance(factor, (int, float)):  # an objective, which implements the product
            return NotImplemented
        return replace(self, start=self.start * factor, end=self.end * factor)

    __rmul__ = __mul__


def check_weight(value: float) -> float:
    """Refuse weights that are negative or not finite."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"Expected a weight of at least 0, got {value}. To push away from something, write an "
            "objective whose value grows with similarity."
        )
    return value


def finite(value: Any, of: str) -> float:
    """A finite number of a recipe's mapping.

    ``value`` is a number or its text; ``of`` names it in the message of the ValueError.
    """
    number = math.nan
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"Expected a finite number for {of}, got {value!r}.")
    return number
