"""A `TeacherServer` against too much at once: prompts, connections, bodies, time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import small
from raw_http import get, opened, post
from strangers import GOOD, IDS, OWN, Counted, posted, signal_body
from tally import Tally
from test_server_teacher import tokenizer

from hf_distill.serving import TeacherServer, connections, handler


@pytest.fixture(scope="module")
def teacher() -> Counted:
    return Counted(small.models()[1])


@pytest.fixture(scope="module")
def writer() -> Counted:
    return Counted(small.models("causal_lm")[1])


@pytest.fixture(scope="module")
def texts(writer: Counted) -> Iterator[str]:
    with TeacherServer(writer, tokenizer=tokenizer(), name="tiny") as server:
        yield server.url


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
            assert 0 < server.bodies.held <= 1 << 20
            assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 200
            told = 0
            for sock in sockets:
                sock.settimeout(0.2)
                with contextlib.suppress(OSError):
                    told += b" 503 " in sock.recv(100)
            assert told >= 10
        with attacks.attack("and all is given back"):
            began = time.monotonic()
            while server.bodies.held and time.monotonic() - began < 5:
                time.sleep(0.02)
            assert server.bodies.held == 0
        announced = posted(f"Content-Length: {1 << 20}\r\n", "")
        with attacks.attack("bodies that are only announced"), crowd(server.url, 12, announced):
            assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 200
            assert server.bodies.held == 0
