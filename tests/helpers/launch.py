"""Run a function of a test file in processes of its own.

A server that has imported torch and transformers forks them: the imports cost a new process several
times what its test does. A fork holds no state of the tests. What depends on the environment at an
import, on the launcher or on a hash seed per process needs `fresh` processes.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
PRELOADED = ("datasets", "peft", "tiny_trainers")
"""Imported by the server, with all that they import."""


def launch(
    function: Callable[..., None],
    *arguments: str | Path,
    processes: int = 1,
    environment: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> str:
    """Call ``function(*arguments)`` in new processes (gloo, CPU) and wait for all of them.

    Args:
        function: A module-level function of a test file or helper.
        *arguments: What it is called with, as strings.
        processes: How many.
        environment: Other variables than `ENVIRONMENT`'s; the processes are fresh then.
        fresh: Start new interpreters, with more than one process by `torch.distributed.run`,
            instead of forks.

    Returns:
        What they wrote, standard output and errors together.

    Raises:
        AssertionError: one failed or was too slow; the message holds the end of what was written.
    """
    words = [function.__module__, function.__name__, json.dumps([*map(str, arguments)])]
    variables = _variables(environment or {})
    with tempfile.NamedTemporaryFile("w+") as output:
        start = _start if fresh or environment else _fork
        ended = start(words, variables, processes, output.name)
        told = output.read()
    assert not ended, f"`{' '.join(words)}` {ended}:\n{told[-6000:]}"
    return told


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    own = {**os.environ, **ENVIRONMENT, **environment}
    if "ACCELERATE_USE_CPU" not in environment:  # plain processes, as torchrun starts them
        own.pop("ACCELERATE_USE_CPU", None)
    own["PYTHONPATH"] = os.pathsep.join(
        [str(FOLDER), str(FOLDER.parent), str(ROOT), own.get("PYTHONPATH", "")]
    )
    return own


def _start(words: list[str], variables: dict[str, str], processes: int, output: str) -> str:
    """Run new interpreters; what went wrong, or nothing."""
    command = [sys.executable]
    if processes > 1:  # --standalone lets the system choose a free port
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(processes)]
    with open(output, "w") as told:
        started = subprocess.Popen(
            [*command, __file__, *words], env=variables, stdout=told, stderr=told
        )
        try:
            code = started.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            started.terminate()  # torch.distributed.run passes it on to its processes
            started.wait()
            return f"took over {TIMEOUT} s"
    return f"ended with {code}" if code else ""


def _fork(words: list[str], variables: dict[str, str], processes: int, output: str) -> str:
    """Run forks of the server; what went wrong, or nothing."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps([words, variables, processes, output]), file=server.stdin, flush=True)
    answer = server.stdout.readline()
    assert answer, f"the server of {__file__} has ended with {server.wait()}"
    ended: str = json.loads(answer)
    return ended


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__],
        env=_variables({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # which ends it
    return server


def serve() -> None:
    """Fork the processes of each request and answer when they have ended."""
    for module in PRELOADED:
        importlib.import_module(module)
    prepare()
    for line in sys.stdin:
        words, variables, processes, output = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(processes):
            if (child := os.fork()) == 0:
                _become(variables | _place(rank, processes, port), output)
                main(*words)
                return
            children.append(child)
        print(json.dumps(_wait(children)), flush=True)


def _place(rank: int, processes: int, port: int) -> dict[str, str]:
    """The variables of `torch.distributed.run`."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    place |= {"LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
    return {name: str(value) for name, value in place.items()} if processes > 1 else {}


def _become(variables: dict[str, str], output: str) -> None:
    """Take over the environment and the streams of a process that was asked for."""
    os.environ.clear()
    os.environ.update(variables)
    told = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream, handle in ((0, os.open(os.devnull, os.O_RDONLY)), (1, told), (2, told)):
        os.dup2(handle, stream)


def _wait(children: list[int]) -> str:
    """Wait for all, and end them if one fails or is too slow; what went wrong, or nothing."""
    late, ended = time.monotonic() + TIMEOUT, ""
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            children.remove(child)
            code = os.waitstatus_to_exitcode(status)
            ended = ended or (f"ended with {code}" if code else "")
        elif time.monotonic() > late:
            ended = ended or f"took over {TIMEOUT} s"
        if ended:
            for other in children:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.01)
    return ended


def prepare() -> None:
    """Set a process up as conftest.py does."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    gc.freeze()


def main(module: str, function: str, arguments: str) -> None:
    """Inside a started process: call the function."""
    import torch

    called: Callable[..., Any] = getattr(importlib.import_module(module), function)
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
    if len(sys.argv) == 1:
        serve()
    else:
        prepare()
        main(*sys.argv[1:])
