"""Client of ``hf-distill serve-teacher``: a teacher in another process or on another machine."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from accelerate.utils import send_to_device
from torch import Tensor, nn

from hf_distill.models.batches import Batch
from hf_distill.models.raw_inputs import token_limit
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.tasks import TASKS
from hf_distill.teachers.cache import manifest
from hf_distill.teachers.own_inputs import OwnInputs
from hf_distill.teachers.protocol import Teacher
from hf_distill.teachers.remote import received, wire
from hf_distill.teachers.remote.http import Client
from hf_distill.teachers.remote.sizes import UTMOST, elements, most_bytes


class HTTPTeacher(Teacher):
    """Teacher behind ``hf-distill serve-teacher`` (`TeacherServer`), for any head.

    Its outputs are bit-equal to those of the model on the server, in the server's dtype.

    Args:
        url: Address of the server: ``http://host:port``.
        timeout: Seconds for one attempt at a batch, waiting for its turn included.
        retries: Attempts after the first.
        token: The server's token (``--token-env``); never printed.
        top_k: Request the k most likely classes and the mass of the rest, instead of all logits: 8
            + 4 bytes a class instead of 4 a class of the whole vocabulary.
        backoff: Seconds before the second attempt; doubled for each further one.
        processor: The teacher's tokenizer, image processor or feature extractor, for ``inputs``.
        inputs: The raw columns that it reads with its processor, as of `ModelTeacher`; they are
            processed here.

    Raises:
        ConnectionError: there is no server.
        ValueError: it is not such a server, or it rejects this client.
    """

    provides: Needs

    def __init__(
        self,
        url: str,
        timeout: float = 60.0,
        retries: int = 4,
        token: str | None = None,
        top_k: int | None = None,
        backoff: float = 0.5,
        processor: Any = None,
        inputs: str | Sequence[str] | None = None,
    ):
        if top_k is not None and top_k < 1:
            raise ValueError(f"Expected top_k of at least 1, or None for all logits, got {top_k}.")
        self._client = Client(url, timeout, retries, backoff, token)
        self._top_k = top_k
        self._tokens: dict[str, int] | None = None
        facts = self._client.json("GET", "/teacher") or {}
        if facts.get("protocol", wire.PROTOCOL) != wire.PROTOCOL:
            raise ValueError(
                f"Expected version {wire.PROTOCOL} of the protocol at {self._client.url}, got "
                f"{facts['protocol']!r:.80}. Install the same hf_distill on both sides."
            )
        self._facts = received.facts_from(facts, self._client.url)
        self.config, self.provides = self._facts.config, self._facts.provides
        self.own_inputs: OwnInputs | None = None
        if inputs is not None:
            names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
            self.own_inputs = OwnInputs(processor, names, token_limit(processor, None))
            self._task = TASKS[facts["task"]]
            self.provides = replace(self.provides, attentions=False, qkv=False, inputs=False)
        if top_k is not None:
            self.provides = replace(self.provides, full_vocabulary=False)

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        own = self.own_inputs
        if own is None:
            return self._ask(batch, needs, items)
        who, model = f"the teacher at {self._client.url}", nn.Module()
        model.config = self.config
        theirs = own.own(batch, self._task.label_keys, who)
        rows = own.rows(batch, items)
        signal = self._ask(theirs, needs, self._task.items(theirs, model, rows))
        return own.of_student(signal, batch, items, who)

    def _ask(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        facts, who = self._facts, f"the teacher at {self._client.url}"
        kept = {key: value for key, value in batch.items() if key in facts.columns}
        request = {
            "batch": kept,
            "items": wire.items_to_tree(items),
            "needs": wire.needs_to_json(needs),
            "top_k": self._top_k,
        }
        classes = facts.classes if self._top_k is None else 3 * self._top_k + 3  # ids are int64
        most = most_bytes(elements(facts.config, classes, kept, items, needs, UTMOST))
        answer = self._client.request(
            "POST", "/signal", wire.to_bytes(request), wire.CONTENT_TYPE, most=most
        )
        try:
            found = wire.from_bytes(b"" if answer is None else answer.body)
        except ValueError as error:
            raise ValueError(f"The answer of {who} cannot be read: {error}") from error
        if found.get("fingerprint") != facts.fingerprint:
            raise ValueError(
                f"The teacher at {self._client.url} is not the one this training started with: "
                "other weights are served there now. Serve the same model again, and resume."
            )
        received.check_signal(found.get("signal"), facts, items, needs, who)
        device = next(value.device for value in batch.values() if isinstance(value, Tensor))
        return wire.signal_from_tree(send_to_device(found["signal"], device))

    @property
    def fingerprint(self) -> str:
        """The server's hash of its weights."""
        return self._facts.fingerprint

    def columns(self) -> set[str]:
        return set(self._facts.columns) if self.own_inputs is None else self.own_inputs.names

    def tokens(self) -> Mapping[str, int] | None:
        facts = self._facts
        if facts.vocabulary is not None and self._tokens is None:
            url, most = self._client.url, received.vocabulary_bytes(facts.entries)
            answer = self._client.request("GET", "/teacher/vocabulary", most=most)
            body = io.BytesIO(b"" if answer is None else answer.body)
            tokens = manifest.unpack_vocabulary(body, url, most)
            if manifest.tokenizer_fingerprint(tokens) != facts.vocabulary:
                raise ValueError(
                    f"Expected the vocabulary that {url} described, got another one: "
                    "another teacher is served there now. Serve the same model again."
                )
            self._tokens = tokens
        return self._tokens

    def describe(self) -> dict[str, Any]:
        return {**self._facts.describe, "url": self._client.url, "top_k": self._top_k}

    def close(self) -> None:
        """Close the connections; they are opened anew when needed."""
        self._client.close()
