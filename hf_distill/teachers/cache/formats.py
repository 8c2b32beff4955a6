"""Formats of the outputs of one example: all logits, most likely classes, samples, states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Features, List, Value
from torch import Tensor

from hf_distill.teachers.cache import packing
from hf_distill.teachers.cache.sparse import Sampled, TopK

Shape = tuple[int | None, ...]
PREFIXES = ("hidden.", "attention.")
MOST_NUMBERS = 2**28
"""Largest number of elements of one example's tensor."""


class Dense(NamedTuple):
    """Concatenated logits ``(N, C)`` of several examples, and their numbers of items."""

    logits: Tensor
    sizes: list[int]


@dataclass(frozen=True)
class Full:
    """All logits.

    Attributes:
        dtype: ``float32`` (exact), ``float16``, ``bfloat16`` or ``int8`` (with a float32 scale for
            each item); errors: see `packing.pack`.
        width: The number of classes C; None: each example has its own, kept with it.
    """

    dtype: str = "float32"
    width: int | None = None

    def __post_init__(self) -> None:
        packing.check_dtype(self.dtype)
        if self.width is not None:
            packing.check_count("width", self.width, packing.MOST)

    def columns(self) -> Features:
        """``logits`` (flat), ``logits.scale`` for int8, ``logits.width`` where it varies."""
        own = {"logits.width": Value("int32")} if self.width is None else {}
        return Features(packing.number_columns("logits", self.dtype) | own)

    def encode(self, logits: Tensor, key: bytes = b"") -> dict[str, Any]:
        """The columns of one example's logits ``(n, C)``; n may be 0. ValueError for another shape,
        NaN, +inf or what the dtype cannot hold."""
        packing.check_logits(logits, self.width)
        own = {"logits.width": logits.shape[-1]} if self.width is None else {}
        return packing.pack("logits", self.dtype, logits) | own

    def decode_batch(self, rows: Sequence[packing.Row]) -> Dense:
        """The logits of several examples; where C varies, -inf fills up to the largest. ValueError
        for rows that are not from `encode`."""
        flat = packing.unpack("logits", self.dtype, rows)
        widths = [int(row["logits.width"]) if self.width is None else self.width for row in rows]
        sizes = [
            packing.split_evenly("logits", row, w) for row, w in zip(rows, widths, strict=True)
        ]
        if self.dtype == "int8" and sizes != [len(row["logits.scale"]) for row in rows]:
            raise ValueError("Expected a scale for each item of logits.")
        if len(set(widths)) == 1:
            return Dense(flat.view(-1, widths[0]), sizes)
        per_item = torch.tensor(np.repeat(widths, sizes))
        most = int(per_item.max()) if len(per_item) else 0
        if len(per_item) * most > MOST_NUMBERS:
            raise ValueError(
                f"Expected items of about one width, got {len(per_item)} up to {most}."
            )
        logits = flat.new_full((len(per_item), most), -torch.inf)
        logits[torch.arange(most) < per_item[:, None]] = flat
        return Dense(logits, sizes)


