"""The shards of a cache: Arrow files that `datasets` reads, each with a record of what it holds.

``data/shard-00000.arrow`` is written first, its record ``data/shard-00000.json`` last: a shard
with a valid record is whole, and one without is written again. The same rows give the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Features, Value
from datasets.arrow_writer import ArrowWriter

from hf_distill.cache.sealed import (
    alone_in,
    read_sealed,
    remove_partial,
    replacing,
    sync_folder,
    write_sealed,
)

Row = Mapping[str, Any]
"""One example: for each column a flat numpy array, bytes or a number."""

KEY = "key"
KEY_BYTES = 16
DATA = "data"
BATCH_BYTES = 2**24
"""About how many bytes one Arrow record batch holds: what streaming reads at once."""
CHUNK = 2**22
LARGEST = 2**31 - 1
"""How many numbers the lists of one Arrow record batch may hold."""


class DamagedCacheError(ValueError):
    """Shards that are missing or differ from what was written.

    Attributes:
        shards: For each damaged shard, what is wrong with it.
    """

    def __init__(self, directory: str | os.PathLike[str], shards: dict[int, str]) -> None:
        self.shards = shards
        found = [f"{arrow_path(directory, i).name} ({why})" for i, why in list(shards.items())[:8]]
        more = f" and {len(shards) - 8} more" if len(shards) > 8 else ""
        super().__init__(
            f"Expected the cache {directory} as it was written, damaged: {', '.join(found)}{more}. "
            "Delete nothing: `hf-distill cache RECIPE` rebuilds only these shards."
        )


def arrow_path(directory: str | os.PathLike[str], index: int) -> Path:
    """Where a shard is."""
    return Path(directory) / DATA / f"shard-{index:05d}.arrow"


def record_path(directory: str | os.PathLike[str], index: int) -> Path:
    """Where the record of a shard is."""
    return Path(directory) / DATA / f"shard-{index:05d}.json"


def write_shard(
    directory: str | os.PathLike[str], index: int, rows: Iterable[Row], features: Features
) -> dict[str, Any]:
    """Write one shard and its record; a shard of this index is replaced.

    Args:
        directory: The cache.
        index: Of the shard, from 0 on.
        rows: One mapping for each example, with its 16-byte ``key`` and exactly the columns of
            `features` besides; taken one after the other, a few MB are held.
        features: The columns: see `formats`.

    Returns:
        The record: rows, bytes, and the hashes of the file and of the keys.

    Raises:
        ValueError: rows that do not fit the features.
        DiskFullError: no space is left; finished shards stay, nothing unfinished does.
    """
    columns = {name: value for name, value in features.items() if name != KEY}
    features = Features({KEY: Value("binary"), **columns})
    record, keys, count = record_path(directory, index), xxhash.xxh3_128(), 0
    with contextlib.ExitStack() as pair:
        with replacing(arrow_path(directory, index)) as file:
            hashed = _Hashed(file)
            writer = ArrowWriter(features=features, stream=pa.PythonFile(hashed, mode="w"))
            for group in _groups(rows, features):
                keys.update(b"".join(row[KEY] for row in group))
                count += len(group)
                writer.write_table(_table(group, features), writer_batch_size=max(1, len(group)))
            writer.finalize(close_stream=False)
            pair.enter_context(alone_in(record.parent))  # another writer's record is another's
            if record.exists():  # it must never stand beside other data
                record.unlink()
                sync_folder(record.parent)
        values = {
            "rows": count,
            "bytes": hashed.size,
            "file": hashed.digest.hexdigest(),
            "keys": keys.hexdigest(),
        }
        write_sealed(record, values)
    return values


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


def records(directory: str | os.PathLike[str]) -> dict[int, dict[str, Any] | None]:
    """For each shard with a record: the record, or None where it is damaged."""
    found: dict[int, dict[str, Any] | None] = {}
    folder = Path(directory) / DATA
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := re.fullmatch(r"shard-(\d{5,})\.json", path.name):
            try:
                found[int(match[1])] = read_sealed(path)
            except ValueError:
                found[int(match[1])] = None
            except FileNotFoundError:  # a writer replaces this shard at the moment
                continue
    return found


def finished(directory: str | os.PathLike[str]) -> set[int]:
    """The shards with a valid record and as many bytes as it says; cheap, no data is read."""
    found = set()
    for index, record in records(directory).items():
        path = arrow_path(directory, index)
        if record is not None and path.is_file() and path.stat().st_size == record["bytes"]:
            found.add(index)
    return found


def damaged(
    directory: str | os.PathLike[str], indexes: Collection[int] | None = None
) -> dict[int, str]:
    """What is wrong with the shards that have a record: each is read and its bytes compared.

    A shard without a record is unfinished, not damaged; one in `indexes` counts as missing.

    Args:
        directory: The cache.
        indexes: The shards to look at; None: all that have a record.
    """
    known = records(directory)
    found = {}
    for index in sorted(known if indexes is None else indexes):
        if index not in known:
            found[index] = "no record: missing or unfinished"
        elif reason := _wrong(arrow_path(directory, index), known[index]):
            found[index] = reason
    return found


def _wrong(path: Path, record: dict[str, Any] | None) -> str:
    if record is None:
        return "its record was changed"
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != record["bytes"]:
        word = "truncated" if size < record["bytes"] else "too long"
        return f"{word}: {size:,} bytes instead of {record['bytes']:,}"
    return "" if checksum(path) == record["file"] else "its content was changed"


def checksum(path: Path) -> str:
    """The xxh3_128 of a file."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def verify(directory: str | os.PathLike[str], indexes: Collection[int] | None = None) -> None:
    """Read shards again and compare their bytes with their records: see `damaged`.

    Raises:
        DamagedCacheError: naming the shards, with what to do.
    """
    if found := damaged(directory, indexes):
        raise DamagedCacheError(directory, found)


def read_keys(directory: str | os.PathLike[str], index: int) -> list[bytes]:
    """The keys of a shard, in the order of its rows.

    Raises:
        DamagedCacheError: they are not those that were written, or cannot be read.
    """
    record = records(directory).get(index)
    try:
        with pa.ipc.open_stream(pa.memory_map(str(arrow_path(directory, index)))) as reader:
            keys = [key for batch in reader for key in batch.column(KEY).to_pylist()]
    except (OSError, pa.ArrowException) as error:
        raise DamagedCacheError(directory, {index: f"it cannot be read: {error}"}) from error
    if record is None or xxhash.xxh3_128_hexdigest(b"".join(keys)) != record["keys"]:
        raise DamagedCacheError(directory, {index: "its keys are not those of its record"})
    return keys


def remove_stale(directory: str | os.PathLike[str]) -> list[str]:
    """Remove what a killed writer left, and not what another one writes at the moment.

    Returns:
        The names of the files that were removed.
    """
    return remove_partial([Path(directory), Path(directory) / DATA])
