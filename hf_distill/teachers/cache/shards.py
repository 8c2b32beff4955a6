"""Shards of a cache: Arrow files that `datasets` reads, each with a record of its contents.

``data/shard-00000.arrow`` is written first, its record ``data/shard-00000.json`` last: a shard with
a valid record is complete, and one without is written again. The same rows give the same bytes. A
record also holds hashes of the parts of the manifest that the shard was written for: next to
another manifest the same file would be read as another teacher's outputs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Features, Value
from datasets.arrow_writer import ArrowWriter

from hf_distill.teachers.cache.arrow import KEY, KEY_BYTES, key_bytes, read_batches
from hf_distill.teachers.cache.checked_json import (
    alone_in,
    bindings,
    refuse_no_file,
    remove_partial,
    replacing,
    sync_folder,
    write_sealed,
)
from hf_distill.teachers.cache.records import (
    DATA,
    DamagedCacheError,
    Record,
    arrow_path,
    checksum,
    damaged,
    finished,
    record_path,
    records,
    refuse_foreign,
    verify,
)

__all__ = [
    "DamagedCacheError",
    "Row",
    "arrow_path",
    "checksum",
    "damaged",
    "finished",
    "open_shard",
    "read_keys",
    "record_path",
    "records",
    "refuse_foreign",
    "remove_stale",
    "schema_of",
    "usable",
    "verify",
    "write_shard",
]

Row = Mapping[str, Any]
"""One example: for each column a flat numpy array, bytes or a number."""

BATCH_BYTES = 2**24
"""Approximate bytes of one Arrow record batch, the unit of streaming."""
LARGEST = 2**31 - 1
"""Largest number of list elements in one Arrow record batch."""


def write_shard(
    directory: str | os.PathLike[str],
    index: int,
    rows: Iterable[Row],
    features: Features,
    manifest: Mapping[str, Any] = MappingProxyType({}),
) -> Record:
    """Write one shard and its record; a shard of this index is replaced.

    Args:
        directory: The cache.
        index: Index of the shard, from 0.
        rows: One mapping for each example, with its 16-byte ``key`` and exactly the columns of
            `features` besides; taken one after the other, a few MB are held.
        features: The columns: see `formats`.
        manifest: The cache's manifest as read: the shard is bound to its parts.

    Returns:
        The record.

    Raises:
        ValueError: rows that do not fit the features; a folder in place of a file.
        DiskFullError: no space is left; only finished shards remain.
    """
    features = _with_key(features)
    record, keys, count = record_path(directory, index), xxhash.xxh3_128(), 0
    refuse_no_file(record)
    with contextlib.ExitStack() as pair:
        with replacing(arrow_path(directory, index)) as file:
            hashed = _Hashed(file)
            writer = ArrowWriter(features=features, stream=pa.PythonFile(hashed, mode="w"))
            for group in _groups(rows, features):
                keys.update(b"".join(row[KEY] for row in group))
                count += len(group)
                writer.write_table(_table(group, features), writer_batch_size=max(1, len(group)))
            writer.finalize(close_stream=False)
            pair.enter_context(alone_in(record.parent))  # the record of an earlier writer
            if record.exists():  # a record must never accompany other data
                record.unlink()
                sync_folder(record.parent)
        values = {
            "rows": count,
            "bytes": hashed.size,
            "file": hashed.digest.hexdigest(),
            "keys": keys.hexdigest(),
            "of": bindings(manifest),
        }
        write_sealed(record, values)
    return values


def _with_key(features: Features) -> Features:
    columns = {name: value for name, value in features.items() if name != KEY}
    return Features({KEY: Value("binary"), **columns})


def schema_of(features: Features) -> pa.Schema:
    """Arrow schema of a shard's columns."""
    return _with_key(features).arrow_schema


