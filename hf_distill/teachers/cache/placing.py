"""Placement of single examples' tensors within a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_distill.models.signals import BatchItems, Signal
from hf_distill.teachers.cache.keys import ExampleSlice


class Layers(tuple[Any, ...]):
    """The stored layers of one group."""

    def __new__(cls, layers: Iterable[Tensor | None], name: str) -> Layers:
        made = super().__new__(cls, layers)
        made.name = name
        return made

    name: str

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if found is None:
            kept = [i for i, layer in enumerate(tuple.__iter__(self)) if layer is not None]
            raise ValueError(
                f"Expected layer {index} of {self.name}, got a cache that keeps {kept} of "
                f"{len(self)}. Align one of these, or write the cache with this layer."
            )
        return found

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def named_states(signal: Signal) -> Iterator[tuple[str, Tensor]]:
    """Hidden states and attention maps by their stored names."""
    for prefix, groups in (("hidden", signal.hidden_states), ("attention", signal.attentions)):
        for group, layers in groups.items():
            for index, layer in enumerate(layers):
                yield f"{prefix}.{group}.{index}", layer


def ranged(name: str, tensor: Tensor, piece: ExampleSlice) -> bool:
    """True if a tensor has positions, which padding may follow."""
    group = name.split(".")[1]
    return group in piece.ranges and tensor.dim() >= 3


def part_of(name: str, tensor: Tensor, piece: ExampleSlice) -> Tensor:
    """One example's share of a batch's hidden states ``(B, T, H)`` or maps ``(B, heads, T, T)``."""
    own = tensor[piece.row]
    if not ranged(name, tensor, piece):
        return own
    at = slice(*piece.ranges[name.split(".")[1]])
    return own[:, at, at] if name.startswith("attention.") else own[at]


def padded(
    name: str, parts: Sequence[Tensor], found: Sequence[ExampleSlice], items: BatchItems
) -> Tensor:
    """Arrange the examples' parts in the shape of the batch, 0 elsewhere; ValueError for a part
    that does not have the positions of its example."""
    group, rows = name.split(".")[1], len(items.masks["samples"])
    attention = name.startswith("attention.")
    first = parts[0]
    ranged = group in items.masks and found[0].ranges.get(group) is not None
    ranged = ranged and first.dim() == (3 if attention else 2)
    if not ranged:
        out = first.new_zeros((rows, *first.shape))
        for part, piece in zip(parts, found, strict=True):
            _put(name, out[piece.row], part)
        return out
    length = items.masks[group].shape[-1]
    sizes = (first.shape[0], length, length) if attention else (length, *first.shape[1:])
    out = first.new_zeros((rows, *sizes))
    for part, piece in zip(parts, found, strict=True):
        at = slice(*piece.ranges[group])
        _put(name, out[piece.row, :, at, at] if attention else out[piece.row, at], part)
    return out


def _put(name: str, place: Tensor, part: Tensor) -> None:
    if part.shape != place.shape:
        raise ValueError(f"Expected {name} of shape {[*place.shape]}, got {[*part.shape]}.")
    place.copy_(part)


def nothing_of(name: str, shape: Sequence[int | None], items: BatchItems) -> Tensor:
    """Zeros in the shape of the batch, if none of its examples is counted."""
    rows = items.masks["samples"]
    group = items.masks.get(name.split(".")[1])
    length = 0 if group is None else group.shape[-1]
    sizes = [length if size is None else size for size in shape]
    return torch.zeros(len(rows), *sizes, device=rows.device)


def cut(mask: np.ndarray, piece: ExampleSlice) -> np.ndarray:
    """The items of a piece within its row."""
    if piece.items is None:
        return mask
    own = np.zeros_like(mask)
    own[slice(*piece.items)] = mask[slice(*piece.items)]
    return own
