"""Examples by their key, from the shards of a cache, without reading them into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features

from hf_distill.teachers.cache.arrow import KEY, KEY_BYTES, key_bytes
from hf_distill.teachers.cache.checked_json import bindings, read_manifest
from hf_distill.teachers.cache.records import arrow_path, finished, records, refuse_foreign, verify
from hf_distill.teachers.cache.shards import Row, open_shard, schema_of

Column = Callable[[int], Any]


class MissingExample(ValueError):  # noqa: N818
    """Error for examples that are not in a cache."""


class ExampleStore:
    """The examples of a cache, read-only and memory-mapped.

    Any number of processes may open the same cache, also while a writer adds shards to it, and a
    store may be used in forked or spawned data loader workers. It takes 24 bytes of memory per
    example.

    Args:
        directory: The cache.
        verify: Compare the checksum of every shard: each is read once.
        partial: Accept missing shards.
        features: The columns that each shard must have; None: any that `read_batches` allows.

    Attributes:
        manifest: The manifest of the cache.

    Raises:
        ValueError: not a cache, one of another format, or an unfinished one.
        ForeignShardsError: shards that were written for another cache.
        DamagedCacheError: a shard differs from what was written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        verify: bool = True,
        partial: bool = False,
        features: Features | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.partial, self.features = partial, features
        self._schema = None if features is None else schema_of(features)
        self._verify = verify
        self.manifest: dict[str, Any] = {}
        self._opened: set[int] = set()
        self._batches: list[_Batch] = []
        self._sizes: list[int] = []
        self.refresh()

    def refresh(self) -> None:
        """Open shards that were finished since; the errors are those of the constructor."""
        manifest, known = read_manifest(self.directory), records(self.directory)
        if self.manifest and bindings(manifest) != bindings(self.manifest):
            raise ValueError(
                f"Expected the cache {self.directory} as it was opened, got another one that was "
                "written there since. Open it anew, and write other caches to folders of their own."
            )
        refuse_foreign(self.directory, manifest, known)
        new = sorted(finished(self.directory, manifest, known) - self._opened)
        if self._verify:
            verify(self.directory, new if self._opened else None, manifest, known)
        self._check_complete(manifest.get("shards"), self._opened.union(new))
        batches, sizes = list(self._batches), list(self._sizes)
        for index in new:
            record: Any = known[index]
            found = open_shard(self.directory, index, record, self._schema)
            batches += [_Batch(index, batch) for batch in found]
            sizes.append(record["bytes"])
        self.manifest, self._batches, self._sizes = manifest, batches, sizes
        self._opened.update(new)
        self._build_index()

    def _check_complete(self, expected: int | None, there: set[int]) -> None:
        if expected is None or self.partial:
            return
        done = sum(index < expected for index in there)
        if done < expected:
            first = next(i for i in range(expected) if i not in there)
            raise ValueError(
                f"Expected {expected} shards in the cache {self.directory}, {done} are finished "
                f"({arrow_path('', first).name} is the first that is not). Run the command that "
                "wrote it again: it goes on from there."
            )

    def _build_index(self) -> None:
        lengths = [len(batch) for batch in self._batches]
        self._starts = np.cumsum([0, *lengths])
        words = [_halves(batch.keys) for batch in self._batches]
        halves = np.concatenate([_halves(b""), *words])
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        self._high, self._low = halves[order, 0], halves[order, 1]
        self._rows = order.astype(np.int64)

    @property
    def nbytes(self) -> int:
        """The bytes of its shards on disk."""
        return sum(self._sizes)

    @property
    def shards(self) -> tuple[int, ...]:
        """Open shards."""
        return tuple(sorted(self._opened))

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """The row ``(len(keys),)`` int64 of each key, for `take`.

        Raises:
            MissingExample: unknown keys.
        """
        rows = self._find(keys)
        if (rows < 0).any():
            missing = self.missing(keys)
            raise MissingExample(
                f"Expected {len(keys)} example(s) in the cache {self.directory}, {len(missing)} of "
                f"them are missing; the first has the key {missing[0].hex()}. Write the cache with "
                "the same data, preprocessing and teacher inputs as in training."
            )
        return rows

    def shards_of(self, keys: Sequence[bytes]) -> list[int]:
        """Shards of the examples with these keys, in order; unknown keys are skipped."""
        rows = self._find(keys)
        batches = np.searchsorted(self._starts, rows[rows >= 0], side="right") - 1
        return sorted({self._batches[b].shard for b in batches.tolist()})

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Keys that are not in the cache, in order."""
        rows = self._find(keys).tolist()
        return [key for key, row in zip(keys, rows, strict=True) if row < 0]

    def rows(self, keys: Sequence[bytes]) -> list[Row]:
        """The examples of these keys: views of the file, read-only and not copied.

        Raises:
            MissingExample: unknown keys.
        """
        return self.take(self.find(keys))

    def take(self, rows: np.ndarray) -> list[Row]:
        """The examples of these rows, see `find`."""
        batches = np.searchsorted(self._starts, rows, side="right") - 1
        within = rows - self._starts[batches]
        return [
            {name: column(i) for name, column in self._batches[b].columns.items()}
            for b, i in zip(batches.tolist(), within.tolist(), strict=True)
        ]

    def _find(self, keys: Sequence[bytes]) -> np.ndarray:
        if any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"Expected keys of {KEY_BYTES} bytes.")
        if not len(self._rows):
            return np.full(len(keys), -1, np.int64)
        halves = _halves(b"".join(keys))
        high, low = halves[:, 0], halves[:, 1]
        at = np.minimum(np.searchsorted(self._high, high), len(self._rows) - 1)
        same = self._high[at] == high
        found = np.where(same & (self._low[at] == low), self._rows[at], -1)
        for i in np.flatnonzero(same & (found < 0)):  # only the first halves agree
            stop = np.searchsorted(self._high, high[i], side="right")
            place = at[i] + np.searchsorted(self._low[at[i] : stop], low[i])
            if place < stop and self._low[place] == low[i]:
                found[i] = self._rows[place]
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return ExampleStore, (self.directory, False, True, self.features)


class _Batch:
    """One Arrow record batch: its keys and how to read a row of each other column."""

    def __init__(self, shard: int, batch: pa.RecordBatch) -> None:
        self.shard, self.length = shard, len(batch)
        self.columns: dict[str, Column] = {}
        for name, array in zip(batch.schema.names, batch.columns, strict=True):
            if name != KEY:
                self.columns[name] = _column(array)
        self.keys = key_bytes(batch)

    def __len__(self) -> int:
        return self.length


def _column(array: pa.Array) -> Column:
    if not pa.types.is_list(array.type):
        numbers = memoryview(array.to_numpy())
        return lambda i: numbers[i]
    bounds, flat = memoryview(array.offsets.to_numpy()), array.values.to_numpy()
    return lambda i: flat[bounds[i] : bounds[i + 1]]


def _halves(keys: bytes | memoryview) -> np.ndarray:
    """``(n, 2)`` uint64: the halves of keys, ordered as the keys are."""
    return np.frombuffer(keys, ">u8").astype(np.uint64).reshape(-1, 2)
