"""HTTP/1.1 for a `TeacherServer`: who may ask, how much may be sent, what an error looks like."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import urlsplit

from hf_distill.serving.answers import Refused

logger = logging.getLogger(__name__)

JSON = "application/json"
IDLE = 300.0
"""Seconds after which a silent connection is closed; a client opens another one."""


class Owner(Protocol):
    """What is served."""

    max_bytes: int

    def allows(self, authorization: str | None) -> bool: ...

    def find(self, method: str, path: str) -> tuple[Callable[[bytes], bytes], str]: ...

    def turn(self) -> contextlib.AbstractContextManager[None]: ...


def to_json(content: Any) -> bytes:
    return json.dumps(content).encode()


class HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], owner: Owner):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.owner, self.lock = owner, threading.Lock()
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # not HTTPServer's, which looks up its own name and may wait for a name server
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def close_connections(self) -> None:
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.info("connection to %s ended: %r", client_address, sys.exc_info()[1])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "hf_distill"
    sys_version = ""
    timeout = IDLE
    disable_nagle_algorithm = True
    wbufsize = -1
    server: HTTPServer

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections.add(self.connection)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            with self.server.lock:
                self.server.connections.discard(self.connection)

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        owner, path = self.server.owner, urlsplit(self.path).path
        try:
            if not owner.allows(self.headers.get("Authorization")):
                self._skip_body()
                raise Refused(401, "Expected the token this server was started with.")
            body = self._body()
            answer, kind = owner.find(method, path)
            if method == "POST":
                with owner.turn():
                    if self._is_gone():
                        return
                    content = answer(body)
            else:
                content = answer(body)
        except Refused as refused:
            self._refuse(refused.status, refused.reason)
        except (ConnectionError, TimeoutError):  # the client's: there is nobody to tell
            raise
        except Exception as error:
            logger.exception("%s %s failed", method, path)
            self._refuse(500, f"{type(error).__name__}: {error}")
        else:
            self._reply(200, content, kind)

    def _length(self) -> int:
        """The length of the body.

        Raises:
            Refused: it is not said, or too long; the connection is closed after that.
        """
        said = self.headers.get("Content-Length")
        chunked = "Transfer-Encoding" in self.headers
        if said is None and not chunked:
            return 0
        limit = self.server.owner.max_bytes
        if chunked or said is None or not said.isdecimal():
            self.close_connection = True
            raise Refused(411, "Expected a Content-Length.")
        if int(said) > limit:
            self.close_connection = True
            raise Refused(413, f"Expected a request of at most {limit} bytes, got {said}.")
        return int(said)

    def _body(self) -> bytes:
        length = self._length()
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError("the request ended early")
        return body

    def _skip_body(self) -> None:
        """Read what an unknown client sends, without keeping it, so that it reads the refusal."""
        left = self._length()
        while left > 0 and (part := self.rfile.read(min(left, 1 << 16))):
            left -= len(part)

    def _is_gone(self) -> bool:
        """Whether the client has closed the connection: it has stopped waiting."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        if not readable:
            return False
        self.close_connection = True
        return not self.connection.recv(1, socket.MSG_PEEK)

    def _refuse(self, status: int, reason: str) -> None:
        extra = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status, {})
        error = {"message": reason, "type": "error", "code": status}
        self._reply(status, to_json({"error": error}), JSON, extra)

    def _reply(
        self, status: int, content: bytes, kind: str, extra: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
