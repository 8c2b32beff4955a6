"""Definition of a perturbation, and the generator of each value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import xxhash

SEVERITIES = (1, 2, 3, 4, 5)
Level = TypeVar("Level")


@dataclass(frozen=True)
class Perturbation:
    """A change to an input at severities 1 (slight) to 5 (strong).

    Attributes:
        name: ``"keyboard_typos"``; unique over all modalities.
        modality: ``"text"``, ``"image"``, ``"audio"`` or ``"tabular"``.
        apply: ``(value, severity, generator) -> value`` of the same kind. The value that came is
            not changed, and random numbers are drawn from the generator only.
        family: What rows of a table are grouped by: ``"noise"``, ``"blur"``, ``"typos"`` ...
    """

    name: str
    modality: str
    apply: Callable[[Any, int, np.random.Generator], Any]
    family: str


def at(severity: int, levels: Sequence[Level]) -> Level:
    """The constant of a severity, out of the five.

    Raises:
        ValueError: not a whole number from 1 to 5.

    >>> at(2, (0.08, 0.12, 0.18, 0.26, 0.38))
    0.12
    """
    if severity not in SEVERITIES:
        raise ValueError(
            f"Expected a severity from 1 to 5, got {severity!r}. The clean value is the value "
            "itself: there is no severity 0."
        )
    return levels[int(severity) - 1]


def generator_for(value: Any, name: str, severity: int, seed: int) -> np.random.Generator:
    """A generator that depends on (seed, name, severity, content of the value) and nothing else.

    The content is a text's characters, an array's type, shape and values, a picture's pixels, a
    sound's array and rate. numpy may change the drawn numbers in a new release (NEP 19), so compare
    models within one version.

    Raises:
        ValueError: a value that is none of these.
    """
    digest = xxhash.xxh3_128(f"{int(seed)}:{name}:{int(severity)}:".encode())
    _add(digest, value)
    return np.random.default_rng(digest.intdigest())


def plain(value: Any) -> Any:
    """Decoded audio of `datasets` 4 as a dict; other values unchanged."""
    if hasattr(value, "get_all_samples"):
        return {key: value[key] for key in ("array", "sampling_rate")}
    return value


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, str):
        digest.update(value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, Mapping):  # a sound; its path does not count
        for key in ("array", "sampling_rate"):
            _add(digest, value.get(key, 0))
    else:
        array = np.asarray(value)
        if array.dtype == object:
            raise ValueError(
                f"Expected a text, a picture, a sound as a dict, an array or a list of numbers or "
                f"texts, got {type(value).__name__}: {str(value)[:80]}. Take the column's values."
            )
        digest.update(f"{array.dtype.kind}{array.dtype.itemsize}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
