"""Small JSON files, written atomically, with a checksum."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from hf_distill.utils.folders import lock

FORMAT_VERSION = 2
"""Version of a cache's layout; others are rejected. 2: the records of the shards are bound to the
manifest, see `bindings`."""
MANIFEST = "cache.json"
SEAL = "checksum"
"""The field with the hash of all the others."""
PARTIAL = "partial"
StrPath = str | os.PathLike[str]
ABANDONED = 24 * 3600.0
"""Seconds without a change after which another machine's unfinished file is stale."""
LARGEST = 2**26
"""Largest size of such a file, in bytes."""
PARTS = {
    "teacher": "the teacher's weights",
    "task": "the task",
    "inputs": "the teacher's inputs",
    "tokenizer": "the tokenizer",
    "preprocessing": "the preprocessing",
    "content": "what is kept, and how",
    "views": "the recorded views",
}
"""The parts of a manifest that two runs must share to share a cache."""


class DiskFullError(OSError):
    """No space left on the disk; finished shards are intact."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that gets its name when it is complete and on the disk.

    After any error it is removed. Raises DiskFullError without space or quota, ValueError if the
    path is a folder, or its folder is a file.
    """
    unfinished = partial_name(path)
    refuse_no_file(path)
    try:
        make_folder(path.parent)
        with _claimed(unfinished) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(unfinished, path)  # while locked, so that it is not removed as stale
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


def refuse_no_file(path: Path) -> None:
    """Raise ValueError if a path is a folder or a pipe."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # it does not exist yet
        return
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise ValueError(
            f"Expected a file (or nothing yet) at {path}, got {what}. Move it away, and run the "
            "same command again."
        )


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises ValueError if something else has its name."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"Expected a folder (or nothing yet) at {path}, got a file or a link to nothing there "
            f"({error}). Move it away, or use another folder."
        ) from error


def partial_name(path: Path) -> Path:
    """Temporary name of a file, with host and process, so that no two writers share it, and hidden,
    so that nothing takes it for data."""
    process, thread = os.getpid(), threading.get_native_id()
    own = f"{process}" if process == thread else f"{process}-{thread}"
    return path.with_name(f".{path.name}.{_host()}-{own}.{PARTIAL}")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:40]


def _claimed(path: Path) -> BinaryIO:
    """A new file that is locked while it is open."""
    while True:
        file = open(path, "wb")  # noqa: SIM115 (the caller closes it)
        lock(file.fileno())
        with contextlib.suppress(FileNotFoundError):  # removed between the two calls
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock of a folder, released when its process ends; on file systems without locks nobody
    waits."""
    make_folder(folder)
    with _opened(folder) as handle:
        lock(handle)
        yield


def remove_partial(folders: Iterable[Path]) -> list[str]:
    """Remove unfinished files of dead writers: those of this machine without a lock, and those of
    other machines unchanged for `ABANDONED` seconds. Returns their names."""
    removed = []
    for path in (path for folder in folders for path in folder.glob(f".*.{PARTIAL}")):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and _is_dead(path):
                path.unlink()
                removed.append(path.name)
    return sorted(removed)


def _is_dead(path: Path) -> bool:
    match = re.search(rf"\.([A-Za-z0-9_]+)-[0-9-]+\.{PARTIAL}$", path.name)
    if match is None or match[1] == _host():
        try:
            with _opened(path) as handle:
                if lock(handle, wait=False):
                    return True
        except BlockingIOError:
            return False
    return time.time() - path.stat().st_mtime > ABANDONED


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are on the disk."""
    with _opened(folder) as handle:
        os.fsync(handle)


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write values atomically as JSON with a checksum; the errors are those of `replacing`."""
    content = sealed(values)
    with replacing(path) as file:
        file.write(content)


def sealed(values: Mapping[str, Any]) -> bytes:
    """Values as JSON with a checksum. Raises ValueError for more than `LARGEST` bytes."""
    content = _rendered({**values, SEAL: _checksum(values)})
    if len(content) > LARGEST:
        raise ValueError(f"Expected at most {LARGEST:,} bytes of JSON, got {len(content):,}.")
    return content


def read_sealed(path: Path) -> dict[str, Any]:
    """Read the values of `write_sealed`; ValueError if any byte differs, or it is not a file."""
    refuse_no_file(path)
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    try:
        if len(content) > LARGEST:
            raise ValueError("too large")
        values = json.loads(content.decode())
        seal = values.pop(SEAL)
        line = f'\n  "{SEAL}": "{seal}",'.encode()  # the checksum covers the other fields
        if content.count(line) == 1:
            whole = seal == xxhash.xxh3_128_hexdigest(content.replace(line, b""))
        else:
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


def write_manifest(directory: StrPath, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a cache, `cache.json`, atomically.

    ``format_version`` is added. With ``shards``, their number, `ExampleStore` recognises an
    unfinished cache. The shards are bound to its `PARTS`.
    """
    values = {**manifest, "format_version": FORMAT_VERSION}
    values.pop(SEAL, None)
    write_sealed(Path(directory) / MANIFEST, values)


def bindings(manifest: Mapping[str, Any]) -> str:
    """``part:hash`` of each of the `PARTS` of a manifest, for the records of the shards."""
    values = (json.dumps(manifest.get(part), sort_keys=True).encode() for part in PARTS)
    hashed = zip(PARTS, map(xxhash.xxh3_64_hexdigest, values), strict=True)
    return " ".join(map(":".join, hashed))


def read_manifest(directory: StrPath) -> dict[str, Any]:
    """Read the manifest of `write_manifest`; ValueError if there is none, a byte of it differs, or
    the layout has another version."""
    path = Path(directory) / MANIFEST
    refuse_no_file(path)
    if not path.is_file():
        raise ValueError(
            f"Expected a cache in {directory}, found no {MANIFEST} there. `hf-distill cache "
            "RECIPE` writes one."
        )
    try:
        values = read_sealed(path)
    except ValueError as error:
        raise ValueError(
            f"{error} It was edited or damaged, and holds what the cache is of. Restore it from a "
            "copy, or move it away and run the command that wrote the cache again: finished shards "
            "of the same teacher and settings stay, others are refused."
        ) from None
    if values.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"Expected a cache of format version {FORMAT_VERSION} in {directory}, got "
            f"{values.get('format_version')}: which teacher its shards are of is not known in the "
            "same way. Write it anew with this version of hf_distill into another folder, or read "
            "it with the one that wrote it."
        )
    return values
