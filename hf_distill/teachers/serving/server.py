"""The HTTP server around one teacher."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from hf_distill.models.signals import BatchItems, Needs, Signal, SparseProbs
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.cache import manifest
from hf_distill.teachers.remote import wire
from hf_distill.teachers.serving.completions import Completions
from hf_distill.teachers.serving.connections import HTTPServer, Route, is_loopback
from hf_distill.teachers.serving.handler import Handler, to_json
from hf_distill.teachers.serving.inputs import Indices, check_batch
from hf_distill.teachers.serving.limits import FREE, BadRequest, Limits, Turn, reading

JSON_BYTES = 16 << 20
"""The largest request in JSON, which takes up to 20 times as much once it is parsed."""


class TeacherServer:
    """HTTP server of one teacher for any number of trainings.

    ``GET /teacher`` and ``POST /signal`` are for `HTTPTeacher`: any head, all outputs. For causal
    language models ``/v1/models``, ``/v1/completions`` and ``/tokenize`` answer like vLLM, for
    `VLLMTeacher` and others. ``GET /health`` returns the load, or status 503 if the device is lost.
    The teacher runs one batch or prompt at a time; nothing that is sent is executed or unpickled.

    Args:
        teacher: The model.
        host: Address to listen on; by default the loopback.
        port: 0: a free one.
        max_pending: Requests that may run or wait; further ones get status 503.
        tokenizer: Tokenizer of a language model: prompts may be texts, and tokens have names.
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
        self.name = name or str(manifest.public(facts["name"] or facts["architecture"]))
        open_ai = Completions(teacher, tokenizer, self.name, limits)
        routes = self._routes(RequestHandler(teacher, limits), open_ai, max_bytes)
        self.http = HTTPServer((host, port), Handler, routes, limits, token, allowed_hosts)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        host = self.http.server_name
        return f"http://{f'[{host}]' if ':' in host else host}:{self.http.server_port}"

    def start(self) -> TeacherServer:
        """Serve from a thread."""
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()
        return self

    def serve_forever(self) -> None:
        """Serve from here, until `close` is called or this is interrupted."""
        self.http.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        """Stop, and close every connection."""
        if self._thread is not None:
            self.http.shutdown()
            self._thread.join()
            self._thread = None
        self.http.server_close()
        self.http.close_connections()

    def __enter__(self) -> TeacherServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _routes(
        self, own: RequestHandler, open_ai: Completions, max_bytes: int
    ) -> dict[str, Route]:
        small = min(max_bytes, JSON_BYTES)
        return {
            "/health": Route("GET", self._health, most=FREE),
            "/teacher": Route("GET", lambda *_: to_json(own.facts()), most=FREE),
            "/teacher/vocabulary": Route(
                "GET", lambda *_: own.vocabulary(), "application/gzip", FREE
            ),
            "/v1/models": Route("GET", lambda *_: to_json(open_ai.models()), most=FREE),
            "/signal": Route("POST", own.signal, wire.CONTENT_TYPE, max_bytes),
            "/tokenize": Route("POST", _json(open_ai.tokenize), most=small),
            "/v1/completions": Route("POST", _json(open_ai.complete), most=small),
        }

    def _health(self, *_: object) -> bytes:
        line = self.http.line
        return to_json({"status": "ok", "pending": line.taken, "max_pending": line.places})


def _json(answer: Callable[[Any, Turn], Any]) -> Callable[[bytes, Turn], bytes]:
    """Handler of requests in JSON; BadRequest for a body that is no JSON object."""

    def encoded(body: bytes, turn: Turn) -> bytes:
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"Expected JSON: {error}") from error
        if not isinstance(found, dict):
            raise BadRequest(f"Expected a JSON object, got a {type(found).__name__}.")
        return to_json(answer(found, turn))

    return encoded


def check_token(host: str, token: str | None, no_token: bool) -> None:
    """Raise ValueError for an empty token, or for none if others than the loopback would be served
    without one, unless that was requested (``no_token``)."""
    if token is not None and not token.strip():
        raise ValueError("Expected no empty token: it would let everyone in.")
    if token is None and not no_token and not is_loopback(host):
        raise ValueError(
            f"Expected a token, because anyone who reaches {host or 'this machine'} could ask this "
            "teacher. Give one (--token-env NAME, or token=…), listen on 127.0.0.1, or insist: "
            "--no-token (no_token=True)."
        )


