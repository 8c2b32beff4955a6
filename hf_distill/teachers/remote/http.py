"""HTTP client of teachers on servers: kept connections, a deadline, retries."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import io
import json
import logging
import random
import ssl
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hf_distill.teachers.remote.deadlines import Deadline, Timed, connect

logger = logging.getLogger(__name__)

LONGEST_WAIT = 600.0
"""Longest accepted Retry-After, in seconds; with a longer one the request fails at once."""
LONG_WAIT = 30.0
"""Retry-After above which the wait is logged, in seconds."""
SMALL = 16 << 20
"""Largest answer in bytes, unless more was requested."""
EXCERPT = 500
STALE = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)
"""Errors of a kept connection that the server has closed."""


class Answer(NamedTuple):
    """An HTTP response, read to its end; ``headers`` has lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def excerpt(self) -> str:
        """The message of an error in JSON, or the beginning of the body; printable."""
        text = self.body[: 1 << 16].decode("utf-8", "replace").strip()
        with contextlib.suppress(ValueError, RecursionError):
            error: Any = json.loads(text)
            if isinstance(error, dict):
                error = error.get("error") or error.get("message") or error.get("detail") or error
            text = error["message"] if isinstance(error, dict) and "message" in error else error
        return printable(str(text)[:EXCERPT])


class OversizedError(ValueError):
    """An answer with more bytes than the request allows."""

    def __init__(self, most: int, got: Any):
        super().__init__(
            f"Expected an answer of at most {most} bytes, more than what was asked for can have, "
            f"got {got}. Check that the url is that of the teacher's server."
        )


def printable(text: str) -> str:
    """The same text, with escapes in place of what could move a terminal's cursor or hide text."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Client:
    """Client of one server, ``http(s)://host[:port][/path]``; several threads may use it at once.

    Every request must be idempotent. Refused and broken connections, timeouts, 408, 429 and 5xx are
    tried again, ``retries`` times, after ``backoff * 2**n`` seconds with jitter, or as the server
    requests (Retry-After). ``timeout`` are the seconds for one attempt, from connecting to the
    answer's last byte; ``token`` is sent as ``Authorization: Bearer …``, and never printed.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 0.5,
        token: str | None = None,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError(
                f"Expected a url like http://host:8000, got {_without_secrets(url)!r}. A password "
                "is given as token=…, not in the url."
            )
        if timeout <= 0 or retries < 0 or backoff < 0:
            raise ValueError(
                "Expected timeout > 0, retries >= 0 and backoff >= 0, got "
                f"timeout={timeout}, retries={retries}, backoff={backoff}."
            )
        if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
            raise ValueError("Expected a token of printable ASCII characters, got something else.")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._context = ssl.create_default_context() if self._secure else None
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._random = random.Random()  # its own: the global one belongs to the training
        weakref.finalize(self, _close_all, self._idle)

    def close(self) -> None:
        """Close the connections that are kept."""
        _close_all(self._idle)

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        kind: str = "application/json",
        missing_ok: bool = False,
        most: int = SMALL,
    ) -> Answer | None:
        """Send a request, with retries; None with ``missing_ok`` if the server does not have the
        path (404, 405).

        Raises:
            ConnectionError: no answer after all attempts.
            ValueError: the server rejects the request (4xx), or its answer has more than ``most``
                bytes.
        """
        for attempt in range(self.retries + 1):
            wait = self.backoff * 2**attempt * self._random.uniform(0.5, 1.0)
            try:
                answer = self._attempt(method, path, body, kind, most)
            except (OSError, http.client.HTTPException) as error:
                failed = printable(f"{type(error).__name__}: {error}"[:EXCERPT])
            except OversizedError as error:
                raise ValueError(f"{method} {self.url}{path}: {error}") from None
            else:
                if answer.status < 300:
                    return answer
                if missing_ok and answer.status in (404, 405):
                    return None
                failed = f"status {answer.status}: {answer.excerpt}"
                if answer.status < 500 and answer.status not in (408, 429):
                    raise ValueError(f"{method} {self.url}{path}: {failed}\n{_remedy(answer)}")
                wait = max(wait, _retry_after(answer))
                if wait > LONGEST_WAIT:
                    failed += f" (it asks for a break of {wait:.0f} s)"
                    break
                if wait > LONG_WAIT:
                    logger.warning("%s asks for a break of %.0f s: %s", self.url, wait, failed)
            if attempt < self.retries:
                time.sleep(wait)
        raise ConnectionError(
            f"{method} {self.url}{path}: no answer in {attempt + 1} attempt(s) with a timeout of "
            f"{self.timeout:g} s; the last one: {failed}\nCheck that the server runs and can be "
            "reached from this machine, look at its log, or raise timeout and retries."
        )

    def json(
        self, method: str, path: str, content: Any = None, **options: Any
    ) -> dict[str, Any] | None:
        """Send and receive JSON objects, see `request`; ValueError for another answer."""
        body = None if content is None else json.dumps(content).encode()
        answer = self.request(method, path, body, **options)
        if answer is None:
            return None
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):  # UnicodeDecodeError too
            found = None
        if not isinstance(found, dict):
            raise ValueError(
                f"Expected a JSON object from {method} {self.url}{path}, got "
                f"{answer.excerpt[:200]!r}. Check that the url is that of the server's root."
            )
        return found

    def _attempt(self, method: str, path: str, body: bytes | None, kind: str, most: int) -> Answer:
        """One request and its whole answer within the timeout; the connection is kept if it can."""
        deadline = Deadline(self.timeout)
        headers = self._headers | ({} if body is None else {"Content-Type": kind})
        request = (method, self._path + path, body, headers)
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        if kept is not None:
            with contextlib.suppress(*STALE):  # closed while idle, not a failure of the server
                return self._exchange(kept, deadline, most, request)
        return self._exchange(self._connection(deadline), deadline, most, request)

    def _connection(self, deadline: Deadline) -> http.client.HTTPConnection:
        port = self._port or (443 if self._secure else 80)
        sock = connect(self._host, port, deadline)
        try:
            if self._context is not None:
                deadline.apply(sock)
                sock = self._context.wrap_socket(sock, server_hostname=self._host)
        except BaseException:
            sock.close()
            raise
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port)
        connection.auto_open = 0
        connection.sock = Timed(sock, deadline)
        return connection

    def _exchange(
        self, connection: Any, deadline: Deadline, most: int, request: tuple[Any, ...]
    ) -> Answer:
        connection.sock.deadline = deadline
        try:
            with _sent(connection, *request) as response:
                whole = _whole(response, most)
        except BaseException:
            connection.close()
            raise
        found = {name.lower(): value for name, value in response.getheaders()}
        if response.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append(connection)
        return Answer(response.status, found, whole)


