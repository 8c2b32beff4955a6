"""OpenAI completion protocol of a teacher, with vLLM's prompt_logprobs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_distill.models.signals import Needs
from hf_distill.models.task_model import vocabulary_size
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.remote.prompts import IMPOSSIBLE
from hf_distill.teachers.serving.limits import BadRequest, Limits, Turn, reading

WHOLE = Needs(logits=True, unsampled=True, full_vocabulary=True)
ONLY = {
    "n": 1,
    "best_of": 1,
    "stream": False,
    "echo": False,
    "logprobs": None,
    "use_beam_search": False,
}
"""Options with a single supported value."""
ENTRIES = 1 << 21
"""The most log-probabilities in an answer: as Python objects and JSON they take 500 bytes each."""
LETTERS = 1 << 20
"""Largest number of characters of a request's prompts."""


class Completions:
    """Completion requests for one causal language model; without a tokenizer, prompts are token
    ids."""

    def __init__(self, teacher: ModelTeacher, tokenizer: Any, name: str, limits: Limits):
        self.teacher, self.tokenizer, self.name = teacher, tokenizer, name
        self.limits = limits
        self._classes = vocabulary_size(teacher.config) or 0
        text: Any = teacher.config.get_text_config()
        self._longest: int | None = getattr(text, "max_position_embeddings", None)

    def _check_task(self) -> None:
        if self.teacher.task_model.task.name != "causal_lm":
            raise BadRequest(
                f"Completions are for causal language models, this is a teacher for "
                f"{self.teacher.task_model.task.name}: ask it with HTTPTeacher.",
                404,
            )

    def models(self) -> dict[str, Any]:
        """GET /v1/models; ``vocab_size`` is an addition."""
        self._check_task()
        card = {
            "id": self.name,
            "object": "model",
            "owned_by": "hf_distill",
            # the generated token is counted, and takes no position here
            "max_model_len": None if self._longest is None else self._longest + 1,
            "vocab_size": self._classes,
        }
        return {"object": "list", "data": [card]}

    def tokenize(self, request: Mapping[str, Any], turn: Turn) -> dict[str, Any]:
        """POST /tokenize."""
        self._check_task()
        if self.tokenizer is None:
            raise BadRequest("This teacher was served without a tokenizer.", 404)
        text = request.get("prompt")
        if not isinstance(text, str):
            raise BadRequest(f"Expected prompt to be a text, got {type(text).__name__}.")
        _check_texts([text])
        with turn():
            ids = self._encode(text, bool(request.get("add_special_tokens", True)))
        return {"tokens": ids, "count": len(ids), "max_model_len": self._longest}

    def complete(self, request: Mapping[str, Any], turn: Turn) -> dict[str, Any]:
        """POST /v1/completions: log-probabilities of each prompt's tokens, and one more token.

        Prompts are separate turns: other requests run between them.
        """
        self._check_task()
        k = self._top_k(request)
        with turn():  # a tokenizer is not thread-safe either
            prompts = self._prompts(request)
        tokens = sum(len(ids) for ids in prompts)
        self._check_size(prompts, tokens, k)
        choices = []
        for index, ids in enumerate(prompts):
            with turn():
                choices.append(self._choice(index, ids, k))
        counts = {"prompt_tokens": tokens, "completion_tokens": len(prompts)}
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": choices,
            "usage": {**counts, "total_tokens": sum(counts.values())},
        }

    def _choice(self, index: int, ids: list[int], k: int | None) -> dict[str, Any]:
        with reading():
            log_probs = self._log_probs(ids)
        best = int(log_probs[-1].argmax())
        return {
            "index": index,
            "text": self._text(best) or "",
            "finish_reason": "length",
            "logprobs": None,
            "prompt_logprobs": None if k is None else self._entries(ids, log_probs, k),
        }

    # ---- the request -------------------------------------------------------------------------

    def _prompts(self, request: Mapping[str, Any]) -> list[list[int]]:
        if request.get("model") not in (None, self.name):
            raise BadRequest(
                f"The model {request['model']!r} does not exist; {self.name!r} does.", 404
            )
        for name, value in ONLY.items():
            if request.get(name) not in (None, value):
                raise BadRequest(f"Expected {name}={value!r}, got {request[name]!r}.")
        if request.get("max_tokens", 16) not in (0, 1):
            raise BadRequest("Expected max_tokens=1: this server is a teacher, and writes none.")
        prompt = request.get("prompt")
        one = not isinstance(prompt, list) or all(type(token) is int for token in prompt)
        parts: Any = [prompt] if one else prompt
        if len(parts) > self.limits.max_prompts:
            raise BadRequest(
                f"Expected at most {self.limits.max_prompts} prompts in a request, got "
                f"{len(parts)}: send them in several."
            )
        _check_texts([part for part in parts if isinstance(part, str)])
        found = [self._ids(part) for part in parts]
        for ids in found:
            if self._longest is not None and len(ids) > self._longest:
                raise BadRequest(
                    f"Expected prompts of at most {self._longest} tokens, got {len(ids)}."
                )
            if wrong := [token for token in ids if not 0 <= token < self._classes][:1]:
                raise BadRequest(
                    f"Expected tokens from 0 to {self._classes - 1}, got {str(wrong[0])[:40]}: the "
                    "tokenizer has more tokens than this model."
                )
        return found

    def _check_size(self, prompts: list[list[int]], tokens: int, k: int | None) -> None:
        longest = max(map(len, prompts))
        if tokens > self.limits.max_tokens or longest * self._classes > self.limits.max_elements:
            raise BadRequest(
                f"Expected at most {self.limits.max_tokens} tokens in a request, and "
                f"{self.limits.max_elements} logits of a prompt, got {tokens} tokens and a prompt "
                f"of {longest}: send fewer or shorter prompts (or serve with --max-tokens and "
                "--max-elements)."
            )
        entries = tokens * (k or 0)
        if entries > ENTRIES:
            raise BadRequest(
                f"Expected at most {ENTRIES} log-probabilities in an answer, got a request for "
                f"{entries}: send fewer or shorter prompts, or ask for fewer prompt_logprobs."
            )

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str) and self.tokenizer is not None:
            prompt = self._encode(prompt, True)
        ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
        if not ids or not prompt:
            raise BadRequest(
                "Expected prompt to be token ids, or several lists of them, none empty"
                + (", or texts." if self.tokenizer else " (there is no tokenizer here).")
            )
        return prompt

    def _top_k(self, request: Mapping[str, Any]) -> int | None:
        k = request.get("prompt_logprobs")
        if k is None:
            return None
        if type(k) is not int or k < -1 or k > self._classes:
            raise BadRequest(f"Expected prompt_logprobs from -1 to {self._classes}, got {k!r}.")
        return self._classes if k == -1 else k

    # ---- the answer --------------------------------------------------------------------------

    def _encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def _log_probs(self, prompt: list[int]) -> Tensor:
        """Log-probabilities ``(T, V)`` of the token after each token of the prompt."""
        ids = torch.tensor([prompt], device=self.teacher.task_model.model.device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        signal = self.teacher(batch, WHOLE, self.teacher.task_model.items(batch))
        assert signal.logits is not None
        dtype = torch.promote_types(signal.logits.dtype, torch.float32)
        return signal.logits[0].log_softmax(-1, dtype=dtype)

    def _entries(self, ids: list[int], log_probs: Tensor, k: int) -> list[Any]:
        """vLLM's format: null for the first token, then the k most likely and the token itself."""
        given = log_probs[:-1]
        values, found = given.topk(k, dim=-1)
        own = given.gather(-1, torch.tensor(ids[1:], device=given.device)[:, None])
        ranks = ((given > own).sum(-1) + 1).tolist()
        entries: list[Any] = [None]
        rows = zip(ids[1:], found.tolist(), values.tolist(), own[:, 0].tolist(), ranks, strict=True)
        for token, tokens, likely, value, rank in rows:
            entry = {
                str(t): self._entry(t, v, r)
                for r, (t, v) in enumerate(zip(tokens, likely, strict=True), 1)
            }
            entry.setdefault(str(token), self._entry(token, value, rank))
            entries.append(entry)
        return entries

    def _entry(self, token: int, value: float, rank: int) -> dict[str, Any]:
        return {"logprob": max(value, IMPOSSIBLE), "rank": rank, "decoded_token": self._text(token)}

    def _text(self, token: int) -> str | None:
        return None if self.tokenizer is None else str(self.tokenizer.decode([token]))


def _check_texts(texts: list[str]) -> None:
    """Raise on prompts that are not texts, or too long."""
    if (letters := sum(map(len, texts))) > LETTERS:
        raise BadRequest(f"Expected prompts of at most {LETTERS} characters, got {letters}.")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(f"Expected a prompt of Unicode characters, got {error}.") from error