# ---- requests ---------------------------------------------------------------------------------


class RequestHandler:
    """Requests of `HTTPTeacher` for one teacher."""

    def __init__(self, teacher: ModelTeacher, limits: Limits):
        self.teacher, self.limits = teacher, limits
        # neither a graph can be sent, nor hidden states for logits: the head would be needed there
        self.provides = replace(teacher.provides, inputs=False, lazy_logits=False)
        self._fingerprint = manifest.teacher_fingerprint(teacher)
        tokens = teacher.tokens()
        self._vocabulary = manifest.tokenizer_fingerprint(tokens)
        self._tokens = b"" if tokens is None else gzip.compress(json.dumps(dict(tokens)).encode())

    def facts(self) -> dict[str, Any]:
        """Facts for a client before the first batch."""
        teacher = self.teacher
        return {
            "protocol": wire.PROTOCOL,
            "describe": manifest.public(teacher.describe()),
            "task": teacher.task_model.task.name,
            "provides": wire.needs_to_json(self.provides),
            "columns": sorted(teacher.columns()),
            "config": manifest.config_values(teacher.config),
            "fingerprint": self._fingerprint,
            "vocabulary": self._vocabulary,
        }

    def vocabulary(self) -> bytes:
        """Token -> id as JSON, compressed with gzip; BadRequest if it is not known."""
        if not self._tokens:
            raise BadRequest("This teacher has no tokenizer.", 404)
        return self._tokens

    def signal(self, body: bytes, turn: Turn) -> bytes:
        """The signal for a batch; BadRequest for one that this teacher cannot serve."""
        with turn():  # before unpacking: one batch at a time
            try:
                request = wire.from_bytes(body)
                batch, items = request["batch"], wire.items_from_tree(request["items"])
                needs, k = wire.needs_from_json(request["needs"]), request["top_k"]
            except wire.UNREADABLE as error:
                raise BadRequest(f"Malformed request: {error}") from error
            unknown = self._check(batch, items, needs, k)
            with reading(), Indices() if unknown else contextlib.nullcontext():
                signal = self._ask(batch, items, needs)
            if not needs.logits:
                signal = replace(signal, logits=None)  # the largest part, which was not requested
            elif k is not None:
                signal = replace(signal, logits=None, sparse=likeliest(signal, k))
            return wire.to_bytes(
                {"signal": wire.signal_to_tree(signal), "fingerprint": self._fingerprint}
            )

    def _ask(self, batch: dict[str, Tensor], items: BatchItems, needs: Needs) -> Signal:
        device, dtype = self.teacher.task_model.model.device, self.teacher.task_model.model.dtype
        batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
        batch, masks = send_to_device((batch, dict(items.masks)), device)
        labels = None if items.labels is None else items.labels.to(device)
        return self.teacher(batch, needs, replace(items, masks=masks, labels=labels))

    def _check(self, batch: Any, items: BatchItems, needs: Needs, k: Any) -> list[str]:
        if missing := needs.missing_from(self.provides):
            raise BadRequest(f"This teacher does not provide {missing}.")
        if k is not None and (type(k) is not int or k < 1):
            raise BadRequest(f"Expected top_k of at least 1, or null, got {k!r}.")
        return check_batch(self.teacher, batch, items, needs, self.limits)


def likeliest(signal: Signal, k: int) -> SparseProbs:
    """The k most likely classes of every item, and the mass of all others, in at least float32."""
    if signal.logits is None or signal.kind not in ("softmax", "ctc"):
        raise BadRequest(f"top_k is for the logits of a softmax, these are {signal.kind!r}.")
    logits = signal.logits
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_all = logits.log_softmax(-1, dtype=dtype)
    classes = log_all.shape[-1]
    log_probs, ids = log_all.topk(min(k, classes), dim=-1)
    others = log_all.scatter(-1, ids, -torch.inf)
    return SparseProbs(ids, log_probs, others.logsumexp(-1), classes)
