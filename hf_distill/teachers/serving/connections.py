"""The socket of a `TeacherServer`: a bounded number of connections, access, paths and budgets."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from http.server import ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hf_distill.teachers.serving.limits import (
    BadRequest,
    Budget,
    Limits,
    Line,
    Turn,
    is_device_failure,
)

logger = logging.getLogger(__name__)

JSON = "application/json"
MOST = 512
"""Connections, each of which has a thread. One more takes the place of the one that has been silent
or sending for the longest time."""
REPLIES = 4
"""The multiple of `Limits.max_bytes` that may be waiting to be taken by clients."""
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Route(NamedTuple):
    """A served path: its method, body and turn -> body of the answer, the answer's content type,
    and the bytes of the largest body."""

    method: str
    answer: Callable[[bytes, Turn], bytes]
    kind: str = JSON
    most: int = 0


class HTTPServer(ThreadingHTTPServer):
    """A listening socket, a bounded number of connections, and a thread for each, in which the
    ``handler`` serves it; `engaged` protects it while it works on a request."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[socketserver.BaseRequestHandler],
        routes: Mapping[str, Route],
        limits: Limits,
        token: str | None,
        allowed_hosts: Sequence[str],
    ):
        self.routes, self.lost = routes, ""
        self.line = Line(limits.max_pending)
        self.bodies = Budget(limits.max_bytes, "Other requests")
        self.replies = Budget(REPLIES * limits.max_bytes, "Other answers")
        self._token = None if token is None else f"Bearer {token}".encode()
        self._names = (address[0], *allowed_hosts) if is_loopback(address[0]) else None
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._waiting: dict[socket.socket, None] = {}  # the longest first
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # not HTTPServer's, which looks up its own name and may wait for a name server
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    # ---- connections -------------------------------------------------------------------------

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._admit(request):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.send(BUSY)
        self.shutdown_request(request)

    def _admit(self, request: socket.socket) -> bool:
        """Register a connection, in place of the longest silent one if the limit is reached."""
        with self._lock:
            if len(self._open) >= MOST:
                oldest = next(iter(self._waiting), None)
                if oldest is None:
                    return False
                _shut(oldest)  # its thread ends
                del self._waiting[oldest]
                self._open.discard(oldest)
            self._open.add(request)
            self._waiting[request] = None
            return True

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
            self._waiting.pop(request, None)
        super().shutdown_request(request)

    @contextlib.contextmanager
    def engaged(self, connection: socket.socket) -> Iterator[None]:
        """Context that protects a connection during the work on its request."""
        with self._lock:
            self._waiting.pop(connection, None)
        try:
            yield
        finally:
            with self._lock:
                if connection in self._open:
                    self._waiting[connection] = None

    def close_connections(self) -> None:
        """Shut all of them; their threads end."""
        with self._lock:
            for connection in self._open:
                _shut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        level = logging.INFO if isinstance(error, OSError) else logging.ERROR
        logger.log(level, "connection to %s ended: %r", client_address, error, exc_info=level > 20)

    # ---- requests ----------------------------------------------------------------------------

    def allows(self, authorization: str | None) -> bool:
        """Check the token of a request, in constant time."""
        given = (authorization or "").encode("utf-8", "replace")
        return self._token is None or hmac.compare_digest(given, self._token)

    def accepts(self, host: str | None, origin: str | None) -> bool:
        """Check the Host and Origin of a request on the loopback."""
        names = self._names
        return names is None or all(is_own_name(n, names) for n in (host, origin) if n is not None)

    def find(self, method: str, path: str) -> Route:
        """Find the route of a path. Raises BadRequest without one, or if the device is lost."""
        if path not in self.routes:
            raise BadRequest(f"There is no {path[:80]}; there are {sorted(self.routes)}.", 404)
        route = self.routes[path]
        if method != route.method:
            raise BadRequest(f"Expected {route.method} for {path}, got {method}.", 405)
        if self.lost and (method == "POST" or path == "/health"):
            raise BadRequest(self.lost, 503)
        return route

    def failed(self, error: BaseException) -> BadRequest:
        """The rejection for an error of the machine; a device error ends all service."""
        if is_device_failure(error):
            self.lost = f"The device is lost, restart the server: {error}"[:500]
        return BadRequest(f"{type(error).__name__}: {error}", 500)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


# ---- host names ------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """True if every address of a host is a loopback address; "" are all addresses of this
    machine."""
    addresses = [host]
    if host and not _is_address(host):
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            return False
        addresses = [str(entry[4][0]) for entry in found]
    return all(_is_address(a) and ipaddress.ip_address(a).is_loopback for a in addresses)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_own_name(given: str, allowed: Collection[str]) -> bool:
    """True if a Host header ``host[:port]`` (or an Origin ``http://host[:port]``) names this
    machine or one of the allowed names.

    A page of another site can make a browser send requests to a server on the loopback under that
    site's name (DNS rebinding); under a loopback name it cannot read the answer.
    """
    try:
        parts = urlsplit(given if "://" in given else f"//{given}")
        name, _ = (parts.hostname or "").lower(), parts.port  # the port: only that it is one
    except ValueError:
        return False
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return False
    if name in {each.lower() for each in allowed} or name == "localhost":
        return True
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
