"""Safe output folders: nobody else's files are replaced, one process writes at a time, and disk
errors are readable."""

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".hf_distill.lock"  # the file on which the process that works in a folder holds its lock
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
)
_FULL_WORDS = (
    *("No space left", "os error 28", "quota exceeded"),
    *("PytorchStreamWriter failed", "inline_container"),
)
"""Words of libraries that keep no `errno`: safetensors, and torch of its archives."""
_held: set[int] = set()


class FolderError(ValueError):
    """A place that is somebody else's, in use, or not to be written; the message has the remedy."""


def contents(folder: Path, but: Sequence[str] = ()) -> list[str]:
    """Sorted names in a folder without those that match ``but``; empty if it does not exist,
    FolderError if it is no folder (a dangling link, say) or cannot be read."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        if folder.is_symlink():
            raise FolderError(
                f"Expected {folder} to be a folder, or absent, got a link to what does not exist "
                f"({os.readlink(folder)}). Remove the link, or make what it names."
            ) from None
        return []
    except NotADirectoryError:
        raise FolderError(
            f"Expected {folder} to be a folder, or absent, got a file there or above. It is left "
            "as it is: move it away, or write to another folder."
        ) from None
    except OSError as error:
        raise FolderError(
            f"{folder} cannot be read: {error.strerror}. Write to another folder."
        ) from None
    return [name for name in names if not any(fnmatchcase(name, one) for one in (*but, LOCK))]


def refuse_foreign(folder: Path, names: Collection[str], mark: str) -> None:
    """Raise FolderError if ``names`` of foreign content lie in a folder without our ``mark``."""
    if names:
        shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
        raise FolderError(
            f"Expected a new or empty folder {folder}, or one that this command made ({mark}), got "
            f"one with {shown}. Nothing in it is touched: move it away, or write to another folder."
        )


def refuse_foreign_files(folder: Path, names: Sequence[str], record: str, keys: set[str]) -> None:
    """Raise FolderError if files that match ``names`` or ``record`` lie in a folder and its
    ``record``, a JSON object, lacks ``keys``: they are not of an earlier report of ours."""
    there = [n for n in contents(folder) if any(fnmatchcase(n, one) for one in (*names, record))]
    if there and not keys <= set(json_object(folder / record) or ()):
        raise FolderError(
            f"Expected no {' or '.join(there)} in {folder}, or those of an earlier run (with a "
            f"{record} of ours), got others. They are not replaced: move them away, or write "
            "to another folder."
        )


def json_object(path: Path) -> dict[str, Any] | None:
    """Object in a JSON file; None if there is no such file or another content."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the one process that works in a folder, which is made if need be.

    The lock is a `flock`, which ends with the process; without it (Windows, some network disks) a
    warning is logged. A folder that was made here and stays empty is removed at the end.
    FolderError: another process works in it, or it cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _locked(path)
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(owner).encode())
    except OSError as error:
        raise FolderError(trouble(error) or _not_written(folder, error)) from error
    process = os.getpid()
    _held.add(handle)
    try:
        yield
    finally:
        if os.getpid() == process:  # not in a fork
            with contextlib.suppress(OSError):  # before it is closed, or it might be another's
                path.unlink()
            _held.discard(handle)
            os.close(handle)
            if fcntl is None:  # where an open file cannot be removed
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # with content
                for one in made:
                    one.rmdir()


def lock(handle: int, wait: bool = True) -> bool:
    """Lock an open file or folder until it is closed; False if locks are not supported; without
    ``wait`` BlockingIOError if another process holds it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # some network disks
        return False
    return True


def _locked(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            if not lock(handle, wait=False):
                logger.warning(
                    "%s cannot be locked on this system or disk: start no second run in it while "
                    "this one works.",
                    path.parent,
                )
                return handle
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BlockingIOError:
            try:
                told = json.loads(os.read(handle, 1000))
                holder = f"process {told['pid']} on {told['host']}, since {told['since']},"
            except (OSError, ValueError, KeyError, TypeError):  # it is about to write it
                holder = "another process"
            os.close(handle)
            raise FolderError(
                f"{path.parent} is in use: {holder} works in it. Wait until that has ended or stop "
                "it, or write to another folder."
            ) from None
        except FileNotFoundError:  # whoever held it has just ended and removed it
            pass
        os.close(handle)


def _let_go() -> None:
    """Close the lock inherited by a fork: a worker that outlives its parent must not hold it."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def trouble(error: BaseException | None) -> str | None:
    """Sentence for an error that the disk or a path caused; None for all others."""
    told = True  # what is raised from an error is of it; what is raised after it may be another
    while error is not None:
        if told and isinstance(error, OSError) and error.errno in _REFUSED:
            return _not_written(Path(os.fsdecode(error.filename or "the folder")), error)
        full = isinstance(error, OSError) and error.errno in _FULL
        if full or any(words in str(error) for words in _FULL_WORDS):
            return (
                f"no space, or no room for another file, is left on the disk: {error}. What is "
                "finished is kept: free some space, and run the same command again."
            )
        told = error.__cause__ is not None
        error = error.__cause__ or error.__context__
    return None


def _not_written(path: Path, error: OSError) -> str:
    return f"{path} cannot be written: {error.strerror or error}. Write to another folder."
