"""HTTP/1.1 for a `TeacherServer`: access, limits and errors."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from hf_distill.teachers.remote.deadlines import Deadline, reader, send
from hf_distill.teachers.serving.connections import JSON, HTTPServer, Route
from hf_distill.teachers.serving.limits import FREE, BadRequest

logger = logging.getLogger(__name__)

REQUEST = re.compile(rb"[A-Z]{1,20} [!-~]+ HTTP/[0-9]\.[0-9]\r?\n")
FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r?\n")
LONGEST = 1 << 16
"""Bytes of all header fields together."""
IDLE = 300.0
"""Seconds after which a silent connection is closed; a client opens another one."""
TIME = 60.0
"""Seconds to receive a request, and to send its answer."""
PACE = float(1 << 20)
"""Bytes per second by which long requests and answers get more time."""
LINGER = 2.0
"""Seconds in which a rejected client's body is still read, so that it receives the error."""


def to_json(content: Any) -> bytes:
    return json.dumps(content).encode()


class Handler(BaseHTTPRequestHandler):
    """The requests of one connection, one after the other."""

    protocol_version = "HTTP/1.1"
    server_version = "hf_distill"
    sys_version = ""
    disable_nagle_algorithm = True
    server: HTTPServer
    rfile: Any

    def setup(self) -> None:
        super().setup()
        self.requestline = ""
        self._deadline = Deadline(IDLE)
        self.rfile.close()
        self.rfile = reader(self.connection, self._deadline)

    def handle_one_request(self) -> None:
        self.close_connection = True
        self._deadline.set(IDLE)
        if not self.rfile.peek(1):
            return
        self._deadline.set(TIME)
        try:
            self._parse()
            length = _body_length(self.headers)
        except BadRequest as refused:
            self._refuse(refused, close=True)
        else:
            self._serve(self.command, length)

    def _parse(self) -> None:
        """Read the head: strictly first, then by the standard library."""
        line = self.rfile.readline(1 << 16)
        if not REQUEST.fullmatch(line):
            raise BadRequest(f"Expected an HTTP/1.1 request, got {line[:80]!r}.")
        self.raw_requestline, incoming = line, self.rfile
        self.rfile = io.BytesIO(_read_fields(incoming))
        try:
            self.parse_request()
        finally:
            self.rfile = incoming
        if self.request_version != "HTTP/1.0" and len(self.headers.get_all("Host") or []) != 1:
            raise BadRequest("Expected one Host field.")

    def send_error(self, code: int, message: str | None = None, explain: Any = None) -> None:
        """Send an error of the standard library and close the connection."""
        raise BadRequest(message or "This is not served.", int(code))

    def handle_expect_100(self) -> bool:
        return True  # when its body is read

    def _serve(self, method: str, length: int) -> None:
        self._deadline.set(TIME + length / PACE)
        try:
            route = self._route(method, length)
        except BadRequest as refused:
            taken = refused.status != 413 and not self.headers.get("Expect")
            if taken:  # so that the client, which reads only after sending, receives the reason
                for _ in self._parts(length):
                    pass
            self._refuse(refused, close=not taken)
            return
        with self.server.bodies.share() as take:
            try:
                body = self._body(length, take)
            except BadRequest as refused:
                self._refuse(refused, close=True)
                return
            with self.server.engaged(self.connection):
                try:
                    self._answer(route, body)
                except BadRequest as refused:
                    self._refuse(refused)

    def _route(self, method: str, length: int) -> Route:
        """Find the route of this request before its body is read, or raise BadRequest."""
        server, headers = self.server, self.headers
        if not server.accepts(headers.get("Host"), headers.get("Origin")):
            raise BadRequest(
                f"Expected this machine's own name, got Host {headers.get('Host')!r} and Origin "
                f"{headers.get('Origin')!r}: pages of other sites could ask so. If it is that of a "
                "proxy, serve with --allow-host NAME (allowed_hosts=[…]).",
                403,
            )
        if not server.allows(headers.get("Authorization")):
            raise BadRequest("Expected the token this server was started with.", 401)
        try:
            path = urlsplit(self.path).path
        except ValueError as error:
            raise BadRequest(f"Expected a path, got {self.path[:80]!r} ({error}).") from error
        route = server.find(method, path)
        if length > route.most:
            raise BadRequest(
                f"Expected a request of at most {route.most} bytes, got {length}.", 413
            )
        if route.method == "POST":
            server.line.check()
        return route

    def _body(self, length: int, take: Callable[[int], None]) -> bytes:
        """Read the body; bytes beyond a free part are charged to the budget as they arrive."""
        if self.headers.get("Expect", "").lower() == "100-continue":
            send(self.connection, b"HTTP/1.1 100 Continue\r\n\r\n", self._deadline)
        whole = io.BytesIO()  # which releases its bytes without a copy
        for part in self._parts(length):
            if (more := whole.tell() + len(part) - max(whole.tell(), FREE)) > 0:
                take(more)
            whole.write(part)
        return whole.getvalue()

    def _parts(self, length: int) -> Iterator[bytes]:
        while length > 0:
            part = self.rfile.read1(min(length, 1 << 20))
            if not part:
                raise ConnectionError("the request ended early")
            length -= len(part)
            yield part

    def _answer(self, route: Route, body: bytes) -> None:
        server, waits = self.server, route.method == "POST"
        with server.replies.share() as take:
            try:
                with server.line.place() if waits else contextlib.nullcontext():
                    content = route.answer(body, self._turn)
            except (BadRequest, ConnectionError, TimeoutError):  # of a disconnected client
                raise
            except Exception as error:
                logger.exception("%s %s failed", self.command, self.path)
                raise server.failed(error) from error
            take(len(content))
            self._reply(200, content, route.kind)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with self.server.line.turn():
            self.connection.settimeout(0)
            with contextlib.suppress(BlockingIOError):  # the client is there, and sends nothing
                if not self.connection.recv(1, socket.MSG_PEEK):
                    raise ConnectionError("nobody waits for the answer")
            yield

    def _refuse(self, refused: BadRequest, close: bool = False) -> None:
        self.close_connection |= close
        status = refused.status
        extra = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status, {})
        error = {"message": refused.reason, "type": "error", "code": status}
        self._reply(status, to_json({"error": error}), JSON, extra)
        if close:
            self._linger()

    def _reply(
        self, status: int, content: bytes, kind: str, extra: Mapping[str, str] | None = None
    ) -> None:
        fields = {
            "Server": self.server_version,
            "Date": self.date_time_string(),
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            **(extra or {}),
            **({"Connection": "close"} if self.close_connection else {}),
        }
        phrase = self.responses.get(status, ("",))[0]
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
        logger.debug("%s %s: %d", self.client_address, self.requestline, status)
        self._deadline.set(TIME + len(content) / PACE)
        head = "\r\n".join(lines).encode("latin-1")
        first = head + content[: 1 << 16]  # mostly all of it, in one packet
        send(self.connection, first, self._deadline)
        send(self.connection, memoryview(content)[1 << 16 :], self._deadline)

    def _linger(self) -> None:
        """Read the rest of the request: closing the socket earlier sends a reset, and the client
        never reads why."""
        self._deadline.set(LINGER)
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while self.rfile.read1(1 << 16):
                pass


