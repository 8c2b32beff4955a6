"""A `TeacherServer` against too much at once: prompts, connections, bodies, time."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from raw_http import get, opened, post
from strangers import GOOD, IDS, OWN, Counted, posted, signal_body
from tally import Tally

from hf_distill.teachers.serving import TeacherServer, connections, handler


def test_a_long_request_lets_others_go_between(texts: str, writer: Counted) -> None:
    """One request of many prompts kept all others waiting until it was done: 24 s for 4,000."""
    writer.seconds = 0.02
    many = {"model": "tiny", "prompt": [[5, 6, 7]] * 100, "max_tokens": 1}
    done: list[float] = []
    thread = threading.Thread(
        target=lambda: (post(texts, "/v1/completions", many), done.append(time.monotonic()))
    )
    with Tally("server: floods") as attacks:
        try:
            thread.start()
            while writer.calls == 0 or get(texts, "/health")[1]["pending"] == 0:
                time.sleep(0.005)
            for index in range(3):
                with attacks.attack(f"beside 100 prompts, {index}"):
                    before = writer.calls
                    assert post(texts, "/v1/completions", many | {"prompt": [5]})[0] == 200
                    assert writer.calls - before <= 6  # its own, and few of the others
            with attacks.attack("before the long one is done"):
                assert not done
                assert writer.most == 1  # and they do take turns
        finally:
            thread.join()
            writer.seconds = 0.0


@contextlib.contextmanager
def crowd(url: str, number: int, beginning: bytes) -> Iterator[list[Any]]:
    """So many connections that have begun a request and do not go on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(opened(url)) for _ in range(number)]
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.sendall(beginning)
        yield sockets


