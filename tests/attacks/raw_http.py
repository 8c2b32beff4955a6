"""Requests as bytes to a `TeacherServer`, and a server that answers with any bytes."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit


def opened(url: str, seconds: float = 20.0) -> socket.socket:
    """A connection to a server."""
    parts = urlsplit(url)
    return socket.create_connection((str(parts.hostname), int(parts.port or 0)), seconds)


def answers(url: str, request: bytes) -> list[tuple[int, bytes]]:
    """Status and body of every answer to these bytes."""
    with opened(url) as sock:
        with contextlib.suppress(OSError):  # closed before it had taken all of it
            sock.sendall(request)
        found = bytearray()
        with contextlib.suppress(ConnectionError):
            while not _whole(found) and (part := sock.recv(1 << 16)):
                found += part
            sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(1 << 16):
                found += part
    listed = []
    while found:
        head, _, rest = bytes(found).partition(b"\r\n\r\n")
        length = _length(head)
        listed.append((int(head.split()[1]), rest[:length]))
        found = bytearray(rest[length:])
    return listed


def _length(head: bytes) -> int:
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    return int(fields.get(b"content-length", b"0"))


def _whole(found: bytes) -> bool:
    head, end, rest = found.partition(b"\r\n\r\n")
    return bool(end) and len(rest) >= _length(bytes(head))


def post(url: str, path: str, body: bytes | Any, fields: str = "") -> tuple[int, Any]:
    """One request: status, and JSON or bytes."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    ((status, content),) = answers(url, head.encode("latin-1") + body)
    return status, json.loads(content) if content[:1] == b"{" else content


def get(url: str, path: str, fields: str = "Host: localhost\r\n") -> tuple[int, Any]:
    """One request without a body: status, and JSON or bytes."""
    ((status, content),) = answers(url, f"GET {path} HTTP/1.1\r\n{fields}\r\n".encode("latin-1"))
    return status, json.loads(content) if content[:1] == b"{" else content


@contextlib.contextmanager
def serving(serve: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """A server that reads each request and leaves the rest to a function of socket and request.

    Yields:
        Its url. At the end its sockets are closed, and its threads end.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    over, taken = threading.Event(), []

    def connection(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, ValueError):
            file = sock.makefile("rb")
            while not over.is_set() and (line := file.readline()):
                head = line
                while (field := file.readline()) not in (b"\r\n", b""):
                    head += field
                size = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
                serve(sock, head + b"\r\n" + file.read(int(size or 0)))

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                sock, _ = listener.accept()
                taken.append(sock)
                threading.Thread(target=connection, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for sock in taken:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def reply(sock: socket.socket, body: bytes, status: str = "200 OK", fields: str = "") -> None:
    """Send a whole answer."""
    head = f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)


def drip(sock: socket.socket, content: bytes, pause: float = 0.02) -> None:
    """Send byte by byte, until the other side has gone or for 4 seconds."""
    began = time.monotonic()
    for byte in content:
        if time.monotonic() - began > 4:
            break
        sock.sendall(bytes([byte]))
        time.sleep(pause)
    sock.shutdown(socket.SHUT_RDWR)
