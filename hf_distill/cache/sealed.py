"""Small JSON files that are whole or absent, and that a changed byte makes invalid."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

FORMAT_VERSION = 1
"""Of the layout of a cache; another one is refused."""
MANIFEST = "cache.json"
SEAL = "checksum"
"""The field with the hash of all the others."""


class DiskFullError(OSError):
    """No space is left for what was to be written; what was finished before is whole."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete and on the disk.

    Args:
        path: Where it will be.

    Raises:
        DiskFullError: there is no space, or no quota. The unfinished file is removed, as after
            every other error.
    """
    unfinished = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except BaseException as error:
        written = unfinished.stat().st_size if unfinished.exists() else 0
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(error, path, written) from error
        raise


def _disk_full(error: OSError, path: Path, written: int) -> DiskFullError:
    there = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(there).free
    return DiskFullError(
        error.errno,
        f"No space left in {path.parent} for {path.name}: {written:,} bytes of it were written and "
        f"removed again, {free:,} are free now. All finished shards are kept and can be read. Free "
        "some space, or move the whole cache to a larger disk, and run the same command again: it "
        "goes on from there",
    )


def partial_name(path: Path) -> Path:
    """The name of a file while it is written; hidden, so that nothing takes it for data."""
    return path.with_name(f".{path.name}.partial")


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON with a checksum, at once or not at all.

    Raises:
        DiskFullError: see `replacing`.
        TypeError, ValueError: values that are no JSON.
    """
    content = _rendered({**values, SEAL: _checksum(values)})
    with replacing(path) as file:
        file.write(content)


def read_sealed(path: Path) -> dict[str, Any]:
    """The values that `write_sealed` wrote.

    Raises:
        ValueError: any byte differs.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    try:
        values = json.loads(content)
        seal = values.pop(SEAL)
        whole = seal == _checksum(values) and content == _rendered({**values, SEAL: seal})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"Expected {path} as it was written, its checksum differs.")
    return values


def _rendered(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"


def _checksum(values: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(_rendered(values))


def write_manifest(directory: str | os.PathLike[str], manifest: Mapping[str, Any]) -> None:
    """Write what a cache says of itself, `cache.json`, at once or not at all.

    Args:
        directory: The cache.
        manifest: Plain JSON; `format_version` is added. ``shards``, where the number of shards is
            known, lets `Store` tell an unfinished cache.

    Raises:
        DiskFullError: see `replacing`.
    """
    values = {**manifest, "format_version": FORMAT_VERSION}
    values.pop(SEAL, None)
    write_sealed(Path(directory) / MANIFEST, values)


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_manifest` wrote, with `format_version`.

    Raises:
        ValueError: there is none, a byte of it differs, or the layout is another one.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"Expected a cache in {directory}, found no {MANIFEST} there. `hf-distill cache "
            "RECIPE` writes one."
        )
    try:
        values = read_sealed(path)
    except ValueError as error:
        raise ValueError(
            f"{error} It was edited or damaged, and says what the cache is of. Restore it from a "
            "copy, or write the cache anew."
        ) from None
    if values.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"Expected a cache of format version {FORMAT_VERSION} in {directory}, got "
            f"{values.get('format_version')}. Write it anew with this version of hf_distill, or "
            "read it with the one that wrote it."
        )
    return values
