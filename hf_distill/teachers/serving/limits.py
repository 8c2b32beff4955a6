"""Limits of a server's memory and computation, and errors: of requests, of the machine."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch

logger = logging.getLogger(__name__)

Turn = Callable[[], contextlib.AbstractContextManager[None]]
"""Context with exclusive use of the model."""
FREE = 1 << 16
"""Bytes of each body outside all budgets, so that small requests are read during large ones."""
PATIENCE = 600.0
"""Seconds that a request waits for the model, longer than any client waits."""
LOST = re.compile(
    r"(CUDA|HIP|XPU|MPS|cuBLAS|CUBLAS|cuDNN|CUDNN|NCCL)[ _]*(backend |kernel )?(error|STATUS)"
    r"|device-side assert|illegal memory access|unspecified launch failure",
    re.IGNORECASE,
)


class BadRequest(Exception):  # noqa: N818 - an answer, not a failure of the server
    """A request that is not served: the reason and an HTTP status."""

    def __init__(self, reason: str, status: int = 400):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Limits:
    """Limits of simultaneous requests, see `TeacherServer`; ``max_elements`` counts logits that are
    computed and not sent too, ``max_prompts`` the prompts of one request for completions."""

    max_pending: int = 16
    max_bytes: int = 1 << 30
    max_tokens: int = 1 << 17
    max_elements: int = 1 << 29
    max_prompts: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"Expected {field.name} >= 1, got {value!r}.")


class Budget:
    """Memory budget of ``most`` bytes; ``what`` holds them, for messages."""

    def __init__(self, most: int, what: str):
        self.most, self.what, self.held = most, what, 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Context with the share of one request: call it with each further number of bytes. The
        call raises BadRequest for too many."""
        mine = 0

        def take(more: int) -> None:
            nonlocal mine
            with self._lock:
                if self.held > mine and self.held + more > self.most:  # a single one fits
                    raise BadRequest(f"{self.what} take {self.held} bytes already.", 503)
                self.held += more
                mine += more

        try:
            yield take
        finally:
            with self._lock:
                self.held -= mine


class Line:
    """Queue before the model: a number of places, and turns in order."""

    def __init__(self, places: int):
        self.places, self.taken = places, 0
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise BadRequest if there is no place."""
        if self.taken >= self.places:
            raise BadRequest(f"{self.places} requests are waiting already.", 503)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Take a place, or raise BadRequest."""
        with self._lock:
            self.check()
            self.taken += 1
        try:
            yield
        finally:
            with self._lock:
                self.taken -= 1

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the model: first come, first served, also among the parts of requests. Raises
        BadRequest if it takes too long."""
        mine = threading.Event()
        with self._lock:
            self._waiting.append(mine)
            if self._waiting[0] is mine:
                mine.set()
        try:
            if not mine.wait(PATIENCE):
                raise BadRequest(f"The model was busy for {PATIENCE:.0f} s.", 503)
            yield
        finally:
            with self._lock:
                self._waiting.remove(mine)
                if self._waiting:
                    self._waiting[0].set()


# ---- errors of a forward ---------------------------------------------------------------------


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_memory(error: BaseException) -> bool:
    """True if memory ran out, of which there may be enough for another request."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def is_device_failure(error: BaseException) -> bool:
    """True if the device of this process is lost: later calls fail too."""
    accelerator = getattr(torch, "AcceleratorError", ())  # since PyTorch 2.8
    return any(
        isinstance(each, accelerator) or (isinstance(each, RuntimeError) and LOST.search(str(each)))
        for each in _causes(error)
        if "out of memory" not in str(each).lower()
    )


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Context of a forward: errors of the machine pass, others become a BadRequest."""
    try:
        yield
    except BadRequest:
        raise
    except Exception as error:
        if (
            isinstance(error, OSError)
            or is_device_failure(error)
            or any(map(_is_memory, _causes(error)))
        ):
            raise
        logger.info("a batch could not be read", exc_info=True)
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise BadRequest(f"The model cannot read this batch: {text}"[:2000]) from error
