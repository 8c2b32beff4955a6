"""Keys of examples: a hash of the content of their model inputs.

Padding and the labels themselves are excluded, but the choice of counted items is included: a cache
holds only these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from hf_distill.models.batches import Batch
from hf_distill.models.signals import BatchItems, Unit

UNITS = frozenset({"batches", "samples", "items", "labels"})
"""Units other than hidden-state groups."""
BESIDES = frozenset({"attention_mask", "decoder_attention_mask", "position_ids"})
"""Inputs that locate the content and are not part of it."""

Range = tuple[int, int]


@dataclass(frozen=True)
class ExampleSlice:
    """One example within a batch: a row, or a part of a packed row.

    Attributes:
        row: Its row.
        key: The hash of its content, 16 bytes.
        items: Range of its items in the row's item mask; None: the whole row.
        ranges: For each hidden-state group that has padding, its positions.
    """

    row: int
    key: bytes
    items: Range | None = None
    ranges: Mapping[Unit, Range] = field(default_factory=dict)


def example_slices(
    batch: Batch, items: BatchItems, inputs: Collection[str], axis: int = 0
) -> list[ExampleSlice]:
    """The counted examples of a collated batch, with their keys. ``inputs`` are the names of the
    teacher's inputs (other keys of the batch are ignored), ``axis`` is the dimension of the item
    mask that is the batch.
    """
    sides = _sides(batch)
    beside = BESIDES | {f"{side}attention_mask" for side in sides}
    arrays = {
        name: _canonical(value)
        for name, value in sorted(batch.items())
        if name in inputs and name not in beside and isinstance(value, Tensor) and value.dim() > 0
    }
    masks = {unit: mask.cpu().numpy() for unit, mask in items.masks.items()}
    for name, array in arrays.items():
        if len(array) != len(masks["samples"]):
            raise ValueError(
                f"Expected inputs with a row for each of {len(masks['samples'])} examples, got "
                f"{name} of shape {array.shape}. Which part of it belongs to which example is not "
                "known to a cache: use the live teacher."
            )
    counted: Any = np.moveaxis(masks["items"], axis, 0) if "items" in masks else None
    real = {side: _real(batch, masks, side) for side in sides}
    positions = batch.get("position_ids")
    positions = None if positions is None else np.atleast_2d(positions.cpu().numpy())
    found = []
    for row in np.flatnonzero(masks["samples"]).tolist():
        groups = {
            unit: mask[row]
            for unit, mask in masks.items()
            if unit not in UNITS and mask.ndim == 2 and len(mask) == len(masks["samples"])
        }
        whole = _Row(
            row,
            {name: array[row] for name, array in arrays.items()},
            {side: None if mask is None else mask[row] for side, mask in real.items()},
            groups,
            None if counted is None else counted[row],
        )
        where = None if positions is None else positions[min(row, len(positions) - 1)]
        found.extend(_slices(whole, where))
    return found


@dataclass(frozen=True)
class _Row:
    row: int
    parts: Mapping[str, np.ndarray]
    sides: Mapping[str, np.ndarray | None]
    groups: Mapping[Unit, np.ndarray]
    wanted: Any


def _slices(row: _Row, positions: Any) -> list[ExampleSlice]:
    ids: Any = row.parts.get("input_ids")
    known = positions is not None and ids is not None and row.wanted is not None
    if known and ids.ndim == 1 and positions.shape == ids.shape == row.wanted.shape:
        first, stop = _bounds(row.sides[""], len(ids))
        steps = np.flatnonzero(np.diff(positions[first:stop]) != 1) + first + 1
        if len(steps):
            edges = [first, *steps.tolist(), stop]
            return [_slice(row, {"": (a, b)}, (a, b)) for a, b in pairwise(edges)]
    return [_slice(row, {}, None)]


def _slice(row: _Row, cut: Mapping[str, Range], counted: Range | None) -> ExampleSlice:
    digest = xxhash.xxh3_128()
    for name, array in row.parts.items():
        side = next((s for s in row.sides if s and name.startswith(s)), "")
        mask = row.sides[side]
        digest.update(name.encode())
        if mask is None and array.ndim == 1 and side in cut:
            start, stop = cut[side]
            _update(digest, array[start:stop])
        elif mask is None or array.shape[: mask.ndim] != mask.shape:
            _update(digest, array)
        elif mask.ndim == 1:
            start, stop = cut.get(side) or _bounds(mask, len(array))
            _update(digest, array[start:stop])
            if not mask[start:stop].all():
                _update(digest, mask[start:stop])
        else:  # several choices, each padded by itself
            for choice, own in zip(array, mask, strict=True):
                start, stop = _bounds(own, len(choice))
                _update(digest, choice[start:stop])
    ranges = {unit: _bounds(mask, len(mask)) for unit, mask in row.groups.items()}
    if "hidden" in ranges and "" in cut:
        ranges["hidden"] = cut[""]
    if row.wanted is not None:
        origin = ranges["hidden"][0] if "hidden" in ranges else 0
        _update(digest, _pattern(row.wanted, counted, origin))
    return ExampleSlice(row.row, digest.digest(), counted, ranges)


def _pattern(wanted: np.ndarray, counted: Range | None, origin: int) -> np.ndarray:
    """Pattern of counted items, independent of the padding around them."""
    if wanted.ndim != 1:
        return np.concatenate([np.array(wanted.shape, np.int64), np.packbits(wanted)])
    start, stop = (0, len(wanted)) if counted is None else counted
    return np.flatnonzero(wanted[start:stop]).astype(np.int64) + (start - origin)


def _sides(batch: Batch) -> tuple[str, ...]:
    """Prefixes of inputs that are padded by themselves: those of a decoder, of candidates, …"""
    end = "attention_mask"
    named = [name.removesuffix(end) for name in batch if name.endswith(end)]
    more = [side for side in named if side and f"{side}input_ids" in batch]
    return ("", *dict.fromkeys(["decoder_", *more]))


def _real(batch: Batch, masks: Mapping[Unit, np.ndarray], side: str) -> np.ndarray | None:
    """Mask of the content of the inputs of one side."""
    mask = batch.get(f"{side}attention_mask")
    if isinstance(mask, Tensor) and mask.dim() > 1:
        return mask.bool().cpu().numpy()
    if side:
        return masks.get("decoder") if side == "decoder_" else None
    ids, mask = batch.get("input_ids"), masks.get("hidden")  # knows the padding of packed rows
    return mask if mask is not None and ids is not None and ids.shape == mask.shape else None


def _bounds(mask: np.ndarray | None, length: int) -> Range:
    """The first true position, and the one after the last."""
    found = np.flatnonzero(mask) if mask is not None else range(length)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)


def _canonical(value: Tensor) -> np.ndarray:
    """The values as an array, equal for all integer types, and for all floating types."""
    value = value.detach().cpu()
    if value.is_floating_point():
        return value.to(torch.float64 if value.dtype == torch.float64 else torch.float32).numpy()
    return value.to(torch.int64).numpy()


def _update(digest: Any, array: np.ndarray) -> None:
    digest.update(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array).data)


def model_fingerprint(state: Mapping[str, Tensor]) -> str:
    """A hash of weights: names, shapes, types and bytes."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def text_fingerprint(parts: Sequence[str]) -> str:
    """A hash of texts, in their order."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()
