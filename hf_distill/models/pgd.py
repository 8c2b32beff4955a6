"""Projected gradient ascent around an input, for attacks and adversarial training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

NORMS = ("linf", "l2")


@dataclass(frozen=True)
class NormBall:
    """Norm ball around each input, within bounds.

    Distances are in units of the norm (for example pixel levels from 0 to 1); ``scale`` converts
    them to units of the input: a processor that divides by a deviation s has ``scale = 1 / s``.

    Args:
        center: ``(B, ...)``, the inputs of the model; within the bounds.
        epsilon: The radius, at least 0, in units of the norm.
        norm: ``linf`` or ``l2``.
        scale: Units of the input per unit of the norm; broadcasts to the center.
        low: The smallest value, in units of the input; broadcasts; None: no bound.
        high: The largest value.
        mask: Boolean, broadcasts: where it is false the input is not changed (padding).
        each: How many leading dimensions index balls: 1, one for every example; 2, one for every
            token ``(B, T, H)``.

    Raises:
        ValueError: another norm, or a radius below 0.
    """

    center: Tensor
    epsilon: float
    norm: str = "linf"
    scale: Tensor | float = 1.0
    low: Tensor | float | None = None
    high: Tensor | float | None = None
    mask: Tensor | None = None
    each: int = 1

    def __post_init__(self) -> None:
        check_budget(self.epsilon, self.norm)

    def rows(self, index: Tensor) -> NormBall:
        """The balls of some examples.

        Args:
            index: ``(n,)``, their places.
        """

        def own(value: Any) -> Any:
            whole = isinstance(value, Tensor) and value.dim() == self.center.dim()
            return value[index] if whole and len(value) == len(self.center) else value

        parts = {name: own(getattr(self, name)) for name in ("scale", "low", "high", "mask")}
        return replace(self, center=self.center[index], **parts)

    def distances(self, x: Tensor) -> Tensor:
        """Distance of an input from its center, in units of the norm: one value per ball."""
        moved = ((x - self.center) / self.scale).flatten(self.each)
        return moved.abs().amax(-1) if self.norm == "linf" else moved.norm(dim=-1)

    def project(self, x: Tensor) -> Tensor:
        """Nearest point of the ball (finally clipped to the bounds)."""
        moved = (x - self.center) / self.scale
        if self.norm == "linf":
            moved = moved.clamp(-self.epsilon, self.epsilon)
        else:
            length = self._lengths(moved).clamp(min=torch.finfo(moved.dtype).tiny)
            moved = moved * (self.epsilon / length).clamp(max=1.0)
        return self._within(moved)

    def start(self, generator: torch.Generator | None = None) -> Tensor:
        """A random point: uniform in ``linf``; in ``l2`` a uniform direction and a uniform radius.

        Args:
            generator: On the CPU. With one, nothing is drawn for what the mask leaves out: an
                example by itself gets the same point whatever it is padded to. None: torch's
                global one.
        """
        like = self.center
        real = None if self.mask is None else self.mask.expand_as(like)
        if self.norm == "linf":
            drawn = _drawn(torch.rand, like, like.shape, real, generator)
            return self._within(self.epsilon * (2 * drawn - 1))
        drawn = _drawn(torch.randn, like, like.shape, real, generator)
        balls = None if real is None else real.flatten(self.each).any(-1)
        radius = _drawn(torch.rand, like, like.shape[: self.each], balls, generator)
        unit = drawn / self._lengths(drawn).clamp(min=torch.finfo(like.dtype).tiny)
        return self._within(self.epsilon * self._wide(radius) * unit)

    def step(self, x: Tensor, gradient: Tensor, size: float) -> Tensor:
        """A step of this size (in units of the norm) in the steepest direction, and back inside.

        Args:
            x: Where to start, in the ball.
            gradient: Of what is to grow, by the input.
            size: Of the step.
        """
        uphill = torch.nan_to_num(gradient * self.scale)
        if self.mask is not None:
            uphill = uphill * self.mask
        if self.norm == "linf":
            direction = uphill.sign()
        else:  # divided by the largest first: squares of small gradients are 0
            tiny = torch.finfo(x.dtype).tiny
            uphill = uphill / self._wide(uphill.abs().flatten(self.each).amax(-1)).clamp(min=tiny)
            direction = uphill / self._lengths(uphill).clamp(min=tiny)
        return self.project(x + size * direction * self.scale)

    def _lengths(self, moved: Tensor) -> Tensor:
        return self._wide(moved.flatten(self.each).norm(dim=-1))

    def _wide(self, values: Tensor) -> Tensor:
        """One value per ball, ready to be multiplied with the input."""
        return values.view(*values.shape, *[1] * (self.center.dim() - self.each))

    def _within(self, moved: Tensor) -> Tensor:
        if self.mask is not None:
            moved = moved * self.mask
        x = self.center + moved * self.scale
        if self.low is not None or self.high is not None:
            low, high = (
                None if bound is None else torch.as_tensor(bound, dtype=x.dtype, device=x.device)
                for bound in (self.low, self.high)
            )
            x = x.clamp(low, high)
        return x


def _drawn(
    draw: Callable[..., Tensor],
    like: Tensor,
    shape: Sequence[int],
    real: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Random values in this shape, 0 at padding."""
    if real is None or generator is None:
        drawn = draw(shape, generator=generator, dtype=like.dtype).to(like.device)
        return drawn if real is None else drawn * real
    drawn = draw(int(real.sum()), generator=generator, dtype=like.dtype).to(like.device)
    return torch.zeros(shape, dtype=like.dtype, device=like.device).masked_scatter(real, drawn)


def check_budget(epsilon: float, norm: str, step_size: float | None = None) -> None:
    """Refuse a norm that is not known, a radius below 0, a step above the radius."""
    if norm not in NORMS:
        raise ValueError(f"Expected a norm of {list(NORMS)}, got {norm!r}.")
    if not epsilon >= 0:
        raise ValueError(f"Expected a radius epsilon of at least 0, got {epsilon}.")
    if step_size is not None and not 0 <= step_size <= max(epsilon, 0.0):
        raise ValueError(
            f"Expected a step of at most the radius, got step_size={step_size:g} and "
            f"epsilon={epsilon:g}. Have they been swapped?"
        )


def projected_ascent(
    gradient: Callable[[Tensor], Tensor], ball: NormBall, steps: int, size: float, start: Tensor
) -> Iterator[Tensor]:
    """Inputs along projected gradient ascent, one after each step (Madry et al. 2018,
    arXiv:1706.06083).

    Args:
        gradient: Of what is to grow, by the input: ``(B, ...) -> (B, ...)``.
        ball: Where to stay.
        steps: How many steps.
        size: Of one step, in units of the norm.
        start: Where to begin, in the ball.
    """
    x = start
    for _ in range(steps):
        x = ball.step(x, gradient(x), size).detach()
        yield x
