"""The HTTP server around one teacher."""

from __future__ import annotations

import contextlib
import hmac
import threading
from collections.abc import Callable, Iterator
from typing import Any

from hf_distill.cache.manifest import public
from hf_distill.serving.answers import Answers, Refused, plain_object
from hf_distill.serving.completions import Completions
from hf_distill.serving.handler import JSON, HTTPServer, to_json
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.wire import CONTENT_TYPE

MAX_BYTES = 1 << 30


class TeacherServer:
    """Lets any number of trainings ask one teacher over HTTP.

    ``GET /teacher`` and ``POST /signal`` are for `RemoteTeacher`: any head, all that the teacher
    provides. For causal language models ``/v1/models``, ``/v1/completions`` and ``/tokenize``
    answer as vLLM does, for `ServerTeacher` and others. ``GET /health`` says how busy it is. The
    teacher runs one batch at a time; nothing that is sent is ever executed or unpickled.

    Args:
        teacher: The model.
        host: Where it listens; by default on this machine alone.
        port: 0: a free one.
        max_pending: How many requests may run or wait; more are told to come back (503).
        tokenizer: Of a language model, so that prompts may be texts and tokens have names.
        name: The model's name for the OpenAI protocol; by default its id or its folder's name.
        token: What clients must send (``Authorization: Bearer …``); None: nothing.
        max_bytes: The largest request.

    Raises:
        OSError: it cannot listen there.
        ValueError: no `ModelTeacher`, or a number out of its range.
    """

    def __init__(
        self,
        teacher: ModelTeacher,
        host: str = "127.0.0.1",
        port: int = 0,
        max_pending: int = 16,
        *,
        tokenizer: Any = None,
        name: str | None = None,
        token: str | None = None,
        max_bytes: int = MAX_BYTES,
    ):
        if max_pending < 1 or max_bytes < 1 or token == "":
            raise ValueError(
                f"Expected max_pending >= 1, max_bytes >= 1 and no empty token, got "
                f"max_pending={max_pending}, max_bytes={max_bytes}."
            )
        if not isinstance(teacher, ModelTeacher):
            raise ValueError(f"Expected a ModelTeacher to serve, got {type(teacher).__name__}.")
        facts = teacher.describe()
        self.name = name or str(public(facts["name"] or facts["architecture"]))
        self.max_bytes = max_bytes
        self._answers = Answers(teacher)
        self._completions = Completions(teacher, tokenizer, self.name)
        self._token = None if token is None else f"Bearer {token}".encode()
        self._places = threading.BoundedSemaphore(max_pending)
        self._model = threading.Lock()
        self._pending, self._max_pending = 0, max_pending
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

    # ---- what the handler asks -----------------------------------------------------------------

    def allows(self, authorization: str | None) -> bool:
        """Whether a request may be served; takes as long whatever was sent."""
        given = (authorization or "").encode("utf-8", "replace")
        return self._token is None or hmac.compare_digest(given, self._token)

    def find(self, method: str, path: str) -> tuple[Callable[[bytes], bytes], str]:
        """What serves a path, and the content type of the answer.

        Raises:
            Refused: nothing does.
        """
        routes: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
            "/health": ("GET", lambda _: to_json(self._health()), JSON),
            "/teacher": ("GET", lambda _: to_json(self._answers.facts()), JSON),
            "/teacher/vocabulary": (
                "GET",
                lambda _: self._answers.vocabulary(),
                "application/gzip",
            ),
            "/v1/models": ("GET", lambda _: to_json(self._completions.models()), JSON),
            "/signal": ("POST", self._answers.signal, CONTENT_TYPE),
            "/tokenize": (
                "POST",
                lambda body: to_json(self._completions.tokenize(plain_object(body))),
                JSON,
            ),
            "/v1/completions": (
                "POST",
                lambda body: to_json(self._completions.complete(plain_object(body))),
                JSON,
            ),
        }
        if path not in routes:
            raise Refused(404, f"There is no {path}; there are {sorted(routes)}.")
        wanted, answer, kind = routes[path]
        if method != wanted:
            raise Refused(405, f"Expected {wanted} for {path}, got {method}.")
        return answer, kind

    def _health(self) -> dict[str, Any]:
        return {"status": "ok", "pending": self._pending, "max_pending": self._max_pending}

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the model.

        Raises:
            Refused: too many wait already.
        """
        if not self._places.acquire(blocking=False):
            raise Refused(503, f"{self._max_pending} requests are waiting already.")
        self._count(1)
        try:
            with self._model:
                yield
        finally:
            self._count(-1)
            self._places.release()

    def _count(self, change: int) -> None:
        with self._http.lock:
            self._pending += change
