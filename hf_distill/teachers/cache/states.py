"""Format of hidden states and attention maps of one example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from datasets import Features, List, Value
from torch import Tensor

from hf_distill.teachers.cache.packing import Row, check_dtype, number_columns, pack, unpack

Shape = tuple[int | None, ...]
PREFIXES = ("hidden.", "attention.")
MOST_NUMBERS = 2**28
"""Largest number of elements of one example's tensor."""


@dataclass(frozen=True)
class States:
    """Named tensors: ``hidden.<group>.<layer>`` and ``attention.<group>.<layer>``.

    Attributes:
        dtype: ``float32``, ``float16``, ``bfloat16`` or ``int8`` (with a float32 scale for each
            line of the last dimension); errors: see `packing.pack`.
        shapes: The shape of each tensor for one example, e.g. ``(None, H)``, ``(H,)``,
            ``(C, h, w)``, ``(heads, None, None)``. None where it varies; where one dimension
            varies it follows from the others, where several do, the shape is kept.

    Raises:
        ValueError: an unknown dtype; a name or shape that is none.
    """

    dtype: str = "float16"
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if not isinstance(self.shapes, Mapping):
            raise ValueError(f"Expected shapes as {{name: shape}}, got {self.shapes!r}.")
        for name, shape in self.shapes.items():
            if not str(name).startswith(PREFIXES) or str(name).count(".") < 2:
                raise ValueError(
                    f"Expected names hidden.<group>.<layer> or attention.<group>.<layer>, got "
                    f"{name!r}."
                )
            sizes = list(shape) if isinstance(shape, list | tuple) else []
            fits = sizes and all(n is None or _is_size(n) for n in sizes)
            if not fits or prod(n or 1 for n in sizes) > MOST_NUMBERS:
                raise ValueError(
                    f"Expected a shape of {name} with sizes of at least 1, or None where it "
                    f"varies, got {shape!r}."
                )
        shapes = {name: tuple(shape) for name, shape in self.shapes.items()}
        object.__setattr__(self, "shapes", shapes)

    def columns(self) -> Features:
        """Columns of each tensor: its values (flat), ``….scale`` for int8, ``….shape`` where
        needed."""
        found: dict[str, Any] = {}
        for name, shape in self.shapes.items():
            found |= number_columns(name, self.dtype)
            if shape.count(None) > 1:
                found[f"{name}.shape"] = List(Value("int32"))
        return Features(found)

    def encode(self, tensors: Mapping[str, Tensor], key: bytes = b"") -> dict[str, Any]:
        """The columns of one example's tensors, which must be those of `shapes`.

        Raises:
            ValueError: missing, additional or misshapen tensors; NaN, infinite or too large.
        """
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
            found |= pack(name, self.dtype, tensor)
            if shape.count(None) > 1:
                found[f"{name}.shape"] = np.array(tensor.shape, np.int32)
        return found

    def decode_batch(
        self, rows: Sequence[Row], names: Sequence[str] | None = None
    ) -> dict[str, list[Tensor]]:
        """Tensors of several examples by name (default: all), float32.

        The tensors of one name are views of one block.

        Raises:
            ValueError: rows that are not from `encode`.
        """
        found = {}
        for name in self.shapes if names is None else names:
            parts = unpack(name, self.dtype, rows).split([len(row[name]) for row in rows])
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

    def _shapes(self, name: str, rows: Sequence[Row]) -> list[tuple[int, ...]]:
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


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
