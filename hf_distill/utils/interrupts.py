"""Reliable Ctrl-C: Python drops exceptions raised inside `__del__`."""

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

AGAIN = 0.05  # seconds after which an interrupt that was dropped comes again
_asked = False


def check() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed and something on the way has dropped it."""
    if _asked:
        raise KeyboardInterrupt


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Deliver every Ctrl-C within the block: a dropped one is raised again.

    Each raises KeyboardInterrupt, the second too, as without this. Does nothing outside the main
    thread, or where SIGINT has another handler or is ignored (``nohup``).
    """
    global _asked
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    hook, _asked, timers = sys.unraisablehook, False, list[threading.Timer]()

    def interrupt(*of_signal: Any) -> None:
        global _asked
        _asked = True
        raise KeyboardInterrupt

    def dropped(what: Any) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            timers.append(threading.Timer(AGAIN, _thread.interrupt_main))
            timers[-1].daemon = True
            timers[-1].start()
        else:
            hook(what)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = hook
        _asked = False
