"""Untrusted Arrow files: their structure is checked before the memory map is used.

pyarrow takes lengths and offsets over a memory map as they are written, and unpacks compressed
columns at once, however large; the checksum of a shard can be made anew by anybody.
"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa

KEY = "key"
KEY_BYTES = 16
NUMBERS = (
    *(pa.float32(), pa.float16(), pa.int32(), pa.int16(), pa.int8()),
    pa.uint16(),
    pa.uint8(),
)
"""Types of numbers in a shard, single or in lists."""


def read_batches(path: Path, wanted: pa.Schema | None = None) -> list[pa.RecordBatch]:
    """Record batches of a shard, memory-mapped, with each buffer within its file.

    ``wanted`` are the columns that it must have; None: keys, and any that `NUMBERS` allow.
    ValueError for other columns or types, compressed columns, missing values, lengths or offsets
    beyond its buffers, keys of another width; OSError if it cannot be read.
    """
    messages = pa.ipc.MessageReader.open_stream(pa.memory_map(str(path)))
    schema = pa.ipc.read_schema(_next(messages, "schema"))
    _check_schema(schema, wanted)
    found = []
    with contextlib.suppress(StopIteration):
        while True:
            message = _next(messages, "record batch")
            if _is_compressed(message.metadata):
                raise ValueError("a compressed column, which may unpack to any size")
            found.append(pa.ipc.read_record_batch(message, schema))
            _check_batch(found[-1])
    return found


def _next(messages: pa.ipc.MessageReader, kind: str) -> pa.ipc.Message:
    """The next message of this kind; pyarrow would misread the header of another."""
    message = messages.read_next_message()
    if message.type != kind:
        raise ValueError(f"a message of type {message.type} in place of a {kind}")
    return message


def _is_compressed(metadata: pa.Buffer) -> bool:
    """True if a ``RecordBatch`` has the field ``compression``, which pyarrow does not expose.

    ``metadata`` is a FlatBuffer that pyarrow has verified: a table begins with the distance to its
    vtable, two bytes of whose size, two of the table's, and then for each field where it is in the
    table, 0 if it is not (Arrow's Message.fbs).
    """
    data = memoryview(metadata)

    def field(table: int, number: int) -> int:
        vtable = table - struct.unpack_from("<i", data, table)[0]
        slot = 4 + 2 * number
        if slot >= struct.unpack_from("<H", data, vtable)[0]:
            return 0
        offset = struct.unpack_from("<H", data, vtable + slot)[0]
        return table + offset if offset else 0

    try:
        header = field(struct.unpack_from("<I", data, 0)[0], 2)
        return bool(field(header + struct.unpack_from("<I", data, header)[0], 3))
    except struct.error as error:
        raise ValueError(f"a header that is none ({error})") from error


def _check_schema(schema: pa.Schema, wanted: pa.Schema | None) -> None:
    if wanted is not None and schema.equals(wanted):
        return
    found = {field.name: field.type for field in schema}
    if wanted is None:
        others = [kind for name, kind in found.items() if name != KEY]
        inner = [kind.value_type if pa.types.is_list(kind) else kind for kind in others]
        fits = found.get(KEY) == pa.binary() and all(kind in NUMBERS for kind in inner)
        expected = "keys, numbers and lists of numbers"
    else:
        columns = {field.name: field.type for field in wanted}
        fits, expected = found == columns, str(columns)
    if not fits or len(found) != len(schema):
        raise ValueError(f"columns of {expected:.300} expected, got {found!s:.300}")


def _check_batch(batch: pa.RecordBatch) -> None:
    batch.validate(full=True)
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        values = array.values if pa.types.is_list(array.type) else array
        if array.null_count or values.null_count:
            raise ValueError(f"missing values in {name}")
    keys = batch.column(KEY)
    if len(keys) and (np.diff(_offsets(keys)) != KEY_BYTES).any():
        raise ValueError(f"keys that have not {KEY_BYTES} bytes")


def _offsets(keys: pa.BinaryArray) -> np.ndarray:
    """Offsets ``(n + 1,)`` int32 of the keys."""
    return np.frombuffer(keys.buffers()[1], np.int32, len(keys) + 1, 4 * keys.offset)


def key_bytes(batch: pa.RecordBatch) -> memoryview:
    """The keys of a batch that `read_batches` gave, one after the other."""
    keys = batch.column(KEY)
    if not len(keys):
        return memoryview(b"")
    start = int(_offsets(keys)[0])
    return memoryview(keys.buffers()[2])[start : start + KEY_BYTES * len(keys)]
