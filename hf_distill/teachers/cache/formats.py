"""Formats of the outputs of one example: all logits, most likely classes, samples, states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Features, Value
from torch import Tensor

from hf_distill.teachers.cache.packing import (
    MOST,
    Row,
    check_count,
    check_dtype,
    check_logits,
    number_columns,
    pack,
    split_evenly,
    unpack,
)
from hf_distill.teachers.cache.sparse import Sampled, SparseClasses, TopK
from hf_distill.teachers.cache.states import MOST_NUMBERS, States

__all__ = [
    "Dense",
    "Format",
    "Full",
    "Row",
    "Sampled",
    "SparseClasses",
    "States",
    "TopK",
    "from_json",
    "to_json",
]


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

    Raises:
        ValueError: an unknown dtype; a width below 1 or above `packing.MOST`.
    """

    dtype: str = "float32"
    width: int | None = None

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if self.width is not None:
            check_count("width", self.width, MOST)

    def columns(self) -> Features:
        """``logits`` (flat), ``logits.scale`` for int8, ``logits.width`` where it varies."""
        own = {"logits.width": Value("int32")} if self.width is None else {}
        return Features(number_columns("logits", self.dtype) | own)

    def encode(self, logits: Tensor, key: bytes = b"") -> dict[str, Any]:
        """The columns of one example's logits ``(n, C)``; n may be 0.

        Raises:
            ValueError: another shape; NaN, +inf or what the dtype cannot hold.
        """
        check_logits(logits, self.width)
        own = {"logits.width": logits.shape[-1]} if self.width is None else {}
        return pack("logits", self.dtype, logits) | own

    def decode_batch(self, rows: Sequence[Row]) -> Dense:
        """The logits of several examples; where C varies, -inf fills up to the largest.

        Raises:
            ValueError: rows that are not from `encode`.
        """
        flat = unpack("logits", self.dtype, rows)
        widths = [int(row["logits.width"]) if self.width is None else self.width for row in rows]
        sizes = [split_evenly("logits", row, w) for row, w in zip(rows, widths, strict=True)]
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


Format = Full | TopK | Sampled | States
KINDS: dict[str, type[Format]] = {
    "full": Full,
    "top_k": TopK,
    "sampled": Sampled,
    "states": States,
}


def to_json(spec: Format) -> dict[str, Any]:
    """The settings as plain JSON: ``{"kind": "sampled", "draws": 12, …}``."""
    kind = next(name for name, cls in KINDS.items() if type(spec) is cls)
    return {"kind": kind, **asdict(spec)}


def from_json(settings: Mapping[str, Any]) -> Format:
    """The format that `to_json` wrote, or a recipe: settings left out have their defaults.

    Raises:
        ValueError: an unknown kind or setting, a setting that is missing or of no use.
    """
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
