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
from typing import Any

import xxhash

from hf_distill.teachers.cache.checked_json import PARTS, bindings, read_manifest, read_sealed

Record = dict[str, Any]
"""Fields of a record: ``rows``, ``bytes``, the hashes ``file`` and ``keys``, and ``of``: those of
the parts of its manifest, see `bindings`."""


DATA = "data"
CHUNK = 2**22


class DamagedCacheError(ValueError):
    """Error for shards that are missing or damaged.

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


class ForeignShardsError(ValueError):
    """Error for shards that were written for another cache.

    Attributes:
        shards: For each of them, in what it differs.
    """

    def __init__(self, directory: str | os.PathLike[str], shards: dict[int, str]) -> None:
        self.shards = shards
        listed = list(shards.items())
        found = [f"{arrow_path(directory, i).name} ({why})" for i, why in listed[:8]]
        more = f" and {len(shards) - 8} more" if len(shards) > 8 else ""
        super().__init__(
            f"Expected shards of the cache {directory} alone, got those of another one: "
            f"{', '.join(found)}{more}. Their outputs are not those that its cache.json is of. "
            f"Move them and their records (.arrow and .json) out of {Path(directory) / DATA}, and "
            "run the command that wrote the cache again: it makes these anew. If it is cache.json "
            "that is another one, put the one they were written with back, or write to another "
            "folder."
        )


def arrow_path(directory: str | os.PathLike[str], index: int) -> Path:
    """The path of a shard."""
    return Path(directory, f"{DATA}/shard-{index:05d}.arrow")


def record_path(directory: str | os.PathLike[str], index: int) -> Path:
    """The path of the record of a shard."""
    return Path(directory, f"{DATA}/shard-{index:05d}.json")


def records(directory: str | os.PathLike[str]) -> dict[int, Record | None]:
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


def _as_record(values: Mapping[str, Any]) -> Record:
    """Check a record, or raise ValueError; one of an earlier version has no ``of``."""
    kinds = {"rows": int, "bytes": int, "file": str, "keys": str}
    fits = all(type(values.get(name)) is kind for name, kind in kinds.items())
    if not fits or not isinstance(values.get("of", ""), str):
        raise ValueError("other fields")
    return dict(values)


def foreign(
    directory: str | os.PathLike[str],
    manifest: Mapping[str, Any] | None = None,
    known: Mapping[int, Record | None] | None = None,
) -> dict[int, str]:
    """The shards that were written for another cache, each with what differs.

    Args:
        directory: The cache.
        manifest: Its manifest, if that was read.
        known: Its records, if those were read.

    Raises:
        ValueError: shards without a manifest.
    """
    known = records(directory) if known is None else known
    whole = {index: record for index, record in known.items() if record is not None}
    if not whole:
        return {}
    own = bindings(read_manifest(directory) if manifest is None else manifest)
    return {i: _difference(own, record) for i, record in whole.items() if record.get("of") != own}


def _difference(own: str, record: Record) -> str:
    held = record.get("of")
    if held is None:
        return "by an earlier version, which did not write whose they are"
    there, here = (dict(pair.partition(":")[::2] for pair in of.split()) for of in (held, own))
    parts = [name for part, name in PARTS.items() if there.get(part) != here[part]]
    return "of other things: " + ", ".join(parts) if parts else "by another version"


def finished(
    directory: str | os.PathLike[str],
    manifest: Mapping[str, Any] | None = None,
    known: Mapping[int, Record | None] | None = None,
) -> set[int]:
    """The cache's own shards with a valid record and the recorded size; no data is read.

    Arguments and errors are those of `foreign`.
    """
    known = records(directory) if known is None else known
    others = foreign(directory, manifest, known)
    found = set()
    for index, record in known.items():
        own = record is not None and index not in others
        if own and record is not None and _size(arrow_path(directory, index)) == record["bytes"]:
            found.add(index)
    return found


def _size(path: Path) -> int | None:
    """The bytes of a file; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def damaged(
    directory: str | os.PathLike[str],
    indexes: Collection[int] | None = None,
    manifest: Mapping[str, Any] | None = None,
    known: Mapping[int, Record | None] | None = None,
) -> dict[int, str]:
    """Damaged shards: each shard with a record is read and compared.

    A shard without a record is unfinished, not damaged; one in `indexes` counts as missing.

    Args:
        directory: The cache.
        indexes: The shards to look at; None: all that have a record.
        manifest: As for `foreign`.
        known: As for `foreign`.
    """
    known = records(directory) if known is None else known
    others = foreign(directory, manifest, known)
    found = {}
    for index in sorted(known if indexes is None else indexes):
        if index not in known:
            found[index] = "no record: missing or unfinished"
        elif reason := others.get(index) or _wrong(arrow_path(directory, index), known[index]):
            found[index] = reason
    return found


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


def refuse_foreign(
    directory: str | os.PathLike[str],
    manifest: Mapping[str, Any] | None = None,
    known: Mapping[int, Record | None] | None = None,
) -> None:
    """Refuse shards of another cache; the arguments are those of `foreign`.

    Raises:
        ForeignShardsError: naming the shards, with what to do.
    """
    if others := foreign(directory, manifest, known):
        raise ForeignShardsError(directory, others)


def verify(
    directory: str | os.PathLike[str],
    indexes: Collection[int] | None = None,
    manifest: Mapping[str, Any] | None = None,
    known: Mapping[int, Record | None] | None = None,
) -> None:
    """Raise if shards differ from their records, see `damaged`.

    Raises:
        ForeignShardsError: shards of another cache.
        DamagedCacheError: naming the shards, with what to do.
    """
    known = records(directory) if known is None else known
    refuse_foreign(directory, manifest, known)
    if found := damaged(directory, indexes, manifest, known):
        raise DamagedCacheError(directory, found)
