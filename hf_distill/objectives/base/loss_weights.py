"""Weights of objectives: a number, a schedule, a share of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_distill.objectives.base.schedules import Schedule, check_weight, finite


@dataclass(frozen=True)
class LossShare:
    """A share of the total loss, in place of a weight.

    Hidden-state losses may be 1000 times larger than a divergence, differently for every pair of
    models. ``Share(0.3) * HiddenStates()`` sets the weight so that, by running means over the
    steps so far, the term makes up 30 % of the loss, whatever its scale. The first step measures:
    there the weight is 0. The weight is a number, not a part of the graph.

    Raises:
        ValueError: a share that is not between 0 and 1.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"Expected a share of the total loss in (0, 1], got {self.share}. Without balance "
                "a plain number is a weight."
            )

    def __str__(self) -> str:
        return f"share({self.share:g})"


Weight = float | Schedule | LossShare


def weight_from(value: Any) -> Weight:
    """Read a weight as a recipe writes it.

    A number, ``{schedule: linear, start: …, end: …}`` or ``{share: 0.3}``.

    Raises:
        ValueError: unknown keys, or what `Schedule` and `LossShare` refuse.
    """
    if not isinstance(value, Mapping):
        return check_weight(finite(value, "a weight"))
    if set(value) == {"share"}:
        return LossShare(finite(value["share"], "a share"))
    options = {("shape" if key == "schedule" else key): item for key, item in value.items()}
    unknown = set(options) - {"shape", "start", "end", "over", "by"}
    if unknown:
        raise ValueError(
            f"Unknown key(s) {sorted(unknown)} in a weight; known are schedule, start, end, over, "
            "by of a schedule, or share alone."
        )
    if "shape" not in options:
        raise ValueError(
            f"Expected a weight with a `schedule` (linear, cosine) or a `share`, got {dict(value)}."
        )
    for key in ("start", "end", "over"):
        if options.get(key) is not None:
            options[key] = finite(options[key], f"`{key}` of a weight")
    return Schedule(**options)


def product(own: Weight, weight: Weight) -> Weight:
    """Product of two weights, at least one of them a number (1 if the other is a share)."""
    for one, other in ((own, weight), (weight, own)):
        if isinstance(one, LossShare) and other == 1:
            return one
        if isinstance(one, LossShare) or (
            isinstance(one, Schedule) and not isinstance(other, float | int)
        ):
            raise ValueError(
                f"A weight that is a {type(one).__name__} cannot be multiplied by {other}. "
                "Give each part of the sum its weight by itself."
            )
        if isinstance(one, Schedule):
            return one * check_weight(float(other))  # type: ignore[arg-type]
    return check_weight(own) * check_weight(weight)  # type: ignore[arg-type]