@dataclass(frozen=True)
class States:
    """Named tensors: ``hidden.<group>.<layer>`` and ``attention.<group>.<layer>``.

    Attributes:
        dtype: ``float32``, ``float16``, ``bfloat16`` or ``int8`` (with a float32 scale for each
            line of the last dimension); errors: see `packing.pack`.
        shapes: The shape of each tensor for one example, e.g. ``(None, H)``, ``(H,)``,
            ``(C, h, w)``, ``(heads, None, None)``. None where it varies; where one dimension
            varies it follows from the others, where several do, the shape is kept.
    """

    dtype: str = "float16"
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        packing.check_dtype(self.dtype)
        if not isinstance(self.shapes, Mapping):
            raise ValueError(f"Expected shapes as {{name: shape}}, got {self.shapes!r}.")
        for name, shape in self.shapes.items():
            if not str(name).startswith(PREFIXES) or str(name).count(".") < 2:
                raise ValueError(
                    f"Expected names hidden.<group>.<layer> or attention.<group>.<layer>, got "
                    f"{name!r}."
                )
            sizes = list(shape) if isinstance(shape, list | tuple) else []
            fits = sizes and all(n is None or (type(n) is int and n > 0) for n in sizes)
            if not fits or prod(n or 1 for n in sizes) > MOST_NUMBERS:
                raise ValueError(
                    f"Expected a shape of {name} with sizes of at least 1, or None where it "
                    f"varies, got {shape!r}."
                )
        shapes = {name: tuple(shape) for name, shape in self.shapes.items()}
        object.__setattr__(self, "shapes", shapes)

    def columns(self) -> Features:
        """Columns of each tensor: its values (flat), ``.scale`` for int8, ``.shape`` where
        needed."""
        found: dict[str, Any] = {}
        for name, shape in self.shapes.items():
            found |= packing.number_columns(name, self.dtype)
            if shape.count(None) > 1:
                found[f"{name}.shape"] = List(Value("int32"))
        return Features(found)

    def encode(self, tensors: Mapping[str, Tensor], key: bytes = b"") -> dict[str, Any]:
        """The columns of one example's tensors, which must be those of `shapes`; ValueError for
        others, for NaN, and for what is infinite or too large."""
        if set(tensors) != set(self.shapes):
            raise ValueError(f"Expected {sorted(self.shapes)}, got {sorted(tensors)}.")
        found: dict[str, Any] = {}
        for name, shape in self.shapes.items():
            tensor = tensors[name]
            pairs = zip(shape, tensor.shape, strict=False)
            if tensor.dim() != len(shape) or any(a not in (None, b) for a, b in pairs):
                raise ValueError(
                    f"Expected {name} of shape {shape} (None: any), got {tuple(tensor.shape)}."
                )
            found |= packing.pack(name, self.dtype, tensor)
            if shape.count(None) > 1:
                found[f"{name}.shape"] = np.array(tensor.shape, np.int32)
        return found

    def decode_batch(
        self, rows: Sequence[packing.Row], names: Sequence[str] | None = None
    ) -> dict[str, list[Tensor]]:
        """Tensors of several examples by name (default: all), float32: views of one block per name.
        ValueError for rows that are not from `encode`."""
        found = {}
        for name in self.shapes if names is None else names:
            parts = packing.unpack(name, self.dtype, rows).split([len(row[name]) for row in rows])
            shapes = self._shapes(name, rows)
            for row, sizes in zip(rows, shapes, strict=True):
                lines = prod(sizes[:-1]) if len(row[name]) else 0
                fits = prod(sizes) == len(row[name]) and min(sizes) >= 0
                if not fits or (self.dtype == "int8" and len(row[f"{name}.scale"]) != lines):
                    raise ValueError(
                        f"Expected {name} of shape {self.shapes[name]} (None: any), got "
                        f"{len(row[name])} numbers."
                    )
            found[name] = [p.view(shape) for p, shape in zip(parts, shapes, strict=True)]
        return found

    def _shapes(self, name: str, rows: Sequence[packing.Row]) -> list[tuple[int, ...]]:
        shape = self.shapes[name]
        if shape.count(None) > 1:
            found = [tuple(row[f"{name}.shape"].tolist()) for row in rows]
            for sizes in found:
                pairs = list(zip(shape, sizes, strict=False))
                if len(sizes) != len(shape) or any(a not in (None, b) for a, b in pairs):
                    raise ValueError(f"Expected {name} of shape {shape}, got {sizes}.")
            return found
        rest = prod(n for n in shape if n is not None)
        return [tuple(len(row[name]) // rest if n is None else n for n in shape) for row in rows]


Format = Full | TopK | Sampled | States
KINDS: Any = {"full": Full, "top_k": TopK, "sampled": Sampled, "states": States}


def to_json(spec: Format) -> dict[str, Any]:
    """The settings as plain JSON: ``{"kind": "sampled", "draws": 12, …}``."""
    kind = next(name for name, cls in KINDS.items() if type(spec) is cls)
    return {"kind": kind, **asdict(spec)}


def from_json(settings: Mapping[str, Any]) -> Format:
    """The format that `to_json` wrote, or a recipe: settings left out have their defaults.
    ValueError for an unknown kind or setting, or one that is missing."""
    named = isinstance(settings, Mapping) and isinstance(settings.get("kind"), str)
    if not named or settings["kind"] not in KINDS:
        raise ValueError(
            f"Expected {{kind: …}} with a kind of {', '.join(KINDS)}, got {settings!r}."
        )
    kind, given = settings["kind"], {k: v for k, v in settings.items() if k != "kind"}
    known = {f.name: f for f in fields(KINDS[kind])}
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"Unknown setting(s) {unknown} of {kind}; known are {', '.join(known)}.")
    needed = {n for n, f in known.items() if f.default is f.default_factory is MISSING}
    if missing := sorted(needed - set(given)):
        raise ValueError(f"Expected the setting(s) {missing} of {kind}; known are {list(known)}.")
    return KINDS[kind](**given)
