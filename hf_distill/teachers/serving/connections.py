"""Connections of a `TeacherServer`: their number and replacement."""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

logger = logging.getLogger(__name__)

MOST = 512
"""Connections, each of which has a thread. One more takes the place of the one that has been silent
or sending for the longest time."""
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Connections(ThreadingHTTPServer):
    """A listening socket, a bounded number of connections, and a thread for each.

    Args:
        address: Host and port; port 0: a free one.
        handler: What serves a connection; it calls `engaged` while it works on a request.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[socketserver.BaseRequestHandler]):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._waiting: dict[socket.socket, None] = {}  # the longest first
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # not HTTPServer's, which looks up its own name and may wait for a name server
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

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
        with self.lock:
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
        with self.lock:
            self._open.discard(request)
            self._waiting.pop(request, None)
        super().shutdown_request(request)

    @contextlib.contextmanager
    def engaged(self, connection: socket.socket) -> Iterator[None]:
        """Context that protects a connection during the work on its request."""
        with self.lock:
            self._waiting.pop(connection, None)
        try:
            yield
        finally:
            with self.lock:
                if connection in self._open:
                    self._waiting[connection] = None

    def close_connections(self) -> None:
        """Shut all of them; their threads end."""
        with self.lock:
            for connection in self._open:
                _shut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        level = logging.INFO if isinstance(error, OSError) else logging.ERROR
        logger.log(level, "connection to %s ended: %r", client_address, error, exc_info=level > 20)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
