"""Sockets with a moment until which all must be done, however many reads that takes."""

from __future__ import annotations

import io
import math
import socket
import time
from typing import Any


class Deadline:
    """A number of seconds from now; every operation of a socket gets the time that is left.

    The timeouts of http.client, urllib3 and httpx hold for each single read: a peer that sends one
    byte now and then never exceeds them.
    """

    def __init__(self, seconds: float = math.inf):
        self.set(seconds)

    def set(self, seconds: float) -> None:
        """Move it to this many seconds from now."""
        self.moment = time.monotonic() + seconds

    def apply(self, sock: socket.socket) -> None:
        """Let the next operation of a socket take what is left, or raise TimeoutError."""
        left = self.moment - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        sock.settimeout(None if left == math.inf else left)


class _Incoming(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: Deadline):
        self.sock, self.deadline = sock, deadline
        self.raw = sock.makefile("rb", buffering=0)  # counted: the socket is open as long as this

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self.deadline.apply(self.sock)
        return self.raw.readinto(buffer)

    def close(self) -> None:
        self.raw.close()
        super().close()


def reader(sock: socket.socket, deadline: Deadline) -> io.BufferedReader:
    """Open what a socket receives until a deadline as a file."""
    return io.BufferedReader(_Incoming(sock, deadline))


def send(sock: socket.socket, content: bytes | memoryview, deadline: Deadline) -> None:
    """Send data, or raise TimeoutError at the deadline."""
    left = memoryview(content)
    while left:
        deadline.apply(sock)
        left = left[sock.send(left) :]


def connect(host: str, port: int, deadline: Deadline) -> socket.socket:
    """Connect to the first address of a host that answers, within the deadline; the name look-up
    has the system's limits instead."""
    failed: OSError = OSError(f"{host} has no address")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            deadline.apply(sock)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as error:
            sock.close()
            failed = error
    raise failed


class Timed:
    """A socket for http.client, all of whose reading and sending ends at its deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline):
        self.sock, self.deadline = sock, deadline

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return reader(self.sock, self.deadline)

    def sendall(self, content: bytes) -> None:
        send(self.sock, content, self.deadline)

    def close(self) -> None:
        self.sock.close()
