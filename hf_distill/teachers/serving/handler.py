"""HTTP/1.1 for a `TeacherServer`: access, limits and errors."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from hf_distill.teachers.remote.deadlines import Deadline, reader, send
from hf_distill.teachers.serving.connections import Connections
from hf_distill.teachers.serving.head import REQUEST, body_length, read_fields
from hf_distill.teachers.serving.limits import FREE, BadRequest, Budget, Line, Turn

logger = logging.getLogger(__name__)

JSON = "application/json"
IDLE = 300.0
"""Seconds after which a silent connection is closed; a client opens another one."""
TIME = 60.0
"""Seconds to receive a request, and to send its answer."""
PACE = float(1 << 20)
"""Bytes per second by which long requests and answers get more time."""
LINGER = 2.0
"""Seconds in which a rejected client's body is still read, so that it receives the error."""


class Route(NamedTuple):
    """A served path.

    Attributes:
        method: GET or POST.
        answer: Body and turn -> body of the answer.
        kind: Content type of the answer.
        most: Bytes of the largest body.
    """

    method: str
    answer: Callable[[bytes, Turn], bytes]
    kind: str = JSON
    most: int = 0


class Service(Protocol):
    """Interface of the served object."""

    line: Line
    bodies: Budget
    replies: Budget

    def allows(self, authorization: str | None) -> bool: ...

    def accepts(self, host: str | None, origin: str | None) -> bool: ...

    def find(self, method: str, path: str) -> Route: ...

    def failed(self, error: BaseException) -> BadRequest: ...


def to_json(content: Any) -> bytes:
    return json.dumps(content).encode()


class HTTPServer(Connections):
    def __init__(self, address: tuple[str, int], owner: Service):
        self.owner = owner
        super().__init__(address, _Handler)


class _LeftError(ConnectionError):
    """Error for a client that has disconnected."""


class _Handler(BaseHTTPRequestHandler):
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
            length = body_length(self.headers)
        except BadRequest as refused:
            self._refuse(refused, close=True)
        else:
            self._serve(self.command, length)

    def _parse(self) -> None:
        """Read the head: strictly first, then by the standard library."""
        line = self.rfile.readline(1 << 16)
        if not REQUEST.fullmatch(line):
            raise BadRequest(400, f"Expected an HTTP/1.1 request, got {line[:80]!r}.")
        self.raw_requestline, incoming = line, self.rfile
        self.rfile = io.BytesIO(read_fields(incoming))
        try:
            self.parse_request()
        finally:
            self.rfile = incoming
        if self.request_version != "HTTP/1.0" and len(self.headers.get_all("Host") or []) != 1:
            raise BadRequest(400, "Expected one Host field.")

    def send_error(self, code: int, message: str | None = None, explain: Any = None) -> None:
        """Send an error of the standard library and close the connection."""
        raise BadRequest(int(code), message or "This is not served.")

    def handle_expect_100(self) -> bool:
        return True  # when its body is read

    def _serve(self, method: str, length: int) -> None:
        owner = self.server.owner
        self._deadline.set(TIME + length / PACE)
        try:
            route = self._route(method, length)
        except BadRequest as refused:
            taken = refused.status != 413 and not self.headers.get("Expect")
            if taken:  # so that the client, which reads only after sending, receives the reason
                self._skip(length)
            self._refuse(refused, close=not taken)
            return
        with owner.bodies.share() as take:
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
        """Find the route of this request, before its body is read.

        Raises:
            Refused: nothing does, not for this client, not as much, or not now.
        """
        owner, headers = self.server.owner, self.headers
        if not owner.accepts(headers.get("Host"), headers.get("Origin")):
            raise BadRequest(
                403,
                f"Expected this machine's own name, got Host {headers.get('Host')!r} and Origin "
                f"{headers.get('Origin')!r}: pages of other sites could ask so. If it is that of a "
                "proxy, serve with --allow-host NAME (allowed_hosts=[…]).",
            )
        if not owner.allows(headers.get("Authorization")):
            raise BadRequest(401, "Expected the token this server was started with.")
        try:
            path = urlsplit(self.path).path
        except ValueError as error:
            raise BadRequest(400, f"Expected a path, got {self.path[:80]!r} ({error}).") from error
        route = owner.find(method, path)
        if length > route.most:
            raise BadRequest(
                413, f"Expected a request of at most {route.most} bytes, got {length}."
            )
        if route.method == "POST":
            owner.line.check()
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

    def _skip(self, length: int) -> None:
        for _ in self._parts(length):
            pass

    def _answer(self, route: Route, body: bytes) -> None:
        owner = self.server.owner
        with owner.replies.share() as take:
            try:
                if route.method == "POST":
                    with owner.line.place():
                        content = route.answer(body, self._turn)
                else:
                    content = route.answer(body, self._turn)
            except (BadRequest, ConnectionError, TimeoutError):  # of a disconnected client
                raise
            except Exception as error:
                logger.exception("%s %s failed", self.command, self.path)
                raise owner.failed(error) from error
            take(len(content))
            self._reply(200, content, route.kind)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with self.server.owner.line.turn():
            if self._is_gone():
                raise _LeftError("nobody waits for the answer")
            yield

    def _is_gone(self) -> bool:
        """True if the client has closed the connection."""
        self.connection.settimeout(0)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False

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
