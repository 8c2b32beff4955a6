"""Stored parts of a report; an interrupted run continues from them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from hf_distill.utils.files import replacing

Arrays = dict[str, np.ndarray]
_KEY = "key"


class ReportStore:
    """Named arrays, keyed by what they depend on; in a folder or in memory.

    A part lies in one ``.npz``, written under another name and renamed, so that there is never half
    of one. Its name holds a hash of its key; the key itself lies in the file and is compared, and a
    file that cannot be read is made again.

    Args:
        folder: Where the parts lie; None: in memory.
        say: Function that prints a line for each computed part.
    """

    def __init__(self, folder: Path | None, say: Callable[[str], None]):
        self.folder, self.say = folder, say
        self.computed = 0
        self._memory: dict[str, Arrays] = {}

    def get(self, name: str, key: Mapping[str, Any], compute: Callable[[], Arrays]) -> Arrays:
        """Load a part, or compute and store it.

        Args:
            name: For the file's name and the line that is printed.
            key: Plain values: everything that the arrays depend on.
            compute: Makes the arrays.
        """
        text = json.dumps(key, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        if digest in self._memory:
            return self._memory[digest]
        path = self._path(name, digest)
        found = None if path is None else _read(path, text)
        if found is None:
            self.say(name)
            found = compute()
            self.computed += 1
            if path is not None:
                _write(path, text, found)
        self._memory[digest] = found
        return found

    def _path(self, name: str, digest: str) -> Path | None:
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}-{digest}.npz"


def _read(path: Path, key: str) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as parts:
            found = {name: parts[name] for name in parts.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    if _KEY not in found or str(found.pop(_KEY)) != key:
        return None
    return found


def _write(path: Path, key: str, arrays: Arrays) -> None:
    with replacing(path, shared=True) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{_KEY: np.array(key)}, **arrays)  # type: ignore[arg-type]
