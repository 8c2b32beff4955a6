"""Lines with a live status below them on a terminal; plain lines anywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TextIO

from hf_distill.cli.base import Say, say

PATIENCE = 1.0
"""Seconds without a line after which the status shows."""


@contextlib.contextmanager
def lines() -> Iterator[Say]:
    """What prints a line: a `Terminal` where somebody watches, else `say`."""
    dumb = os.environ.get("TERM", "dumb") == "dumb" and os.name != "nt"
    if not sys.stdout.isatty() or dumb or os.environ.get("RANK", "0") != "0":
        yield say
        return
    with Terminal() as terminal:
        yield terminal


class Terminal:
    """Prints lines, and below them what goes on and how long it has taken.

    What other code writes while this is entered stands above the status too.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        self._start, self._what = time.monotonic(), ""
        self._console = Console(file=sys.stdout)
        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self._below,
            console=self._console,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._stack = contextlib.ExitStack()
        self._process = os.getpid()

    def __enter__(self) -> Terminal:
        above: Any = _Above(sys.stdout, self._clear), _Above(sys.stderr, self._clear)
        self._stack.enter_context(contextlib.redirect_stdout(above[0]))
        self._stack.enter_context(contextlib.redirect_stderr(above[1]))
        self._stack.enter_context(self._live)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, line: str) -> None:
        """Print a line; the clock of the status begins anew."""
        self._start, self._what = time.monotonic(), ""
        self._console.print(line, markup=False, emoji=False, soft_wrap=True)

    def status(self, what: str) -> None:
        """Show what goes on until the next line."""
        self._what = what

    def _below(self) -> Any:
        seconds = int(time.monotonic() - self._start)
        if seconds < PATIENCE:
            return ""
        from rich.text import Text

        self._spinner.update(text=Text(f"{timedelta(seconds=seconds)} {self._what}".rstrip()))
        return self._spinner

    def _clear(self) -> None:
        from rich.control import Control
        from rich.segment import ControlType

        if self._live.is_started and os.getpid() == self._process:  # not in a fork: its lock
            erase = (ControlType.ERASE_IN_LINE, 2)
            self._console.control(Control(ControlType.CARRIAGE_RETURN, erase))


class _Above:
    """A stream that takes the status away before it begins a line."""

    def __init__(self, stream: TextIO, clear: Callable[[], None]):
        self._stream, self._clear, self._line_ended = stream, clear, True

    def write(self, text: str) -> int:
        if self._line_ended or text.startswith("\r"):
            self._clear()
        self._line_ended = text.endswith("\n")
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
