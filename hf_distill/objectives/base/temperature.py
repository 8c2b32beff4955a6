"""Temperatures: a number, scheduled, per class, per example, learned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.losses.numerics import above_zero
from hf_distill.objectives.base.schedules import Progress, Schedule, finite

FLOOR = 0.1
"""Lowest temperature of an example."""


@dataclass(frozen=True)
class AdaptiveTemperature:
    """A temperature per example: T = base + strength * (1 - w), at least `FLOOR`.

    - ``cwsm``: w = 1 / (max softmax(student) + 1e-3), more for the examples that the student is
      unsure of; they get a lower temperature.
    - ``flsw``: w = (1 - cos(student, teacher)) ** power, on the logits.

    The rules are TextBrewer's (Yang et al. 2020, arXiv 2002.12620), which centres w on its mean
    over the batch; the constant 1 in its place keeps the loss the same for any split.

    Raises:
        ValueError: an unknown rule, or a base that is not above 0.
    """

    rule: str = "cwsm"
    base: float = 4.0
    strength: float = 1.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.rule not in ("cwsm", "flsw"):
            raise ValueError(f"Expected a rule 'cwsm' or 'flsw', got {self.rule!r}.")
        above_zero(self.base)

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``(..., C)`` logits to ``(...)`` temperatures, detached."""
        ours, theirs = student.detach().float(), teacher.detach().float()
        if self.rule == "cwsm":
            w = 1 / (ours.softmax(-1).amax(-1) + 1e-3)
        else:
            w = (1 - torch.cosine_similarity(ours, theirs, dim=-1)).clamp(min=0) ** self.power
        return (self.base + self.strength * (1 - w)).clamp(min=FLOOR)


@dataclass(frozen=True)
class LearnedTemperature:
    """One temperature that is learned against the student, a curriculum (CTKD, Li et al. 2023).

    T = start + (end - start) * sigmoid(p). The gradient of p is reversed, so that T makes the loss
    larger while the student makes it smaller; how much of it p gets rises from 0 to 1 like half a
    cosine over the share ``over`` of the training (arXiv 2211.16231, its global form).
    """

    start: float = 1.0
    end: float = 20.0
    over: float = 0.5

    def __post_init__(self) -> None:
        above_zero(self.start)
        above_zero(self.end)
        if not 0 < self.over <= 1:
            raise ValueError(f"Expected a share of the training in (0, 1], got over={self.over}.")

    def module(self) -> nn.Module:
        return _Learned()

    def of(self, module: nn.Module, progress: Progress) -> Tensor:
        done = progress.step / progress.max_steps if progress.max_steps > 0 else 0.0
        share = (1 - math.cos(math.pi * min(1.0, done / self.over))) / 2
        p: Any = module.p
        reversed_p = p.detach() + share * (p.detach() - p)  # p, with -share times its gradient
        return self.start + (self.end - self.start) * reversed_p.sigmoid()


class _Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(()))


Temperature = float | Schedule | tuple[float, ...] | AdaptiveTemperature | LearnedTemperature
"""A number; a `Schedule`; one number per class, of which an example takes that of the teacher's
most likely class (multi-label heads: that of each class); per example; learned."""


def temperature_from(value: Any) -> Temperature:
    """Read a temperature as a recipe writes it, and check it.

    A number, a list with one per class, ``{schedule: linear, start: 4, end: 1}``,
    ``{rule: cwsm, base: 4, strength: 1}`` or ``{rule: learned, start: 1, end: 20}``.

    Raises:
        ValueError: what is none of these, or not above 0.
    """
    if isinstance(value, Mapping):
        options = dict(value)
        rule = options.get("rule")
        if "schedule" in options:
            value = _made(Schedule, {"shape": options.pop("schedule"), **options})
        elif rule in ("cwsm", "flsw"):
            value = _made(AdaptiveTemperature, options)
        elif rule == "learned":
            del options["rule"]
            value = _made(LearnedTemperature, options)
        else:
            raise ValueError(
                f"Expected a temperature with a `schedule` (linear, cosine) or a `rule` of "
                f"['cwsm', 'flsw', 'learned'], got {dict(value)}."
            )
    elif isinstance(value, (list, tuple)):
        value = tuple(finite(v, "a temperature") for v in value)
    elif isinstance(value, (str, int)):
        value = finite(value, "a temperature")
    numbers = (value.start, value.end) if isinstance(value, Schedule) else value
    for number in numbers if isinstance(numbers, tuple) else (numbers,):
        if isinstance(number, float | int):
            above_zero(number)
    return value


def _made(kind: Any, options: Mapping[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := set(options) - known:
        raise ValueError(
            f"Unknown key(s) {sorted(unknown)} in a temperature; known are {sorted(known)}."
        )
    texts = {"shape", "rule", "by"}
    numbers = {k: v for k, v in options.items() if k not in texts and v is not None}
    read = {k: finite(v, f"`{k}` of a temperature") for k, v in numbers.items()}
    return kind(**{**options, **read})


def temperature_at(
    temperature: Temperature,
    student: Tensor,
    teacher: Tensor,
    progress: Progress,
    module: nn.Module | None,
) -> float | Tensor:
    """Current temperature for logits ``(..., C)``: a number, or one per item ``(...)``.

    ``module`` is the result of `LearnedTemperature.module`.
    """
    if isinstance(temperature, Schedule):
        return temperature.at(progress)
    if isinstance(temperature, AdaptiveTemperature):
        return temperature.of(student, teacher)
    if isinstance(temperature, LearnedTemperature):
        if module is None:
            raise ValueError("Expected the module of a learned temperature, got none.")
        return temperature.of(module, progress)
    if isinstance(temperature, tuple):
        if len(temperature) != student.shape[-1]:
            raise ValueError(
                f"Expected {student.shape[-1]} temperatures, one per class in the student's order, "
                f"got {len(temperature)}."
            )
        return torch.tensor(temperature, device=student.device)[teacher.argmax(-1)]
    return temperature
