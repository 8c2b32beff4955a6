"""Pooling: one vector for an example's sequence of states."""

from __future__ import annotations

import torch
from torch import Tensor

POOLINGS = ("mean", "first", "last", "max", "mean_sqrt", "position_weighted")
"""Ways to pool, see `pooled`."""


def pooled(features: Tensor, mask: Tensor | None, how: str = "mean") -> Tensor:
    """One vector per example, ``(B, H)``.

    Args:
        features: ``(B, T, H)``, a feature map ``(B, C, h, w)``, or ``(B, H)``, which is returned.
        mask: ``(B, T)``, true for real positions; None: all are.
        how: ``mean``, ``first``, ``last`` or ``max`` of the real positions; ``mean_sqrt``: their
            sum divided by the square root of their number; ``position_weighted``: their mean with
            weights 1, 2, 3, …, from the first real position on (SGPT, Muennighoff 2022, arXiv
            2202.08904).

    Raises:
        ValueError: another way to pool.
    """
    if how not in POOLINGS:
        raise ValueError(f"Expected a pooling of {list(POOLINGS)}, got {how!r}.")
    if features.dim() == 2:
        return features
    states = as_states(features)
    if mask is None:
        if how == "mean":
            return states.mean(1)
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    mask = mask.bool()
    if how in ("first", "last"):
        index = _first(mask) if how == "first" else mask.shape[1] - 1 - _first(mask.flip(1))
        return states[torch.arange(len(states), device=states.device), index]
    if how == "max":
        return states.masked_fill(~mask[..., None], -torch.inf).amax(1)
    weights = mask.to(states.dtype)
    if how == "position_weighted":
        places = torch.arange(1, mask.shape[1] + 1, device=mask.device) - _first(mask)[:, None]
        weights = weights * places.to(states.dtype)
        states = states * weights[..., None]
    total = states.masked_fill(~mask[..., None], 0.0).sum(1)
    count = (weights if how == "position_weighted" else mask).sum(1).clamp(min=1)
    count = count[:, None].to(states.dtype)
    return total / (count.sqrt() if how == "mean_sqrt" else count)


def as_states(features: Tensor) -> Tensor:
    """``(B, T, H)``: a feature map ``(B, C, h, w)`` becomes a sequence of positions."""
    return features.flatten(2).transpose(1, 2) if features.dim() == 4 else features


def _first(mask: Tensor) -> Tensor:
    """Index of the first true entry of each row, 0 where there is none."""
    return mask.to(torch.int8).argmax(1)
