"""Request handling for `HTTPTeacher`: facts and signals."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from hf_distill.models.signals import BatchItems, Needs, Signal, SparseProbs
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.cache.manifest import (
    config_values,
    public,
    teacher_fingerprint,
    tokenizer_fingerprint,
)
from hf_distill.teachers.remote.wire import (
    PROTOCOL,
    UNREADABLE,
    from_bytes,
    items_from_tree,
    needs_from_json,
    needs_to_json,
    signal_to_tree,
    to_bytes,
)
from hf_distill.teachers.serving.failures import reading
from hf_distill.teachers.serving.inputs import Indices, check_batch
from hf_distill.teachers.serving.limits import BadRequest, Limits, Turn


class RequestHandler:
    """Requests for one teacher.

    Args:
        teacher: The model.
        limits: Limits of requests.
    """

    def __init__(self, teacher: ModelTeacher, limits: Limits):
        self.teacher, self.limits = teacher, limits
        # neither a graph can be sent, nor hidden states for logits: the head would be needed there
        self.provides = replace(teacher.provides, inputs=False, lazy_logits=False)
        self._fingerprint = teacher_fingerprint(teacher)
        tokens = teacher.tokens()
        self._vocabulary = tokenizer_fingerprint(tokens)
        self._tokens = b"" if tokens is None else gzip.compress(json.dumps(dict(tokens)).encode())

    def facts(self) -> dict[str, Any]:
        """Facts for a client before the first batch."""
        teacher = self.teacher
        return {
            "protocol": PROTOCOL,
            "describe": public(teacher.describe()),
            "task": teacher.task_model.task.name,
            "provides": needs_to_json(self.provides),
            "columns": sorted(teacher.columns()),
            "config": config_values(teacher.config),
            "fingerprint": self._fingerprint,
            "vocabulary": self._vocabulary,
        }

    def vocabulary(self) -> bytes:
        """Token -> id as JSON, compressed with gzip.

        Raises:
            Refused: it is not known.
        """
        if not self._tokens:
            raise BadRequest(404, "This teacher has no tokenizer.")
        return self._tokens

    def signal(self, body: bytes, turn: Turn) -> bytes:
        """The signal for a batch.

        Args:
            body: The request.
            turn: Gives the model.

        Raises:
            Refused: a malformed request, or one that this teacher cannot serve.
        """
        with turn():  # before unpacking: one batch at a time
            try:
                request = from_bytes(body)
                batch, items = request["batch"], items_from_tree(request["items"])
                needs, k = needs_from_json(request["needs"]), request["top_k"]
            except UNREADABLE as error:
                raise BadRequest(400, f"Malformed request: {error}") from error
            unknown = self._check(batch, items, needs, k)
            with reading(), Indices() if unknown else contextlib.nullcontext():
                signal = self._ask(batch, items, needs)
            if not needs.logits:
                signal = replace(signal, logits=None)  # the largest part, which was not requested
            elif k is not None:
                signal = replace(signal, logits=None, sparse=likeliest(signal, k))
            return to_bytes({"signal": signal_to_tree(signal), "fingerprint": self._fingerprint})

    def _ask(self, batch: dict[str, Tensor], items: BatchItems, needs: Needs) -> Signal:
        device, dtype = self.teacher.task_model.model.device, self.teacher.task_model.model.dtype
        batch = {key: _cast(value, dtype) for key, value in batch.items()}
        batch, masks = send_to_device((batch, dict(items.masks)), device)
        labels = None if items.labels is None else items.labels.to(device)
        return self.teacher(batch, needs, replace(items, masks=masks, labels=labels))

    def _check(self, batch: Any, items: BatchItems, needs: Needs, k: Any) -> list[str]:
        if missing := needs.missing_from(self.provides):
            raise BadRequest(400, f"This teacher does not provide {missing}.")
        if k is not None and (type(k) is not int or k < 1):
            raise BadRequest(400, f"Expected top_k of at least 1, or null, got {k!r}.")
        return check_batch(self.teacher, batch, items, needs, self.limits)


def likeliest(signal: Signal, k: int) -> SparseProbs:
    """The k most likely classes of every item, and the mass of all others, in at least float32.

    Raises:
        Refused: the logits are not those of a softmax.
    """
    if signal.logits is None or signal.kind not in ("softmax", "ctc"):
        raise BadRequest(400, f"top_k is for the logits of a softmax, these are {signal.kind!r}.")
    logits = signal.logits
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_all = logits.log_softmax(-1, dtype=dtype)
    classes = log_all.shape[-1]
    log_probs, ids = log_all.topk(min(k, classes), dim=-1)
    others = log_all.scatter(-1, ids, -torch.inf)
    return SparseProbs(ids, log_probs, others.logsumexp(-1), classes)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Convert floating inputs to the model's dtype."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def plain_object(body: bytes) -> Mapping[str, Any]:
    """Return a JSON object, or raise BadRequest."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(400, f"Expected JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadRequest(400, f"Expected a JSON object, got a {type(found).__name__}.")
    return found
