"""The HTTP server around one teacher."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Sequence
from typing import Any

from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.cache.manifest import public
from hf_distill.teachers.remote.wire import CONTENT_TYPE
from hf_distill.teachers.serving.answers import RequestHandler, plain_object
from hf_distill.teachers.serving.completions import Completions
from hf_distill.teachers.serving.failures import is_device_failure
from hf_distill.teachers.serving.handler import HTTPServer, Route, to_json
from hf_distill.teachers.serving.hosts import is_loopback, is_own_name
from hf_distill.teachers.serving.limits import FREE, BadRequest, Budget, Limits, Line

JSON_BYTES = 16 << 20
"""The largest request in JSON, which takes up to 20 times as much once it is parsed."""
REPLIES = 4
"""The multiple of `Limits.max_bytes` that may be waiting to be taken by clients."""


class TeacherServer:
    """HTTP server of one teacher for any number of trainings.

    ``GET /teacher`` and ``POST /signal`` are for `HTTPTeacher`: any head, all outputs. For causal
    language models ``/v1/models``, ``/v1/completions`` and ``/tokenize`` answer like vLLM, for
    `VLLMTeacher` and others. ``GET /health`` returns the load, or status 503 if the device is lost.
    The teacher runs one batch at a time, or one prompt of a request for completions; nothing that
    is sent is executed or unpickled.

    Args:
        teacher: The model.
        host: Address to listen on; by default the loopback.
        port: 0: a free one.
        max_pending: Requests that may run or wait; further ones get status 503.
        tokenizer: Tokenizer of a language model, so that prompts may be texts and tokens have
            names.
        name: The model's name for the OpenAI protocol; by default its id or its folder's name.
        token: Token of clients (``Authorization: Bearer …``); None: none.
        max_bytes: The largest request, and the memory of all requests at once.
        max_tokens: Tokens of a request, padding included.
        max_elements: Numbers in an answer: logits of every token, hidden states, maps.
        no_token: Serve other machines without a token. Anyone who reaches the port can use it.
        allowed_hosts: Further host names permitted on the loopback, those of a proxy.

    Raises:
        OSError: it cannot listen there.
        ValueError: not a `ModelTeacher`, a number out of its range, or no token for other machines.
    """

    def __init__(
        self,
        teacher: ModelTeacher,
        host: str = "127.0.0.1",
        port: int = 0,
        max_pending: int = Limits.max_pending,
        *,
        tokenizer: Any = None,
        name: str | None = None,
        token: str | None = None,
        max_bytes: int = Limits.max_bytes,
        max_tokens: int = Limits.max_tokens,
        max_elements: int = Limits.max_elements,
        no_token: bool = False,
        allowed_hosts: Sequence[str] = (),
    ):
        limits = Limits(max_pending, max_bytes, max_tokens, max_elements)
        if not isinstance(teacher, ModelTeacher):
            raise ValueError(f"Expected a ModelTeacher to serve, got {type(teacher).__name__}.")
        check_token(host, token, no_token)
        facts = teacher.describe()
        self.name = name or str(public(facts["name"] or facts["architecture"]))
        self._answers = RequestHandler(teacher, limits)
        self._completions = Completions(teacher, tokenizer, self.name, limits)
        self._token = None if token is None else f"Bearer {token}".encode()
        self._names = None if not is_loopback(host) else (host, *allowed_hosts)
        self._lost: str | None = None
        self.line = Line(max_pending)
        self.bodies = Budget(max_bytes, "Other requests")
        self.replies = Budget(REPLIES * max_bytes, "Other answers")
        self._routes = self._make_routes(max_bytes)
        self._http = HTTPServer((host, port), self)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        host = self._http.server_name
        return f"http://{f'[{host}]' if ':' in host else host}:{self._http.server_port}"

    def start(self) -> TeacherServer:
        """Serve from a thread."""
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()
        return self

    def serve_forever(self) -> None:
        """Serve from here, until `close` is called or this is interrupted."""
        self._http.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        """Stop, and close every connection."""
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join()
            self._thread = None
        self._http.server_close()
        self._http.close_connections()

    def __enter__(self) -> TeacherServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- interface of the handler --------------------------------------------------------------

    def allows(self, authorization: str | None) -> bool:
        """Check the token of a request, in constant time."""
        given = (authorization or "").encode("utf-8", "replace")
        return self._token is None or hmac.compare_digest(given, self._token)

    def accepts(self, host: str | None, origin: str | None) -> bool:
        """Check the Host and Origin of a request on the loopback."""
        if self._names is None:
            return True
        return all(is_own_name(name, self._names) for name in (host, origin) if name is not None)

    def find(self, method: str, path: str) -> Route:
        """Find the route of a path.

        Raises:
            Refused: nothing does, or nothing any more.
        """
        if path not in self._routes:
            raise BadRequest(404, f"There is no {path[:80]}; there are {sorted(self._routes)}.")
        route = self._routes[path]
        if method != route.method:
            raise BadRequest(405, f"Expected {route.method} for {path}, got {method}.")
        if self._lost is not None and (method == "POST" or path == "/health"):
            raise BadRequest(503, self._lost)
        return route

    def failed(self, error: BaseException) -> BadRequest:
        """The rejection for an error of the machine; after a device error nothing is served any
        more."""
        if is_device_failure(error):
            self._lost = f"The device is lost, restart the server: {error}"[:500]
        return BadRequest(500, f"{type(error).__name__}: {error}")

    def _make_routes(self, max_bytes: int) -> dict[str, Route]:
        small = min(max_bytes, JSON_BYTES)
        own, open_ai = self._answers, self._completions
        return {
            "/health": Route("GET", lambda *_: to_json(self._health()), most=FREE),
            "/teacher": Route("GET", lambda *_: to_json(own.facts()), most=FREE),
            "/teacher/vocabulary": Route(
                "GET", lambda *_: own.vocabulary(), "application/gzip", FREE
            ),
            "/v1/models": Route("GET", lambda *_: to_json(open_ai.models()), most=FREE),
            "/signal": Route("POST", own.signal, CONTENT_TYPE, max_bytes),
            "/tokenize": Route(
                "POST",
                lambda body, turn: to_json(open_ai.tokenize(plain_object(body), turn)),
                most=small,
            ),
            "/v1/completions": Route(
                "POST",
                lambda body, turn: to_json(open_ai.complete(plain_object(body), turn)),
                most=small,
            ),
        }

    def _health(self) -> dict[str, Any]:
        return {"status": "ok", "pending": self.line.taken, "max_pending": self.line.places}


def check_token(host: str, token: str | None, no_token: bool) -> None:
    """Raise if other machines would be served without a token, unless requested.

    Args:
        host: Address to listen on.
        token: Token of clients.
        no_token: True if requested.

    Raises:
        ValueError: the host is not the loopback, and there is no token; or an empty one.
    """
    if token is not None and not token.strip():
        raise ValueError("Expected no empty token: it would let everyone in.")
    if token is None and not no_token and not is_loopback(host):
        raise ValueError(
            f"Expected a token, because anyone who reaches {host or 'this machine'} could ask this "
            "teacher. Give one (--token-env NAME, or token=…), listen on 127.0.0.1, or insist: "
            "--no-token (no_token=True)."
        )
