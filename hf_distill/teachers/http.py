"""HTTP with kept connections, a deadline, and retries: what a teacher on a server is asked with."""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import ssl
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

LONGEST_WAIT = 600.0
"""Seconds: a server that asks for more (Retry-After) is given up at once."""
EXCERPT = 500
STALE = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)
"""How a kept connection ends that the server has closed meanwhile."""


class Answer(NamedTuple):
    """An HTTP response, read to its end; ``headers`` has lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def excerpt(self) -> str:
        """What the body says: the message of an error in JSON, or its beginning."""
        text = self.body.decode("utf-8", "replace").strip()
        try:
            error: Any = json.loads(text)
            if isinstance(error, dict):
                error = error.get("error") or error.get("message") or error.get("detail") or error
            text = error["message"] if isinstance(error, dict) and "message" in error else error
        except ValueError:
            pass
        return str(text)[:EXCERPT]


class Client:
    """Asks one server; several threads may use it at once.

    Every request must be one that may be repeated. Refused and broken connections, timeouts, 408,
    429 and 5xx are tried again after ``backoff * 2**n`` seconds with jitter, or after what the
    server asks for (Retry-After).

    Args:
        url: ``http(s)://host[:port][/path]``.
        timeout: Seconds for one attempt, the whole answer included.
        retries: How many more attempts there are after the first.
        backoff: Seconds before the first of them.
        token: Sent as ``Authorization: Bearer …``; shown nowhere.

    Raises:
        ValueError: a wrong url, or a number out of its range.
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
    ) -> Answer | None:
        """Ask, until there is an answer.

        Args:
            method: GET or POST.
            path: Below the url, with its slash.
            body: What is sent.
            kind: Its content type.
            missing_ok: Return None where the server has no such path (404, 405).

        Raises:
            ConnectionError: no answer after all attempts.
            ValueError: the server refuses the request (4xx).
        """
        for attempt in range(self.retries + 1):
            wait = self.backoff * 2**attempt * self._random.uniform(0.5, 1.0)
            try:
                answer = self._attempt(method, path, body, kind)
            except (OSError, http.client.HTTPException) as error:
                failed = f"{type(error).__name__}: {error}"
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
            if attempt < self.retries:
                time.sleep(wait)
        raise ConnectionError(
            f"{method} {self.url}{path}: no answer in {attempt + 1} attempt(s) with a timeout of "
            f"{self.timeout:g} s; the last one: {failed}\nCheck that the server runs and can be "
            "reached from this machine, look at its log, or raise timeout and retries."
        )

    def json(
        self, method: str, path: str, content: Any = None, missing_ok: bool = False
    ) -> dict[str, Any] | None:
        """As `request`, with an object of JSON each way.

        Raises:
            ValueError: the answer is no JSON object.
        """
        body = None if content is None else json.dumps(content).encode()
        answer = self.request(method, path, body, missing_ok=missing_ok)
        if answer is None:
            return None
        try:
            found = json.loads(answer.body)
        except ValueError:  # UnicodeDecodeError too
            found = None
        if not isinstance(found, dict):
            raise ValueError(
                f"Expected a JSON object from {method} {self.url}{path}, got "
                f"{answer.excerpt[:200]!r}. Check that the url is that of the server's root."
            )
        return found

    def _attempt(self, method: str, path: str, body: bytes | None, kind: str) -> Answer:
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        if kept is not None:
            try:
                return self._exchange(kept, method, path, body, kind)
            except STALE:
                pass  # it was closed while idle: that says nothing of the server
        return self._exchange(self._connection(), method, path, body, kind)

    def _connection(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=self.timeout)
        secure = ssl.create_default_context()
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self.timeout, context=secure
        )

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        kind: str,
    ) -> Answer:
        """One request and its whole answer within the timeout; the connection is kept if it can."""
        deadline = time.monotonic() + self.timeout
        headers = self._headers | ({} if body is None else {"Content-Type": kind})
        try:
            if connection.sock is not None:
                connection.sock.settimeout(self.timeout)
            connection.request(method, self._path + path, body, headers)
            sock = connection.sock
            _set_timeout(sock, deadline)
            response = connection.getresponse()
            whole = []
            while not response.isclosed():
                _set_timeout(sock, deadline)
                whole.append(response.read1(1 << 20))
                if not whole[-1]:
                    break
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
        except BaseException:
            connection.close()
            raise
        found = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, found, b"".join(whole))
        response.close()
        if response.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append(connection)
        return answer


def _set_timeout(sock: Any, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    sock.settimeout(left)


def _close_all(connections: list[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def _retry_after(answer: Answer) -> float:
    """The seconds that a server asks to wait: 0 if it does not."""
    value = answer.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _remedy(answer: Answer) -> str:
    said = answer.excerpt.lower()
    if answer.status in (401, 403):
        return "The server wants another token: pass token=…, the key it was started with."
    if answer.status == 404:
        return "Check the url and the model's name; GET /v1/models of the server lists them."
    if answer.status == 413:
        return "The batch is too large for the server: send fewer or shorter examples at once."
    if "logprobs" in said and ("max" in said or "greater" in said):
        return "Start the server with a higher limit (vLLM: --max-logprobs), or lower top_k."
    return "The server refuses this request; its message says why."


def _without_secrets(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"…@{tail}" if at else head + tail
