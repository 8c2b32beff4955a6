"""Records of a cache's shards: their facts without their rows.

A shard with a valid record is complete, and one without is unfinished. A record also holds hashes
of the parts of the manifest that the shard was written for: next to another manifest the same file
would be read as another teacher's outputs.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from hf_distill.teachers.cache.checked_json import (
    PARTS,
    StrPath,
    bindings,
    read_manifest,
    read_sealed,
)

Record = dict[str, Any]
"""Fields of a record: ``rows``, ``bytes``, the hashes ``file`` and ``keys``, and ``of``: those of
the parts of its manifest, see `bindings`."""
DATA = "data"
CHUNK = 2**22


class _ShardsError(ValueError):
    message: ClassVar[str]

    def __init__(self, directory: StrPath, shards: dict[int, str]) -> None:
        self.shards = shards
        found = [f"{arrow_path(directory, i).name} ({why})" for i, why in list(shards.items())[:8]]
        more = f" and {len(shards) - 8} more" if len(shards) > 8 else ""
        listed, data = ", ".join(found) + more, Path(directory) / DATA
        super().__init__(self.message.format(directory=directory, shards=listed, data=data))


class DamagedCacheError(_ShardsError):
    """Error for shards that are missing or damaged: ``shards``, each with what is wrong."""

    message = (
        "Expected the cache {directory} as it was written, damaged: {shards}. Delete nothing: "
        "`hf-distill cache RECIPE` rebuilds only these shards."
    )


class ForeignShardsError(_ShardsError):
    """Error for shards that were written for another cache: ``shards``, each with what differs."""

    message = (
        "Expected shards of the cache {directory} alone, got those of another one: {shards}. Their "
        "outputs are not those that its cache.json is of. Move them and their records (.arrow and "
        ".json) out of {data}, and run the command that wrote the cache again: it makes these "
        "anew. If it is cache.json that is another one, put the one they were written with back, "
        "or write to another folder."
    )


def arrow_path(directory: StrPath, index: int) -> Path:
    """The path of a shard."""
    return Path(directory, f"{DATA}/shard-{index:05d}.arrow")


def record_path(directory: StrPath, index: int) -> Path:
    """The path of the record of a shard."""
    return arrow_path(directory, index).with_suffix(".json")


def read_records(directory: StrPath) -> dict[int, Record | None]:
    """Records by shard; None for a damaged record."""
    found: dict[int, Record | None] = {}
    folder = Path(directory) / DATA
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        if match := re.fullmatch(r"shard-(\d{5,18})\.json", name):
            try:
                found[int(match[1])] = _as_record(read_sealed(folder / name))
            except ValueError:
                found[int(match[1])] = None
            except FileNotFoundError:  # a writer is replacing this shard
                continue
    return found


def _as_record(values: Record) -> Record:
    """Check a record, or raise ValueError; one of an earlier version has no ``of``."""
    kinds = {"rows": int, "bytes": int, "file": str, "keys": str}
    fits = all(type(values.get(name)) is kind for name, kind in kinds.items())
    if not fits or not isinstance(values.get("of", ""), str):
        raise ValueError("other fields")
    return values


class ShardRecords:
    """The records of a cache's shards at one time: ``known``, as from `read_records`, and
    ``foreign``, the shards that were written for another cache, each with what differs. The
    manifest is read if it is not given; ValueError for shards without one."""

    def __init__(self, directory: StrPath, manifest: Mapping[str, Any] | None = None):
        self.directory, self.known = directory, read_records(directory)
        self.foreign: dict[int, str] = {}
        whole = {index: record for index, record in self.known.items() if record is not None}
        if whole:
            own = bindings(read_manifest(directory) if manifest is None else manifest)
            others = {i: record for i, record in whole.items() if record.get("of") != own}
            self.foreign = {i: _difference(own, record) for i, record in others.items()}

    def finished(self) -> set[int]:
        """The cache's own shards with a valid record and the recorded size; no data is read."""
        own = {i: r for i, r in self.known.items() if r is not None and i not in self.foreign}
        return {i for i, r in own.items() if _size(arrow_path(self.directory, i)) == r["bytes"]}

    def damaged(self, indexes: Collection[int] | None = None) -> dict[int, str]:
        """Damaged shards: each shard with a record is read and compared.

        A shard without a record is unfinished, not damaged; one in ``indexes`` (by default all that
        have a record) counts as missing.
        """
        found = {}
        for i in sorted(self.known if indexes is None else indexes):
            if i not in self.known:
                found[i] = "no record: missing or unfinished"
            elif wrong := self.foreign.get(i) or _wrong(
                arrow_path(self.directory, i), self.known[i]
            ):
                found[i] = wrong
        return found

    def refuse_foreign(self) -> None:
        """Raise ForeignShardsError for shards of another cache."""
        if self.foreign:
            raise ForeignShardsError(self.directory, self.foreign)

    def verify(self, indexes: Collection[int] | None = None) -> None:
        """`refuse_foreign`, and raise DamagedCacheError for `damaged` ones."""
        self.refuse_foreign()
        if found := self.damaged(indexes):
            raise DamagedCacheError(self.directory, found)


def _difference(own: str, record: Record) -> str:
    held = record.get("of")
    if held is None:
        return "by an earlier version, which did not write whose they are"
    there, here = (dict(pair.partition(":")[::2] for pair in of.split()) for of in (held, own))
    parts = [name for part, name in PARTS.items() if there.get(part) != here[part]]
    return "of other things: " + ", ".join(parts) if parts else "by another version"


def _size(path: Path) -> int | None:
    """The bytes of a file; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _wrong(path: Path, record: Record | None) -> str:
    if record is None:
        return "its record was changed"
    size = _size(path)
    if size is None:
        return "missing"
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
