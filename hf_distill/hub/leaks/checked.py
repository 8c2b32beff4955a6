"""The check of all that is published: students, checkpoints, caches."""

import mmap
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd
from safetensors import SafetensorError, safe_open

from .contents import file_leaks, head
from .links import OutsideError, open_inside

_IN_PLACE = (".safetensors", ".arrow", ".onnx", ".onnx_data", ".data")
"""Too large to be held; a change between the check and the upload is noticed."""


@dataclass(frozen=True)
class Checked:
    """A checked file with its content or hash at the time of the check.

    ``content`` is what is to be published: the bytes that were checked, or of large files the path,
    which `verify` compares with what was checked; ``hashed`` is then its upload, hashed meanwhile.
    """

    name: str
    content: bytes | str
    seen: tuple[int, ...] = ()
    hashed: Future[CommitOperationAdd] | None = None

    def upload(self) -> CommitOperationAdd:
        """The file as a part of a commit."""
        if self.hashed is None:
            return CommitOperationAdd(self.name, self.content)
        operation = copy(self.hashed.result())  # the client keeps in it how far the upload is
        operation.path_in_repo = self.name
        return operation

    def verify(self) -> None:
        """Raise OutsideError if a large file was replaced or changed since it was checked."""
        if isinstance(self.content, str) and _identity(os.lstat(self.content)) != self.seen:
            raise OutsideError(f"{self.name} changed while it was published: publish it again")


def check_files(root: Path, names: Iterable[str]) -> tuple[list[Checked], list[str]]:
    """Check files of a folder, by relative names with slashes, before they are published.

    Returns:
        The files, and a line for each reason not to publish one of them: a link, a special file, a
        token, a local path, text in another encoding, …
    """
    files, problems = [], []
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    for name in names:
        try:
            file, found = _check(root, name, pool)
        except OutsideError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
        else:
            files.append(file)
            problems += [f"{name} {leak}" for leak in found]
    pool.shutdown(wait=False, cancel_futures=bool(problems))
    return files, problems


def copy_inside(root: Path, name: str, target: Path) -> None:
    """Copy a file of a folder, following no link: see `links.open_inside`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_inside(root, name) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _check(root: Path, name: str, pool: Executor) -> tuple[Checked, list[str]]:
    with open_inside(root, name) as file:
        if not name.endswith(_IN_PLACE):
            data = file.read()
            return Checked(name, data), file_leaks(name, data)
        found = os.fstat(file.fileno())
        path = os.path.realpath(root / name)
        if name.endswith((".safetensors", ".arrow")):
            problems = _weights(name, path) + file_leaks(name, head(name, file))
        elif found.st_size:
            with (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as view,
            ):
                problems = file_leaks(name, view)
        else:
            problems = file_leaks(name, b"")
        hashed = None if problems else pool.submit(_hashed, name, path)
        return Checked(name, path, _identity(found), hashed), problems


def _hashed(name: str, path: str) -> CommitOperationAdd:
    operation = CommitOperationAdd(name, path)
    _ = operation.upload_info.sha256  # huggingface_hub 2 computes it when it is first read
    return operation


def _weights(name: str, path: str) -> list[str]:
    """Problems of weights whose header and length do not agree, according to safetensors."""
    if name.endswith(".safetensors"):
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            return [f"is cut short ({error}): save it again"]
    return []


def _identity(found: os.stat_result) -> tuple[int, ...]:
    """The facts that change when a file is replaced or written to."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