# ---- the head of a request (RFC 9112): what two parsers could read as two requests is refused ----


def _read_fields(file: BinaryIO) -> bytes:
    """Read the header fields, the empty line included. Raises BadRequest on a line that is not a
    field (a blank before the colon, a continuation line, a control character), or too many bytes.
    """
    fields: list[bytes] = []
    left = LONGEST
    while left > 0:
        line = file.readline(left + 1)
        left -= len(line)
        if line in (b"\r\n", b"\n"):
            return b"".join([*fields, line])
        if not line.endswith(b"\n") and left >= 0:
            raise ConnectionError("the request ended early")
        if left >= 0 and not FIELD.fullmatch(line):
            raise BadRequest(f"Expected a header field like 'Name: value', got {line[:80]!r}.")
        fields.append(line)
    raise BadRequest(f"Expected at most {LONGEST} bytes of header fields.", 431)


def _body_length(headers: Any) -> int:
    """The length of the body that follows; BadRequest if it is not given once, as a number."""
    lengths = headers.get_all("Content-Length") or []
    coded = headers.get_all("Transfer-Encoding") or []
    if len(lengths) > 1 or (lengths and coded) or len(coded) > 1:
        raise BadRequest("Expected one Content-Length and no Transfer-Encoding, got several.")
    if coded:
        raise BadRequest("Expected a Content-Length, got a Transfer-Encoding.", 411)
    if not lengths:
        return 0
    digits = lengths[0].strip(" \t")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise BadRequest(f"Expected a Content-Length in digits, got {digits[:40]!r}.")
    return int(digits)
