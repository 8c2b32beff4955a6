"""Shards of a cache: Arrow files that `datasets` reads, each with a record of its contents, which
is written last. The same rows give the same bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Features, Value
from datasets.arrow_writer import ArrowWriter

from hf_distill.teachers.cache import checked_json, records
from hf_distill.teachers.cache.arrow import KEY, KEY_BYTES, key_bytes, read_batches
from hf_distill.teachers.cache.checked_json import StrPath

Row = Mapping[str, Any]
"""One example: for each column a flat numpy array, bytes or a number."""

BATCH_BYTES = 2**24
"""Approximate bytes of one Arrow record batch, the unit of streaming."""
LARGEST = 2**31 - 1
"""Largest number of list elements in one Arrow record batch."""


def write_shard(
    directory: StrPath,
    index: int,
    rows: Iterable[Row],
    features: Features,
    manifest: Mapping[str, Any] = MappingProxyType({}),
) -> records.Record:
    """Write one shard and its record, bound to the parts of the manifest; a shard of this index is
    replaced.

    ``rows`` have a 16-byte ``key`` and exactly the columns of `features` besides; they are taken
    one after the other, a few MB are held. ValueError for rows that do not fit, or a folder in
    place of a file; DiskFullError if no space is left: only finished shards remain.
    """
    features = _with_key(features)
    record, keys, count = records.record_path(directory, index), xxhash.xxh3_128(), 0
    checked_json.refuse_no_file(record)
    with contextlib.ExitStack() as pair:
        with checked_json.replacing(records.arrow_path(directory, index)) as file:
            hashed = _Hashed(file)
            writer = ArrowWriter(features=features, stream=pa.PythonFile(hashed, mode="w"))
            for group in _groups(rows, features):
                keys.update(b"".join(row[KEY] for row in group))
                count += len(group)
                writer.write_table(_table(group, features), writer_batch_size=max(1, len(group)))
            writer.finalize(close_stream=False)
            # the record of an earlier writer must never accompany other data
            pair.enter_context(checked_json.alone_in(record.parent))
            if record.exists():
                record.unlink()
                checked_json.sync_folder(record.parent)
        values = {
            "rows": count,
            "bytes": hashed.size,
            "file": hashed.digest.hexdigest(),
            "keys": keys.hexdigest(),
            "of": checked_json.bindings(manifest),
        }
        checked_json.write_sealed(record, values)
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
    size = 0
    for number, row in enumerate(rows):
        _check_row(number, row, features)
        own = sum(getattr(value, "nbytes", 8) for value in row.values())
        if group and size + own > BATCH_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += own
    yield group


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
    directory: StrPath, index: int, record: records.Record | None, schema: pa.Schema | None = None
) -> list[pa.RecordBatch]:
    """The record batches of a shard, see `read_batches`; DamagedCacheError if it cannot be read, or
    differs from its record."""
    try:
        found = read_batches(records.arrow_path(directory, index), schema)
    except StopIteration:
        raise records.DamagedCacheError(directory, {index: "nothing is in it"}) from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise records.DamagedCacheError(
            directory, {index: f"it cannot be read: {error}"}
        ) from error
    if record is None or sum(len(batch) for batch in found) != record["rows"]:
        raise records.DamagedCacheError(
            directory, {index: "it has not as many rows as its record says"}
        )
    return found


def read_keys(directory: StrPath, index: int) -> list[bytes]:
    """The keys of a shard, in the order of its rows; DamagedCacheError if they differ from those
    written."""
    record = records.read_records(directory).get(index)
    batches = open_shard(directory, index, record)
    joined = b"".join(key_bytes(batch) for batch in batches)
    if record is None or xxhash.xxh3_128_hexdigest(joined) != record["keys"]:
        raise records.DamagedCacheError(directory, {index: "its keys are not those of its record"})
    return [joined[i : i + KEY_BYTES] for i in range(0, len(joined), KEY_BYTES)]


def usable(directory: StrPath, manifest: Mapping[str, Any], features: Features) -> set[int]:
    """Finished and undamaged shards with these columns; all others are written again."""
    shards, found = records.ShardRecords(directory, manifest), set()
    whole = shards.finished()
    for index in whole - set(shards.damaged(whole)):
        with contextlib.suppress(records.DamagedCacheError):
            open_shard(directory, index, shards.known[index], schema_of(features))
            found.add(index)
    return found


def remove_stale(directory: StrPath) -> list[str]:
    """Remove files of killed writers, not those of active ones, and return their names."""
    return checked_json.remove_partial([Path(directory), Path(directory) / records.DATA])
