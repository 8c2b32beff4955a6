"""Answers on disk: an append-only file of JSON lines."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hf_distill.utils.folders import held

ANSWERS = "answers.jsonl"
"""Name of the file in its folder."""


def key_of(
    model: str, messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any], sample: int
) -> str:
    """Hash of everything on which an answer depends; the address of the server is not part of it.

    Args:
        model: Name of the model at the endpoint.
        messages: The rendered messages.
        parameters: The other fields of the request.
        sample: Index of the sample, if one request is sent several times.
    """
    request = {"model": model, "messages": messages, "parameters": parameters, "sample": sample}
    text = json.dumps(request, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Journal:
    """Answers in ``FOLDER/answers.jsonl``, one JSON object with a ``key`` per line.

    `append` returns when its line is on the disk. A last line without its end, which a kill during
    `append` leaves, is cut off when the file is opened. One process at a time holds the folder.

    Args:
        folder: The folder; it is created if needed.

    Raises:
        ValueError: on entering: a line that is no answer, or a folder in use.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / ANSWERS
        self.answers: dict[str, dict[str, Any]] = {}
        self._open = contextlib.ExitStack()
        self._file = -1

    def __enter__(self) -> Journal:
        self._open.enter_context(held(self.path.parent))
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._open.callback(os.close, self._file)
            self.answers = self._read()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def append(self, answer: Mapping[str, Any]) -> None:
        """Write an answer; after an error the file is as it was.

        Raises:
            OSError: it cannot be written.
        """
        line = json.dumps(answer).encode() + b"\n"
        end = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
            os.fsync(self._file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, end)
            raise
        self.answers[answer["key"]] = dict(answer)

    def _read(self) -> dict[str, dict[str, Any]]:
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.ftruncate(self._file, end)
        found = {}
        for number, line in enumerate(content[:end].splitlines(), 1):
            try:
                answer = json.loads(line)
                found[str(answer["key"])] = dict(answer)
            except (ValueError, TypeError, KeyError, RecursionError):
                raise ValueError(
                    f"Expected an answer of a chat endpoint in line {number} of {self.path}, got "
                    f"{line[:60]!r}. Remove this line: its request is sent again."
                ) from None
        return found
