"""Reading the first example of a stream without consuming it."""

import itertools
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from hf_distill.data.random_states import same_randomness

logger = logging.getLogger(__name__)

COMPARED = 2
"""Number of examples of each reading that are compared; a single one may equal the next."""


class Replayed(IterableDataset[Any]):
    """A stream that can be read only once, with the examples ``taken`` from it put in front."""

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
    """The same for a stream with a length."""

    def __len__(self) -> int:
        return len(self._stream)


def first_of(stream: Any) -> tuple[Any, Any]:
    """The first example of a stream, and the stream to use in its place.

    That is the stream itself, if a second reading in the same random state starts anew, and else
    one with the examples that were taken in front. ValueError if it is empty.
    """
    readings = []
    for _ in range(2):
        with same_randomness():
            readings.append(list(itertools.islice(iter(stream), COMPARED)))
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


def first_row(dataset: Any) -> tuple[Any, Any]:
    """`first_of` for a data set of `datasets`, which keeps its type; None if it is empty."""
    if isinstance(dataset, datasets.Dataset):
        return (dataset[0] if len(dataset) else None), dataset
    try:
        example, stream = first_of(dataset)
    except ValueError:
        return None, dataset
    if stream is dataset:
        return example, dataset
    make: Any = datasets.IterableDataset.from_generator
    return example, make(partial(iter, stream), features=dataset.features)


def columns_of(dataset: Any) -> tuple[list[str], Any]:
    """Columns of a data set of `datasets`, and the data set to use in its place; see `first_of`."""
    if dataset.column_names is not None:
        return dataset.column_names, dataset
    row, dataset = first_row(dataset)
    return list(row or ()), dataset


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, torch.Tensor | np.ndarray):
        return one.shape == other.shape and bool(((one == other) | (one != one)).all())
    return bool(one == other) or (one != one and other != other)
