"""Numbers as the columns of an Arrow table: floating types, scaled integers, class ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import List, Value
from torch import Tensor

from hf_distill.teachers.cache.shards import Row

STORED = {"float32": "float32", "float16": "float16", "bfloat16": "int16", "int8": "int8"}
"""Dtypes and their Arrow types; bfloat16, which Arrow lacks, is stored as its bits."""
MASKED = -128
"""The int8 code of -inf; numbers have -127 to 127."""
SHORT = 2**16
"""Largest number of classes with ids of 2 bytes; above, 3 bytes."""
MOST = 2**24
"""Largest number of classes with ids of 3 bytes."""


def check_dtype(dtype: str, known: Sequence[str] = tuple(STORED)) -> None:
    """Raise ValueError for a type that is not kept."""
    if dtype not in known:
        raise ValueError(f"Unknown dtype {dtype!r}; known are {', '.join(known)}.")


def check_count(name: str, value: Any, most: int | None = None) -> None:
    """Raise ValueError unless the value is a whole number from 1 on."""
    if type(value) is not int or value < 1 or (most is not None and value > most):
        limit = "" if most is None else f" and at most {most}"
        raise ValueError(f"Expected {name} to be an integer of at least 1{limit}, got {value!r}.")


def check_logits(logits: Tensor, width: int | None) -> None:
    """Raise ValueError unless the logits are ``(n, width)``."""
    fits = logits.dim() == 2 and logits.shape[-1] >= 1 and width in (None, logits.shape[-1])
    if not fits or not logits.is_floating_point():
        wanted = "any number of" if width is None else width
        raise ValueError(
            f"Expected floating-point logits (items, classes) with {wanted} classes, got "
            f"{logits.dtype} of shape {tuple(logits.shape)}."
        )


def number_columns(name: str, dtype: str) -> dict[str, Any]:
    """The columns of a tensor of numbers: its values, and for int8 the scale of each line."""
    columns = {name: List(Value(STORED[dtype]))}
    return columns | ({f"{name}.scale": List(Value("float32"))} if dtype == "int8" else {})


def pack(name: str, dtype: str, tensor: Tensor) -> dict[str, np.ndarray]:
    """The columns of a tensor ``(..., C)`` of numbers; ValueError for NaN, +inf or what the type
    cannot hold.

    Relative error at most 2^-11 for float16 (from 6e-5 on; below, 3e-8 absolute) and 2^-8 for
    bfloat16; for int8 at most 1/254 of the largest magnitude of the line (the last dimension). -inf
    stays -inf in every type.
    """
    tensor = tensor.detach()
    if dtype == "int8":
        return _pack_int8(name, tensor)
    stored = tensor.to(getattr(torch, dtype), copy=True).contiguous()  # one scale per row
    _check_held(name, dtype, tensor, stored)
    flat = (stored.view(torch.int16) if dtype == "bfloat16" else stored).cpu().reshape(-1)
    return {name: flat.numpy()}


def _pack_int8(name: str, tensor: Tensor) -> dict[str, np.ndarray]:
    values = tensor.float()
    masked = None if _check_held(name, "float32", tensor, values) else values.isinf()
    if masked is not None:
        values = values.masked_fill(masked, 0.0)
    lines = values.reshape(-1, tensor.shape[-1]) if tensor.numel() else values.reshape(0, 1)
    scale = lines.abs().amax(-1) / 127
    codes = (lines / scale.where(scale > 0, 1.0).unsqueeze(-1)).round_().clamp_(-127, 127)
    codes = codes.to(torch.int8)
    if masked is not None:
        codes.masked_fill_(masked.reshape(codes.shape), MASKED)
    return {name: codes.reshape(-1).cpu().numpy(), f"{name}.scale": scale.cpu().numpy()}


def _check_held(name: str, dtype: str, tensor: Tensor, stored: Tensor) -> bool:
    """True if all is finite, false if there is also -inf; see `pack` for what raises."""
    if not tensor.numel():
        return True
    bounds = torch.stack(tensor.aminmax()).abs().double()  # NaN if there is one
    if bool((bounds <= torch.finfo(stored.dtype).max).all()):
        return True
    held = stored.isfinite() | (tensor == -torch.inf)
    if not bool(held.all()):
        value = tensor[~held].flatten()[0].item()
        broken = value != value or value == torch.inf
        remedy = f"{dtype} cannot hold it: keep bfloat16 or float32"
        raise ValueError(
            f"Expected finite numbers (or -inf, for what is masked) in {name}, got {value} in "
            f"{int((~held).sum())} of {tensor.numel()} places. "
            f"{'The model is broken on this example' if broken else remedy}."
        )
    return bool(stored.isfinite().all())


def unpack(name: str, dtype: str, rows: Sequence[Row]) -> Tensor:
    """Concatenated numbers of several examples: flat, float32. ValueError for what `pack` did not
    write."""
    values = torch.from_numpy(joined(rows, name))
    if dtype == "bfloat16":
        return check_read(name, values.view(torch.bfloat16).float())
    if dtype != "int8":
        return check_read(name, values.float())
    lines = [len(row[f"{name}.scale"]) for row in rows]
    widths = []
    for row, n in zip(rows, lines, strict=True):
        if len(row[name]) % n if n else len(row[name]):
            raise ValueError(f"Expected a scale for each line of {name}, got {n}.")
        widths.append(len(row[name]) // max(n, 1))
    scales = check_read(f"{name}.scale", torch.from_numpy(joined(rows, f"{name}.scale")))
    if bool((scales < 0).any()):
        raise ValueError(f"Expected scales of {name} from 0 on, got {scales.min().item()}.")
    scale = torch.from_numpy(np.repeat(scales.numpy(), np.repeat(widths, lines)))
    return (values * scale).masked_fill_(values == MASKED, -torch.inf)


def check_read(name: str, values: Tensor) -> Tensor:
    """Return the values, or raise ValueError for NaN or +inf."""
    if values.numel() and not values.amax().item() < torch.inf:  # NaN if there is one
        count = int((~(values < torch.inf)).sum())
        raise ValueError(f"Expected no NaN or +inf in {name}, got {count} of {values.numel()}.")
    return values


def split_evenly(name: str, row: Row, width: int) -> int:
    """Number of items of ``width`` numbers in a column, or ValueError for a remainder."""
    length = len(row[name])
    if width < 1 or length % width:
        raise ValueError(f"Expected items of {width} numbers in {name}, got {length} numbers.")
    return length // width


def id_columns(width: int) -> dict[str, Any]:
    """The columns of class ids: the lower 2 bytes and, where there are more classes, the third."""
    columns = {"ids": List(Value("uint16"))}
    return columns | ({"ids_high": List(Value("uint8"))} if width > SHORT else {})


def pack_ids(ids: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """The columns of class ids below `width`."""
    columns: dict[str, np.ndarray] = {"ids": (ids & 0xFFFF).astype(np.uint16)}
    return columns | ({"ids_high": (ids >> 16).astype(np.uint8)} if width > SHORT else {})


def unpack_ids(rows: Sequence[Row], width: int) -> np.ndarray:
    """Concatenated class ids of several examples: flat, int64. ValueError for ids of no class, or
    two columns of other lengths."""
    ids = joined(rows, "ids").astype(np.int64)
    if width > SHORT:
        high = joined(rows, "ids_high").astype(np.int64)
        if any(len(row["ids"]) != len(row["ids_high"]) for row in rows):
            raise ValueError("Expected as many numbers in ids_high as in ids.")
        ids |= high << 16
    if len(ids) and int(ids.max()) >= width:
        raise ValueError(f"Expected ids below {width}, got {int(ids.max())}.")
    return ids


def joined(rows: Sequence[Row], name: str) -> np.ndarray:
    """Concatenated column of several examples, as a writable copy."""
    return np.concatenate([row[name] for row in rows])