def test_connections_are_bounded(teacher: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection is a thread: thousands that only wait would fill the memory."""
    monkeypatch.setattr(connections, "MOST", 12)
    beginnings = {"nothing": b"", "half a head": GOOD[:20], "half a body": posted(
        "Content-Length: 50000\r\n", "x")}  # fmt: skip
    with Tally("server: floods") as attacks:
        for what, beginning in beginnings.items():
            with TeacherServer(teacher) as server, attacks.attack(f"60 connections with {what}"):
                before = threading.active_count()
                with crowd(server.url, 60, beginning):
                    began = time.monotonic()
                    assert get(server.url, "/health")[0] == 200
                    assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 200
                    assert time.monotonic() - began < 5
                    time.sleep(0.2)  # the threads of those that gave way end
                    assert threading.active_count() - before <= 14
                assert get(server.url, "/health")[0] == 200


def test_requests_have_a_deadline(teacher: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout of each read alone is never reached by a client that sends a byte now and then."""
    monkeypatch.setattr(handler, "TIME", 0.4)
    heads = {"head": GOOD[:9], "fields": b"GET /health HTTP/1.1\r\n", "body": posted(
        "Content-Length: 999\r\n")}  # fmt: skip
    with TeacherServer(teacher) as server, Tally("server: floods") as attacks:
        for what, beginning in heads.items():
            with attacks.attack(f"a {what} that drips"), opened(server.url) as sock:
                began = time.monotonic()
                with contextlib.suppress(OSError):
                    sock.sendall(beginning)
                    while time.monotonic() - began < 8:
                        sock.sendall(b"a")
                        time.sleep(0.05)
                assert time.monotonic() - began < 4
        with attacks.attack("an answer that is not taken"), opened(server.url) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wanted = f"GET /teacher HTTP/1.1\r\n{OWN}\r\n".encode() * 2000
            began = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - began < 12:
                    sock.sendall(wanted)
            assert time.monotonic() - began < 8


def test_bodies_share_a_budget(teacher: Counted) -> None:
    """24 connections that each hold 150 MB took 4.1 GB; what is held must be bounded, and small
    requests must get through all the same."""
    with TeacherServer(teacher, max_bytes=1 << 20) as server, Tally("server: floods") as attacks:
        half = posted(f"Content-Length: {1 << 20}\r\n", "x" * (600 << 10))
        with (
            attacks.attack("12 bodies of 1 MiB, of which 0.6 have come"),
            crowd(server.url, 12, half) as sockets,
        ):
            time.sleep(0.3)
            assert 0 < server.http.bodies.held <= 1 << 20
            assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 200
            told = 0
            for sock in sockets:
                sock.settimeout(0.2)
                with contextlib.suppress(OSError):
                    told += b" 503 " in sock.recv(100)
            assert told >= 10
        with attacks.attack("and all is given back"):
            began = time.monotonic()
            while server.http.bodies.held and time.monotonic() - began < 5:
                time.sleep(0.02)
            assert server.http.bodies.held == 0
        announced = posted(f"Content-Length: {1 << 20}\r\n", "")
        with attacks.attack("bodies that are only announced"), crowd(server.url, 12, announced):
            assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 200
            assert server.http.bodies.held == 0


CHILD = """
import sys
sys.path[:0] = sys.argv[1:]
import torch, transformers
torch.set_num_threads(1)
from tests.teachers.remote.test_vllm_teacher import tokenizer
from hf_distill.teachers.serving import TeacherServer
from hf_distill.teachers import ModelTeacher
sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
config = transformers.LlamaConfig(vocab_size=40, max_position_embeddings=64, **sizes)
teacher = ModelTeacher(transformers.LlamaForCausalLM(config))
server = TeacherServer(teacher, tokenizer=tokenizer(), name="tiny")
print(server.url, flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def child() -> Iterator[tuple[str, Path]]:
    """A server in a process of its own: its url, and where Linux tells of its memory."""
    tests = Path(__file__).resolve().parents[1]
    folders = [str(tests / "helpers"), str(tests.parent)]
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *folders], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), Path(f"/proc/{process.pid}")
    finally:
        process.kill()
        process.communicate()


def told(folder: Path, name: str) -> int:
    """A number of Linux's status file: VmHWM, the peak of the memory, is in kB."""
    lines = (folder / "status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")
def test_memory_and_patience_of_a_real_process(child: tuple[str, Path]) -> None:
    """9.6 GB for 96 kB of tokens, 4.1 GB for 24 bodies, 24 s of waiting behind 4,000 prompts, 4,003
    threads: the figures of the attack report, again."""
    url, folder = child
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, most), most))
    assert get(url, "/health")[0] == 200
    before = told(folder, "VmHWM")
    with Tally("server: memory and patience, in a process") as attacks:
        ids = torch.full((1, 12_000), 7)
        for name, batch in {
            "12,000 tokens": {"input_ids": ids},
            "12,000 tokens at position 0": {"input_ids": ids, "position_ids": ids * 0},
        }.items():
            needs = {"attentions": True, "hidden_states": True, "logits": True}
            with attacks.attack(name):
                assert post(url, "/signal", signal_body(batch, needs=needs))[0] == 400
                assert told(folder, "VmHWM") - before < 60_000
        many = {"model": "tiny", "prompt": [[5, 6, 7, 8] * 4] * 4000, "max_tokens": 1}
        for number in (4000, 256):
            with attacks.attack(f"others beside {number} prompts"):
                request = many | {"prompt": many["prompt"][:number], "prompt_logprobs": 3}
                thread = threading.Thread(target=post, args=(url, "/v1/completions", request))
                thread.start()
                waited = []
                while thread.is_alive() or len(waited) < 3:
                    began = time.monotonic()
                    one = many | {"prompt": [5, 6], "prompt_logprobs": 3}
                    assert post(url, "/v1/completions", one)[0] == 200
                    waited.append(time.monotonic() - began)
                assert sorted(waited)[len(waited) // 2] < 0.5
                assert max(waited) < 1.0
        before = told(folder, "VmHWM")
        body = posted(f"Content-Length: {150 << 20}\r\n", "") + bytes(149 << 20)
        with attacks.attack("24 bodies of 150 MB held open"), contextlib.ExitStack() as stack:
            threads = [
                threading.Thread(target=held, args=(stack.enter_context(opened(url)), body))
                for _ in range(24)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert get(url, "/health")[0] == 200
            assert told(folder, "VmHWM") - before < 1_300_000  # kB: max_bytes is 1 GiB
        with attacks.attack("4,000 connections"), crowd(url, 4000, GOOD[:20]):
            began = time.monotonic()
            assert get(url, "/health")[0] == 200
            assert time.monotonic() - began < 1.0
            assert told(folder, "Threads") < 600
        with attacks.attack("and all of them closed at once"):
            began = time.monotonic()
            assert get(url, "/health")[0] == 200
            assert time.monotonic() - began < 1.0


def held(sock: socket.socket, body: bytes) -> None:
    """Send what the server takes, and keep the connection."""
    sock.settimeout(20)
    with contextlib.suppress(OSError):
        sock.sendall(body)
