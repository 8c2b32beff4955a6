"""Access to files without following links out of a folder."""

import errno
import os
import re
import shlex
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_SEVERAL_NAMES = (".safetensors", ".arrow", ".pt", ".pth")
"""May have other names (hard links): too large to copy, and whole by headers or hashes."""
_REPO = re.compile(r"(?:models|datasets|spaces|kernels)--.+")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class OutsideError(ValueError):
    """A name in a folder that is not a file of that folder."""


def lies_inside(root: Path, name: str) -> bool:
    try:
        _real(root, name)
    except OutsideError:
        return False
    return True


def open_inside(root: Path, name: str) -> BinaryIO:
    """Open a regular file of a folder for reading, by its relative name with slashes.

    No symbolic link is followed, be it the file's name or a folder's on the way to it (``root``
    itself may be one), except in the Hub's own cache, where ``root`` is a snapshot and its files
    are links to the blobs of the same repository. Hard links are refused too, weights and shards
    excepted.

    Raises:
        OutsideError: anything else; the message contains the reason and the remedy.
    """
    real = _real(root, name)
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(real, os.O_RDONLY | flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOENT):
            raise OutsideError(f"{name} changed while it was looked at: try again") from error
        raise
    try:
        opened = os.fstat(handle)
        # what was opened is what lies there, wherever a link has been put meanwhile
        if not stat.S_ISREG(opened.st_mode) or not os.path.samestat(
            opened, _real(root, name).lstat()
        ):
            raise OutsideError(f"{name} changed while it was looked at: try again")
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _real(root: Path, name: str) -> Path:
    """The path of the bytes of ``name``: in ``root``, or among the blobs of the Hub's cache;
    otherwise OutsideError."""
    base = Path(os.path.realpath(root))
    path = base
    parts = PurePosixPath(name).parts
    for part in parts:
        path = path / part
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            raise OutsideError(f"{name} is not there ({error.strerror})") from error
        if part in ("..", "/") or not (stat.S_ISDIR(mode) or path == base / name):
            break
    if stat.S_ISLNK(mode) or getattr(os.path, "isjunction", lambda _: False)(path):
        if path == base / name and (blob := _blob(base, path)) is not None:
            return blob
        raise OutsideError(_link(base, path))
    if not stat.S_ISREG(mode) or path != base / name:
        raise OutsideError(f"{name}: expected a regular file, got a {_kind(mode)}: remove it")
    if path.lstat().st_nlink > 1 and path.suffix not in _SEVERAL_NAMES:
        raise OutsideError(
            f"{name} is a hard link: the same file has another name, perhaps outside of the "
            f"folder. Put a copy in its place: {_copy(path)}"
        )
    return path


def _blob(root: Path, link: Path) -> Path | None:
    """Blob of a snapshot link in the Hub's cache; None for other links."""
    repo = root.parent.parent
    if root.parent.name != "snapshots" or not _REPO.fullmatch(repo.name):
        return None
    real = Path(os.path.realpath(link))
    # huggingface_hub 2 keeps what several repositories share once, beside them
    shared = real.parent == repo.parent / "blobs" / real.name[:2]
    if not (shared or real.parent == repo / "blobs") or not _HASH.fullmatch(real.name):
        return None
    return real if real.exists() and stat.S_ISREG(real.lstat().st_mode) else None


def _link(root: Path, path: Path) -> str:
    try:
        target, what = os.readlink(path), "folder" if path.is_dir() else "file"
    except OSError:  # it is none any more
        return f"{path.relative_to(root).as_posix()} changed while it was looked at: try again"
    return (
        f"{path.relative_to(root).as_posix()} is a link to {target}, and no link is followed: it "
        f"might lead to anything on this machine. Put the {what} itself in its place "
        f"({_copy(path)}), or remove it"
    )


def _copy(path: Path) -> str:
    """A command that puts a copy in place of a link."""
    quoted, copy = shlex.quote(str(path)), shlex.quote(f"{path}.copy")
    return f"cp -RL {quoted} {copy} && rm {quoted} && mv {copy} {quoted}"


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "folder",
        stat.S_IFIFO: "pipe (FIFO)",
        stat.S_IFSOCK: "socket",
        stat.S_IFBLK: "device",
        stat.S_IFCHR: "device",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")
