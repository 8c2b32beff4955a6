"""The Square attack: random squares of the strongest colours, by the model's scores alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_distill.ascent import Ball
from hf_distill.robustness.attacks.attack import Attack
from hf_distill.robustness.attacks.search import Search

SHARE = 0.8
"""Of the picture, that the first squares cover (AutoAttack's value)."""
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the squares cover half as much. Not rescaled to the budget, so that a longer
search begins as a shorter one."""


def side(query: int, height: int, width: int) -> int:
    """How wide the square of a query is.

    >>> [side(query, 32, 32) for query in (1, 11, 51, 8001)]
    [29, 20, 14, 1]
    """
    share = SHARE / 2 ** sum(query > halving for halving in HALVINGS)
    return max(1, min(round(math.sqrt(share * height * width)), min(height, width) - 1))


def square(search: Search, attack: Attack) -> None:
    """Start from vertical stripes, then try squares, each channel at one end of the ball, and keep
    those that raise the margin; the budget is in queries.

    Raises:
        ValueError: the input is no picture, or the norm is not ``linf``.

    Reference: Andriushchenko et al., 2020, "Square Attack: a query-efficient black-box adversarial
    attack via random search", arXiv:1912.00049.
    """
    if search.space.key != "pixel_values" or search.center.dim() != 4:
        raise ValueError(
            f"Expected pictures (B, C, h, w) for the Square attack, got `{search.space.key}` of "
            f"shape {tuple(search.center.shape)}. Take `noise` or `pgd` for other inputs."
        )
    if attack.norm != "linf":
        raise ValueError(
            f"Expected norm='linf' for the Square attack, got {attack.norm!r}. Take 'pgd' or "
            "'autoattack' for l2."
        )
    for restart in range(attack.restarts):
        rows = search.standing()
        if len(rows):
            with torch.no_grad():
                _search(search, rows, restart, attack.steps)


def _search(search: Search, rows: Tensor, restart: int, queries: int) -> None:
    channels, height, width = search.center.shape[1:]
    device, dtype = search.center.device, search.center.dtype
    stripes, draws = [], []
    for generator in search.generators(rows, restart):
        stripes.append(torch.rand(channels, 1, width, generator=generator, dtype=dtype))
        draws.append(torch.rand(queries - 1, 2 + channels, generator=generator, dtype=dtype))
    sign, drawn = _sign(torch.stack(stripes)).to(device), torch.stack(draws).to(device)

    ball, best = search.ball.rows(rows), search.center[rows]
    height_of_best = search.worst.new_full((len(rows),), -torch.inf)
    candidate = _at_the_end(ball, sign)
    for query in range(1, queries + 1):
        logits = search.logits(rows, candidate)
        held = search.offer(rows, candidate, logits)
        margin = search.margin(rows, logits)
        better = margin > height_of_best
        best = torch.where(better.view(-1, 1, 1, 1), candidate, best)
        height_of_best = torch.where(better, margin, height_of_best)
        if query == queries or not held.any():
            return
        if not held.all():
            rows, ball, best, drawn = rows[held], ball.rows(held), best[held], drawn[held]
            height_of_best = height_of_best[held]
        draw = drawn[:, query - 1]
        inside = _square(draw[:, :2], side(query, height, width), height, width)
        colour = _at_the_end(ball, _sign(draw[:, 2:])[..., None, None])
        candidate = torch.where(inside, colour, best)


def _sign(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0).to(uniform.dtype)


def _at_the_end(ball: Ball, sign: Tensor) -> Tensor:
    """The farthest points of the ball in these directions."""
    return ball.project(ball.center + ball.epsilon * sign * ball.scale)


def _square(place: Tensor, wide: int, height: int, width: int) -> Tensor:
    """Where ``(n, 1, h, w)`` a square is, at a uniform place ``(n, 2)`` that holds all of it."""
    top = (place[:, 0] * (height - wide + 1)).long().view(-1, 1, 1, 1)
    left = (place[:, 1] * (width - wide + 1)).long().view(-1, 1, 1, 1)
    row = torch.arange(height, device=place.device).view(-1, 1)
    column = torch.arange(width, device=place.device)
    return (row >= top) & (row < top + wide) & (column >= left) & (column < left + wide)
