"""A chat endpoint on the loopback, by the rules of OpenAI's protocol, that fails as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], dict[str, Any]]
"""Request -> one choice: ``message``, ``finish_reason``, ``logprobs``."""


def says(text: str, finish: str = "stop", **more: Any) -> dict[str, Any]:
    """A choice with this text."""
    message = {"role": "assistant", "content": text}
    return {"index": 0, "message": message, "finish_reason": finish, **more}


def sentiment(request: dict[str, Any]) -> dict[str, Any]:
    """ "positive" if the last message has the word good."""
    return says("Positive." if "good" in request["messages"][-1]["content"] else "negative")


@dataclass
class Fault:
    """What happens in place of an answer.

    Attributes:
        kind: ``status`` (of ``status``, with ``headers`` and ``body``), ``body`` (status 200, with
            ``body``), ``hang`` (for ``seconds``), ``cut`` (the connection, in the answer), ``drip``
            (a byte every 50 ms).
        times: How often.
    """

    kind: str
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    seconds: float = 0.0


class ChatServer:
    """The server.

    Attributes:
        requests: The bodies of all requests, in order.
        headers: Their headers.
        times: When they came, in seconds.
        faults: Used up in order, one per request.
    """

    def __init__(self, reply: Reply = sentiment, delay: float = 0.0, usage: bool = True):
        self.reply, self.delay, self.usage = reply, delay, usage
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.paths: list[str] = []
        self.faults: list[Fault] = []
        self.under_way = self.most = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                owner.handle(self)

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}/v1"

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        request = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        with self.lock:
            self.requests.append(request)
            self.headers.append(dict(http.headers.items()))
            self.times.append(time.monotonic())
            self.paths.append(http.path)
            fault = self.faults[0] if self.faults else None
            if fault is not None:
                fault.times -= 1
                if not fault.times:
                    self.faults.pop(0)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            time.sleep(self.delay)
            if fault is None:
                send(http, 200, json.dumps(self.completion(request)).encode())
            else:
                self.fail(http, fault)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.lock:
                self.under_way -= 1

    def fail(self, http: BaseHTTPRequestHandler, fault: Fault) -> None:
        if fault.kind == "hang":
            self.closing.wait(fault.seconds)
            http.close_connection = True
        elif fault.kind in ("cut", "drip"):
            http.send_response(200)
            http.send_header("Content-Length", "1000")
            http.end_headers()
            end = time.monotonic() + fault.seconds
            while fault.kind == "drip" and time.monotonic() < end and not self.closing.wait(0.05):
                http.wfile.write(b" ")
                http.wfile.flush()
            http.close_connection = True
        else:
            send(http, 200 if fault.kind == "body" else fault.status, fault.body, fault.headers)

    def completion(self, request: dict[str, Any]) -> dict[str, Any]:
        choice = self.reply(request)
        prompt = sum(len(message["content"].split()) for message in request["messages"])
        answer = len((choice["message"]["content"] or "").split())
        usage = {"prompt_tokens": prompt, "completion_tokens": answer}
        found = {"id": "c", "object": "chat.completion", "created": 0, "model": request["model"]}
        found |= {"choices": [choice]}
        if self.usage:
            found["usage"] = usage | {"total_tokens": prompt + answer}
        return found


def send(
    http: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    http.send_response(status)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        http.send_header(name, value)
    http.send_header("Content-Length", str(len(body)))
    http.end_headers()
    http.wfile.write(body)


@contextmanager
def chat_server(
    reply: Reply = sentiment, delay: float = 0.0, usage: bool = True
) -> Iterator[ChatServer]:
    """A running server."""
    server = ChatServer(reply, delay, usage)
    thread = threading.Thread(target=server.httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.httpd.shutdown()
        thread.join()
        server.httpd.server_close()
