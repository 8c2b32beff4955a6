"""Contexts that restore the random states at their end."""

import contextlib
import random
from collections.abc import Iterable, Iterator

import numpy as np
import torch


@contextlib.contextmanager
def same_randomness(devices: Iterable[int] | None = None) -> Iterator[None]:
    """Restore the random states of Python, NumPy, torch's CPU and CUDA devices (None: all)."""
    python, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices if devices is None else sorted(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)


@contextlib.contextmanager
def same_torch_randomness(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Restore torch's random states of the CPU and of one device; start from ``seed`` if given."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        if seed is not None:
            torch.manual_seed(seed)
        yield
