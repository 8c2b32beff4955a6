"""Chat servers of others on the loopback, each in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TRANSFORMERS = "from transformers.cli.transformers import main; main()"


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str], folder: Path, port: int, path: str) -> Iterator[Path]:
    """A server that answers at a path; its log."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.3)
        yield log
    finally:
        process.kill()
        process.wait()


@contextmanager
def transformers_serve(folder: Path, model: str, port: int | None = None) -> Iterator[str]:
    """``transformers serve`` of the model in this folder; its address."""
    port = port or free_port()
    options = ["serve", model, "--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]
    with running([sys.executable, "-c", TRANSFORMERS, *options], folder, port, "/health"):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def llama_cpp(folder: Path, gguf: Path) -> Iterator[str]:
    """llama-cpp-python's server, which keeps all logits; its address."""
    port = free_port()
    options = ["--model", str(gguf), "--port", str(port), "--host", "127.0.0.1"]
    options += ["--logits_all", "true", "--n_ctx", "512", "--model_alias", "SmolLM2"]
    with running([sys.executable, "-m", "llama_cpp.server", *options], folder, port, "/v1/models"):
        yield f"http://127.0.0.1:{port}/v1"
