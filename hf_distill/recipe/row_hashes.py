"""Hashes of the raw content of examples, of files that they name too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset

BATCH = 1000


def row_hashes(dataset: Dataset, columns: Sequence[str]) -> np.ndarray:
    """A 64-bit hash ``(N,)`` of these columns in each row, undecoded; columns that are not there
    are left out, without any the row's number takes their place."""
    known = [name for name in columns if name in dataset.column_names]
    if not known:
        return np.arange(len(dataset), dtype=np.uint64)
    found: list[int] = []
    for table in dataset.select_columns(known).with_format("arrow").iter(batch_size=BATCH):
        values = [contents(table.column(name).to_pylist()) for name in known]
        found += [xxhash.xxh3_64_intdigest(repr(row).encode()) for row in zip(*values, strict=True)]
    return np.array(found, dtype=np.uint64)


def contents(value: Any, keep_bytes: bool = False) -> Any:
    """The value with a hash of the content in place of every image or sound in it.

    Undecoded ones are ``{"bytes": ..., "path": ...}``: with bytes the path is left out, without
    them the file is read. A file that cannot be read stays a path.

    Args:
        value: A value, or lists or mappings of values.
        keep_bytes: True: leave those with bytes as they are.
    """
    if isinstance(value, list):
        return [contents(item, keep_bytes) for item in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() != {"bytes", "path"}:
        return {key: contents(item, keep_bytes) for key, item in value.items()}
    content = value["bytes"]
    if content is not None:
        return value if keep_bytes else xxhash.xxh3_128_hexdigest(content)
    try:
        return xxhash.xxh3_128_hexdigest(Path(value["path"]).read_bytes())
    except (OSError, TypeError):
        return value
