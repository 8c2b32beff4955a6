"""What all tests share: no network, one thread, no chatter, warnings as errors."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from collections.abc import Generator
from typing import Any

# Before any import of huggingface_hub, transformers or tokenizers, which read them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
# Rewriting the assertions of 190 files takes longer than running half of them: keep the result.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
gc.disable()  # until the tests are collected: what is imported stays

import pytest  # noqa: E402

EVERY = 40
"""Tests after which what is alive is left out of garbage collection."""
_finished = 0


def pytest_configure(config: pytest.Config) -> None:
    """Set up a process that runs tests; the one that hands them out (-n) needs no imports."""
    if config.getoption("numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        return
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    _small_figures()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Trainer collects garbage at each start: leave what the imports made out of that."""
    done = yield
    gc.freeze()
    gc.enable()
    return done


def pytest_runtest_logfinish() -> None:
    """The modules that transformers imports on the way are what each collection looks through."""
    global _finished
    _finished += 1
    if _finished % EVERY == 0:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    import torch

    # Without a GPU, torch.manual_seed formats two stack traces for devices that are not there.
    gpu = torch.accelerator.is_available()
    torch.manual_seed(0) if gpu else torch.default_generator.manual_seed(0)


def _small_figures() -> None:
    """Draw figures coarsely and without a layout: labels in print quality took a third of the time
    of a tiny recipe. The fixture `whole_figures` undoes it for the tests that look at one."""
    try:
        from matplotlib.figure import Figure
    except ImportError:  # an extra of the package
        return
    save = Figure.savefig

    @functools.wraps(save)
    def small(self: Any, *args: Any, **options: Any) -> None:
        self.set_layout_engine("none")
        save(self, *args, **{**options, "dpi": 20})

    Figure.savefig = small  # type: ignore[method-assign]


@pytest.fixture
def whole_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures as users get them."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", Figure.savefig.__wrapped__)  # type: ignore[attr-defined]


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A suite started with & or nohup would hand that on to the processes that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
