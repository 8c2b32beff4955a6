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

    A part is one ``.npz``, written whole or not at all, with its key inside; a file that cannot be
    read or has another key is made again. `say` prints a line for each computed part.
    """

    def __init__(self, folder: Path | None, say: Callable[[str], None]):
        self.folder, self.say = folder, say
        self._memory: dict[str, Arrays] = {}

    def get(self, name: str, key: Mapping[str, Any], compute: Callable[[], Arrays]) -> Arrays:
        """Load a part, or compute and store it; `key` has all that the arrays depend on."""
        text = json.dumps(key, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        if digest in self._memory:
            return self._memory[digest]
        path = self._path(name, digest)
        found = None if path is None else _read(path, text)
        if found is None:
            self.say(name)
            found = compute()
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
