"""Processes of a launch, also without an accelerator.

accelerate (1.15) joins the processes of `torchrun`, of Ray, … on CPUs only with ``cpu=True``;
otherwise each runs alone without a warning and would train or write all.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator, PartialState


def launched_on_cpus() -> bool:
    """True for one of several launched processes that have no accelerator.

    A launch is recognised by ``WORLD_SIZE``, or by a process group that exists; ValueError where
    the processes cannot find each other.
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        size = distributed.get_world_size()
        if size > 1:  # accelerate reads the variables
            os.environ.setdefault("WORLD_SIZE", str(size))
            os.environ.setdefault("RANK", str(distributed.get_rank()))
            os.environ.setdefault("MASTER_ADDR", "localhost")  # they have met already
        return size > 1 and not torch.accelerator.is_available()
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size <= 1 or torch.accelerator.is_available():
        return False
    missing = [name for name in ("RANK", "MASTER_ADDR") if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"Expected {' and '.join(missing)} beside WORLD_SIZE={size} in the environment, as the "
            f"processes find each other by that. Start them with `torchrun --nproc_per_node "
            f"{size}`, or unset WORLD_SIZE for one process alone."
        )
    return True


def process_state() -> PartialState:
    """State of accelerate with all processes of the launch; ValueError where they cannot find each
    other, or accelerate was started before without the others."""
    together = launched_on_cpus()
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on", "y", "t")
    state = PartialState(cpu=True) if together or asked else PartialState()
    if together and state.num_processes == 1:
        raise ValueError(
            f"Expected {os.environ['WORLD_SIZE']} processes (WORLD_SIZE), got an `Accelerator`, "
            "`PartialState` or `TrainingArguments` that was made before and knows of one: on CPUs "
            "accelerate joins processes only if it is told to. Make it with cpu=True (arguments: "
            "use_cpu=True), or set ACCELERATE_USE_CPU=true."
        )
    return state


def make_accelerator(**options: Any) -> Accelerator:
    """An `accelerate.Accelerator` with these options over all processes; errors:
    `process_state`."""
    process_state()
    return Accelerator(**options)
