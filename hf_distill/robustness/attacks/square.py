"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random squares, queries only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.models.pgd import NormBall
from hf_distill.robustness.attacks.attack import Attack
from hf_distill.robustness.attacks.state import AttackState

SHARE = 0.8
"""Share of the image that the first squares cover (AutoAttack's value)."""
SMALL = 1e-10
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the squares cover half as much. Not rescaled to the budget, so that a longer
search begins as a shorter one."""


def side(query: int, height: int, width: int) -> int:
    """Side of the square of a query, in pixels.

    >>> [side(query, 32, 32) for query in (1, 11, 51, 8001)]
    [29, 20, 14, 1]
    """
    share = SHARE / 2 ** sum(query > halving for halving in HALVINGS)
    return max(1, min(round(math.sqrt(share * height * width)), min(height, width) - 1))


def square(search: AttackState, attack: Attack) -> None:
    """Try random squares, and keep those that raise the margin; the budget is in queries.

    Raises:
        ValueError: the input is not an image.

    Reference: Andriushchenko et al., 2020, "Square Attack: a query-efficient black-box adversarial
    attack via random search", arXiv:1912.00049.
    """
    if search.space.key != "pixel_values" or search.center.dim() != 4:
        raise ValueError(
            f"Expected pictures (B, C, h, w) for the Square attack, got `{search.space.key}` of "
            f"shape {tuple(search.center.shape)}. Take `noise` or `pgd` for other inputs."
        )
    for restart in range(attack.restarts):
        rows = search.standing()
        if len(rows):
            with torch.no_grad():
                _search(search, rows, restart, attack)


def _search(search: AttackState, rows: Tensor, restart: int, attack: Attack) -> None:
    channels, height, width = search.center.shape[1:]
    device, dtype, queries = search.center.device, search.center.dtype, attack.steps
    moves = MOVES[attack.norm]
    starts, draws = [], []
    for generator in search.generators(rows, restart):
        shape, count = moves.drawn(channels, width)
        starts.append(torch.rand(shape, generator=generator, dtype=dtype))
        draws.append(torch.rand(queries - 1, count, generator=generator, dtype=dtype))
    drawn = torch.stack(draws).to(device)

    ball, best = search.ball.rows(rows), search.center[rows]
    height_of_best = search.worst.new_full((len(rows),), -torch.inf)
    candidate = moves.first(ball, torch.stack(starts).to(device))
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
        candidate = moves.next(ball, best, drawn[:, query - 1], side(query, height, width))


# ---- linf --------------------------------------------------------------------------------------


def _stripes(ball: NormBall, uniform: Tensor) -> Tensor:
    return _at_the_end(ball, _sign(uniform))


def _recolour(ball: NormBall, best: Tensor, draw: Tensor, wide: int) -> Tensor:
    inside = _inside(*_corner(draw[:, :2], wide, best), wide, best)
    return torch.where(inside, _at_the_end(ball, _sign(draw[:, 2:])[..., None, None]), best)


def _at_the_end(ball: NormBall, sign: Tensor) -> Tensor:
    """Farthest points of the ball in these directions."""
    return ball.project(ball.center + ball.epsilon * sign * ball.scale)


# ---- l2 ----------------------------------------------------------------------------------------

GRID = 5
"""Bumps per row and column of the initial image."""


def _bumps(ball: NormBall, uniform: Tensor) -> Tensor:
    """Grid of bumps with random signs and orientations."""
    height, width = ball.center.shape[2:]
    count = min(GRID, height, width)
    wide = min(height, width) // count
    sign, lying = _sign(uniform[:, 1:]), uniform[:, :1] < 0.5
    bump = _two_halves(wide).to(uniform)
    tiles = torch.where(lying[..., None, None], bump.T, bump) * sign[..., None, None]
    whole = tiles[:, :, :count, :count].transpose(3, 4).flatten(4).flatten(2, 3)
    free = height - count * wide, width - count * wide
    margins = [part for space in reversed(free) for part in (space // 2, space - space // 2)]
    return _on_the_sphere(ball, F.pad(whole, margins))


def _move(ball: NormBall, best: Tensor, draw: Tensor, wide: int) -> Tensor:
    """Move the mass of one square, and the ball's remaining budget, to another one."""
    wide = min(max(3, wide + 1 - wide % 2), *best.shape[2:])
    moved = (best - ball.center) / ball.scale
    corner, other = _corner(draw[:, :2], wide, best), _corner(draw[:, 2:4], wide, best)
    here, there = _inside(*corner, wide, best), _inside(*other, wide, best)

    def mass(part: Tensor) -> Tensor:
        return part.square().sum((2, 3), keepdim=True)

    left = (ball.epsilon**2 - mass(moved).sum(1, keepdim=True)).clamp(min=0) / moved.shape[1]
    bump = _placed(_two_halves(wide).to(moved), draw[:, 4] < 0.5, corner, moved)
    old = moved * here
    tiny = torch.finfo(moved.dtype).tiny
    new = bump * _sign(draw[:, 5:])[..., None, None] + old / mass(old).sqrt().clamp(min=SMALL)
    new = new * here
    new = new / mass(new).sqrt().clamp(min=tiny) * (left + mass(moved * (here | there))).sqrt()
    return _on_the_sphere(ball, torch.where(here, new, moved * ~there))


