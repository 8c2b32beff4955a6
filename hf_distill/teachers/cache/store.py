"""Examples by their key, from the shards of a cache, without reading them into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features

from hf_distill.teachers.cache.arrow import KEY, KEY_BYTES, key_bytes
from hf_distill.teachers.cache.checked_json import StrPath, bindings, read_manifest
from hf_distill.teachers.cache.records import ShardRecords, arrow_path
from hf_distill.teachers.cache.shards import Row, open_shard, schema_of

Column = Callable[[int], Any]


class MissingExample(ValueError):  # noqa: N818
    """Error for examples that are not in a cache."""


class ExampleStore:
    """The examples of a cache, read-only and memory-mapped: 24 bytes of memory per example.

    Any number of processes may open the same cache, also while a writer adds shards to it, and a
    store may be used in forked or spawned data loader workers.

    Args:
        directory: The cache.
        verify: Compare the checksum of every shard: each is read once.
        partial: Accept missing shards.
        features: The columns that each shard must have; None: any that `read_batches` allows.

    Raises:
        ValueError: not a cache, one of another format, unfinished, damaged, or with shards of
            another one.
    """

    def __init__(
        self,
        directory: StrPath,
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
        manifest = read_manifest(self.directory)
        shards = ShardRecords(self.directory, manifest)
        if self.manifest and bindings(manifest) != bindings(self.manifest):
            raise ValueError(
                f"Expected the cache {self.directory} as it was opened, got another one that was "
                "written there since. Open it anew, and write other caches to folders of their own."
            )
        shards.refuse_foreign()
        new = sorted(shards.finished() - self._opened)
        if self._verify:
            shards.verify(new if self._opened else None)
        self._check_complete(manifest.get("shards"), self._opened.union(new))
        batches, sizes = list(self._batches), list(self._sizes)
        for index in new:
            record: Any = shards.known[index]
            found = open_shard(self.directory, index, record, self._schema)
            batches += [_Batch(index, batch) for batch in found]
            sizes.append(record["bytes"])
        self.manifest, self._batches, self._sizes = manifest, batches, sizes
        self._opened.update(new)
        keys = [_array(batch.keys) for batch in batches]
        self._starts = np.cumsum([0, *map(len, keys)])
        whole = np.concatenate([_array(b""), *keys])
        self._rows = np.argsort(whole, kind="stable")
        self._keys = whole[self._rows]

    def _check_complete(self, expected: int | None, there: set[int]) -> None:
        missing = [] if self.partial else [i for i in range(expected or 0) if i not in there]
        if expected is not None and missing:
            done = expected - len(missing)
            raise ValueError(
                f"Expected {expected} shards in the cache {self.directory}, {done} are finished "
                f"({arrow_path('', missing[0]).name} is the first that is not). Run the command "
                "that wrote it again: it goes on from there."
            )

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
        """The examples of these keys: views of the file, read-only and not copied. MissingExample
        for unknown keys."""
        rows = self._find(keys)
        if (rows < 0).any():
            missing = self.missing(keys)
            raise MissingExample(
                f"Expected {len(keys)} example(s) in the cache {self.directory}, {len(missing)} of "
                f"them are missing; the first has the key {missing[0].hex()}. Write the cache with "
                "the same data, preprocessing and teacher inputs as in training."
            )
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
        wanted = _array(b"".join(keys))
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._rows) - 1)
        return np.where(self._keys[at] == wanted, self._rows[at], -1)

    def __reduce__(self) -> tuple[Any, ...]:
        return ExampleStore, (self.directory, False, True, self.features)


class _Batch:
    """One Arrow record batch: its keys and how to read a row of each other column."""

    def __init__(self, shard: int, batch: pa.RecordBatch) -> None:
        self.shard = shard
        arrays = zip(batch.schema.names, batch.columns, strict=True)
        self.columns = {name: _column(array) for name, array in arrays if name != KEY}
        self.keys = key_bytes(batch)


def _column(array: pa.Array) -> Column:
    if not pa.types.is_list(array.type):
        numbers = memoryview(array.to_numpy())
        return lambda i: numbers[i]
    bounds, flat = memoryview(array.offsets.to_numpy()), array.values.to_numpy()
    return lambda i: flat[bounds[i] : bounds[i + 1]]


def _array(keys: bytes | memoryview) -> np.ndarray:
    return np.frombuffer(keys, f"S{KEY_BYTES}")
