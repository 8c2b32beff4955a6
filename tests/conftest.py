"""What all tests share: no network, one thread, no chatter, warnings as errors."""

from __future__ import annotations

import gc
import os
import signal

# Before any import of huggingface_hub, transformers or tokenizers, which read them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import pytest
import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


EVERY = 40
"""Tests after which what is alive is left out of garbage collection."""
_finished = 0


def pytest_collection_finish() -> None:
    """Trainer collects garbage at each start: leave what the imports made out of that."""
    gc.freeze()


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
    torch.manual_seed(0)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A suite started with & or nohup would hand that on to the processes that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