def _sent(connection: Any, *request: Any) -> http.client.HTTPResponse:
    """Send a request, and read the head of its answer: also of one that comes before all of the
    request was taken, because it is too large."""
    failed = None
    try:
        connection.request(*request)
    except (BrokenPipeError, ConnectionResetError) as error:
        failed = error
    try:
        response: http.client.HTTPResponse = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise failed or error from None
    return response


def _whole(response: http.client.HTTPResponse, most: int) -> bytes:
    """The body of an answer. Raises OversizedError for more than ``most`` bytes, IncompleteRead for
    an early end."""
    whole, length = io.BytesIO(), response.length
    if length is not None and length > most:
        raise OversizedError(most, length)
    while not response.isclosed() and (part := response.read1(1 << 20)):
        whole.write(part)  # not a list of parts, each of which may be of one byte
        if whole.tell() > most:
            raise OversizedError(most, "more")
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return whole.getvalue()


def _close_all(connections: list[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def _retry_after(answer: Answer) -> float:
    """Seconds of the Retry-After header; 0 without one."""
    value = answer.headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _remedy(answer: Answer) -> str:
    text = answer.excerpt.lower()
    if answer.status in (401, 403):
        return "The server wants another token: pass token=…, the key it was started with."
    if answer.status == 404:
        return "Check the url and the model's name; GET /v1/models of the server lists them."
    if answer.status == 413:
        return "The batch is too large for the server: send fewer or shorter examples at once."
    if "logprobs" in text and ("max" in text or "greater" in text):
        return "Start the server with a higher limit (vLLM: --max-logprobs), or lower top_k."
    return "The server refuses this request; its message says why."


def _without_secrets(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"…@{tail}" if at else head + tail
