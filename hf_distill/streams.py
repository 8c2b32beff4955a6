"""A look at the first example of a stream that takes it away from nobody."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from hf_distill.checks import same_randomness

logger = logging.getLogger(__name__)


class Replayed(IterableDataset[Any]):
    """A stream that can be read only once, with what was taken from it in front of it again.

    Args:
        stream: What is left of it.
        taken: The examples that stood before that.
    """

    def __init__(self, stream: Any, taken: list[Any]):
        self._stream, self._taken = stream, taken

    def __iter__(self) -> Iterator[Any]:
        taken, self._taken = self._taken, []
        yield from taken
        yield from self._stream

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._stream, name)


class SizedReplayed(Replayed):
    """The same for a stream that knows its length."""

    def __len__(self) -> int:
        return len(self._stream)


def first_of(stream: Any) -> tuple[Any, Any]:
    """The first example of a stream, and the stream that is to be read from now on.

    That is the stream itself, if it starts anew when it is read again, and else one with the
    examples that were taken in front. To see that, a second reading is begun in the same random
    state.

    Raises:
        ValueError: the stream is empty.
    """
    readings = []
    for _ in range(2):
        with same_randomness():
            readings.append(_next(iter(stream)))
    taken, again = readings
    if not taken:
        raise ValueError(
            f"Expected a stream with examples, got an empty one ({type(stream).__name__}). Check "
            "its filters, and whether it has been read before."
        )
    if _same(taken, again):
        return taken[0], stream
    logger.warning(
        "Read a second time, the %s does not begin with the example that it began with: what was "
        "looked at is put in front of it again.",
        type(stream).__name__,
    )
    kind = SizedReplayed if has_length(stream) else Replayed
    return taken[0], kind(stream, [*taken, *again])


def _next(reading: Iterator[Any]) -> list[Any]:
    for example in reading:
        return [example]
    return []


def _same(one: Any, other: Any) -> bool:
    """Whether two examples hold the same."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, torch.Tensor | np.ndarray):
        return one.shape == other.shape and bool(((one == other) | (one != one)).all())
    return bool(one == other) or (one != one and other != other)