def _on_the_sphere(ball: NormBall, moved: Tensor) -> Tensor:
    """Projection to the sphere, within the bounds."""
    length = moved.flatten(1).norm(dim=-1).clamp(min=torch.finfo(moved.dtype).tiny)
    unit = moved / length.view(-1, 1, 1, 1)
    return ball.project(ball.center + ball.epsilon * unit * ball.scale)


def _two_halves(wide: int) -> Tensor:
    """``(wide, wide)`` of norm 1: a bump, and the opposite of one below it."""
    upper = wide // 2
    whole = torch.cat([_bump(upper, wide), -_bump(wide - upper, wide)])
    return whole / whole.norm()


def _bump(height: int, width: int) -> Tensor:
    """Rings around the middle, of norm 1: the sum of 1/k² from the ring's number on, outwards."""
    rings = max(height, width) // 2 + 1
    steps = 1 / torch.arange(1, rings + 1, dtype=torch.float64).square()
    values = steps.flip(0).cumsum(0).flip(0)
    row, column = (torch.arange(n) - n // 2 for n in (height, width))
    found = values[torch.maximum(row.abs()[:, None], column.abs()[None])]
    return found / found.norm().clamp(min=SMALL)


def _placed(tile: Tensor, lying: Tensor, corner: tuple[Tensor, Tensor], like: Tensor) -> Tensor:
    """``(n, 1, h, w)``: the tile at these corners, and its edge repeated outside of it."""
    last = len(tile) - 1
    row, column = (part.clamp(0, last) for part in _offsets(corner, like))
    return torch.where(lying.view(-1, 1, 1, 1), tile[column, row], tile[row, column])


# ---- both --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moves:
    """Proposals of the attack for one norm; what is drawn is uniform in [0, 1).

    Attributes:
        drawn: ``(channels, width)`` -> the shape drawn for the first, the size for each later one.
        first: ``(ball, (n, *shape))`` -> inputs.
        next: ``(ball, best, (n, count), side of the square)`` -> inputs.
    """

    drawn: Callable[[int, int], tuple[tuple[int, ...], int]]
    first: Callable[[NormBall, Tensor], Tensor]
    next: Callable[[NormBall, Tensor, Tensor, int], Tensor]


MOVES = {
    "linf": Moves(
        lambda channels, width: ((channels, 1, width), 2 + channels), _stripes, _recolour
    ),
    "l2": Moves(lambda channels, width: ((1 + channels, GRID, GRID), 5 + channels), _bumps, _move),
}


def _sign(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0).to(uniform.dtype)


def _corner(place: Tensor, wide: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Top-left corner ``(n, 1, 1, 1)`` of a square at a uniformly drawn position ``(n, 2)``."""
    free = [size - wide + 1 for size in like.shape[2:]]
    top, left = ((place[:, i] * free[i]).long().view(-1, 1, 1, 1) for i in (0, 1))
    return top, left


def _offsets(corner: tuple[Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal offset ``(n, 1, h, w)`` of every pixel from a corner."""
    height, width = like.shape[2:]
    row = torch.arange(height, device=like.device).view(-1, 1).expand(height, width)
    column = torch.arange(width, device=like.device).expand(height, width)
    return row - corner[0], column - corner[1]


def _inside(top: Tensor, left: Tensor, wide: int, like: Tensor) -> Tensor:
    """Mask ``(n, 1, h, w)`` of a square."""
    row, column = _offsets((top, left), like)
    return (row >= 0) & (row < wide) & (column >= 0) & (column < wide)
