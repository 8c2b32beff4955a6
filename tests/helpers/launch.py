"""Run a function of a test file in processes of its own, as a real launcher does."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
TIMEOUT = 300
"""Seconds after which all processes are ended."""
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",  # or accelerate picks NCCL where there is a GPU
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def launch(
    function: Callable[..., None],
    *arguments: str | Path,
    processes: int = 1,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Call ``function(*arguments)`` in new processes (gloo, CPU) and wait for all of them.

    Args:
        function: A module-level function of a test file or helper.
        *arguments: What it is called with, as strings.
        processes: How many; with more than one, `torch.distributed.run` starts them.
        environment: Other variables than `ENVIRONMENT`'s.

    Returns:
        What they wrote, standard output and errors together.

    Raises:
        AssertionError: one failed or was too slow; the message holds the end of what was written.
    """
    command = [sys.executable]
    if processes > 1:  # --standalone lets the system choose a free port
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(processes)]
    command += [
        __file__,
        function.__module__,
        function.__name__,
        json.dumps([*map(str, arguments)]),
    ]
    own = {**os.environ, **ENVIRONMENT, **({} if environment is None else environment)}
    if "ACCELERATE_USE_CPU" not in (environment or {}):  # plain processes, as torchrun starts them
        own.pop("ACCELERATE_USE_CPU", None)
    own["PYTHONPATH"] = os.pathsep.join(
        [str(FOLDER), str(FOLDER.parent), str(ROOT), own.get("PYTHONPATH", "")]
    )
    started = subprocess.Popen(
        command,
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = started.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        started.terminate()  # torch.distributed.run passes it on to its processes
        output, _ = started.communicate()
        raise AssertionError(_story(command, f"took over {TIMEOUT} s", output)) from None
    if started.returncode != 0:
        raise AssertionError(_story(command, f"ended with {started.returncode}", output))
    return output


def _story(command: list[str], what: str, output: str) -> str:
    return f"`{' '.join(command[1:])}` {what}:\n{output[-6000:]}"


def main(module: str, function: str, arguments: str) -> None:
    """Inside a started process: set it up as conftest.py does, and call the function."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    called = getattr(importlib.import_module(module), function)
    gc.freeze()
    called(*json.loads(arguments))
    if not torch.distributed.is_initialized():
        return
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Done. A gloo thread that frees tensors takes the interpreter's lock, and aborts the process if
    # the interpreter is ending just then (torch 2.13, Python 3.11; one run in ten under load).
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