class _Hashed:
    """A file that hashes what is written to it."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.digest = file, 0, xxhash.xxh3_128()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.file.write(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()

    def tell(self) -> int:
        return self.size

    def close(self) -> None:
        pass


def _groups(rows: Iterable[Row], features: Features) -> Iterator[list[Row]]:
    """The rows, about `BATCH_BYTES` at a time; one empty group if there are none."""
    group: list[Row] = []
    size = number = 0
    for number, row in enumerate(rows):
        _check_row(number, row, features)
        own = sum(_nbytes(value) for value in row.values())
        if group and size + own > BATCH_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += own
    yield group


def _nbytes(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else 8


def _check_row(i: int, row: Row, features: Features) -> None:
    if set(row) != set(features):
        raise ValueError(f"Expected the columns {sorted(features)} in row {i}, got {sorted(row)}.")
    key = row[KEY]
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise ValueError(f"Expected a key of {KEY_BYTES} bytes in row {i}, got {key!r}.")
    for name, feature in features.items():
        value = row[name]
        if isinstance(feature, Value):
            continue
        kind = np.dtype(feature.feature.dtype)
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype != kind:
            got = getattr(value, "dtype", type(value).__name__), getattr(value, "shape", "")
            raise ValueError(f"Expected a flat {kind} array as {name} in row {i}, got {got}.")
        if value.size > LARGEST:
            raise ValueError(
                f"Expected at most {LARGEST:,} numbers of {name} in row {i}, got {value.size:,}."
            )


def _table(rows: Sequence[Row], features: Features) -> pa.Table:
    schema = features.arrow_schema
    arrays = []
    for name, feature in features.items():
        values = [row[name] for row in rows]
        if isinstance(feature, Value):
            arrays.append(pa.array(values, schema.field(name).type))
            continue
        kind = np.dtype(feature.feature.dtype)
        offsets = np.cumsum([0, *(v.size for v in values)]).astype(np.int32)
        flat = np.concatenate(values) if values else np.empty(0, kind)
        arrays.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)))
    return pa.Table.from_arrays(arrays, schema=schema)


def open_shard(
    directory: str | os.PathLike[str],
    index: int,
    record: Record | None,
    schema: pa.Schema | None = None,
) -> list[pa.RecordBatch]:
    """The record batches of a shard, see `read_batches`.

    Args:
        directory: The cache.
        index: Index of the shard.
        record: Its record.
        schema: The columns that it must have, see `schema_of`.

    Raises:
        DamagedCacheError: it cannot be read, or differs from its record.
    """
    try:
        found = read_batches(arrow_path(directory, index), schema)
    except StopIteration:
        raise DamagedCacheError(directory, {index: "nothing is in it"}) from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedCacheError(directory, {index: f"it cannot be read: {error}"}) from error
    if record is None or sum(len(batch) for batch in found) != record["rows"]:
        raise DamagedCacheError(directory, {index: "it has not as many rows as its record says"})
    return found


def read_keys(directory: str | os.PathLike[str], index: int) -> list[bytes]:
    """The keys of a shard, in the order of its rows.

    Raises:
        DamagedCacheError: they differ from those written, or cannot be read.
    """
    record = records(directory).get(index)
    batches = open_shard(directory, index, record)
    joined = b"".join(key_bytes(batch) for batch in batches)
    if record is None or xxhash.xxh3_128_hexdigest(joined) != record["keys"]:
        raise DamagedCacheError(directory, {index: "its keys are not those of its record"})
    return [joined[i : i + KEY_BYTES] for i in range(0, len(joined), KEY_BYTES)]


def usable(
    directory: str | os.PathLike[str], manifest: Mapping[str, Any], features: Features
) -> set[int]:
    """Finished and undamaged shards; all others are written again.

    Args:
        directory: The cache.
        manifest: Its manifest.
        features: The columns that a shard must have.
    """
    known = records(directory)
    found = finished(directory, manifest, known)
    found -= set(damaged(directory, found, manifest, known))
    schema = schema_of(features)
    return {index for index in found if _opens(directory, index, known[index], schema)}


def _opens(
    directory: str | os.PathLike[str], index: int, record: Record | None, schema: pa.Schema
) -> bool:
    try:
        open_shard(directory, index, record, schema)
    except DamagedCacheError:
        return False
    return True


def remove_stale(directory: str | os.PathLike[str]) -> list[str]:
    """Remove files of killed writers, not those of active ones.

    Returns:
        The names of the files that were removed.
    """
    return remove_partial([Path(directory), Path(directory) / DATA])
