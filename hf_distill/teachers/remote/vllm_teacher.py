"""A language model behind an OpenAI-compatible server, such as vLLM's."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from torch import Tensor
from transformers import PretrainedConfig

from hf_distill.models.batches import Batch
from hf_distill.models.signals import BatchItems, Needs, Signal, SparseProbs
from hf_distill.teachers.protocol import Teacher
from hf_distill.teachers.remote import prompts
from hf_distill.teachers.remote.http import SMALL, Client
from hf_distill.teachers.remote.sizes import CLASSES

ROWS = 8
"""Largest number of texts in one request."""
TOKENS = 16384
"""Largest number of tokens in one request, unless a single text has more."""
ENTRIES = 1 << 20
"""Largest number of log-probabilities in one answer, unless a single text has more."""
PER_ENTRY = 512
"""Bytes of JSON for one of them: a number, a rank and the token's text, escaped; and some more."""
PHANTOMS = 1024
"""Largest accepted number of classes without a token, in addition to the number of tokens."""
LONGEST = 1 << 31
"""Longest accepted context of a server, in tokens."""
PROBE = 'Tokens: naïve 東京 🙂\n\tdef f(x): return x**2 - 1_000  # "same"?\r\n'
"""A text on which tokenizers differ."""


class VLLMTeacher(Teacher):
    """Teacher behind an OpenAI-compatible completion server with prompt log-probabilities (vLLM).

    Each text of a batch goes, without its padding, as token ids to ``POST {url}/v1/completions``
    with vLLM's ``prompt_logprobs``; texts packed into one row (``position_ids``) go one by one. The
    answer has the ``top_k`` most likely tokens of every position, the token of the text, and the
    mass of all others: exact, for every objective that does not need all logits.

    The server must have the student's tokenizer: its tokenization of a probe text, and the ids and
    texts of the tokens in its answers, are compared with ``tokenizer``.

    Args:
        url: The server's root: ``http://host:8000``; with or without ``/v1``.
        model: Its name there; needed only if there are several.
        tokenizer: Its tokenizer (the student's), or a folder or Hub id of it. Optional only for
            ``hf-distill serve-teacher``.
        top_k: Number of tokens of each position; at most the server's ``--max-logprobs``.
        temperature: 1; servers provide no other.
        timeout: Seconds for one attempt at a request.
        retries: Attempts after the first.
        concurrency: Maximum number of simultaneous requests.
        token: The server's API key; never printed.
        backoff: Seconds before the second attempt; doubled for each further one.

    Raises:
        ValueError: a number out of its range; at the first batch at the latest: another model,
            another tokenizer, too long a text, or an answer that cannot be right.
        ConnectionError: the server does not answer.
    """

    provides = Needs(logits=True, unsampled=True)

    def __init__(
        self,
        url: str,
        model: str | None = None,
        tokenizer: Any = None,
        top_k: int = 20,
        temperature: float = 1.0,
        timeout: float = 60.0,
        retries: int = 4,
        concurrency: int = 8,
        token: str | None = None,
        backoff: float = 0.5,
    ):
        if temperature != 1.0:
            raise ValueError(
                f"Expected temperature 1, got {temperature}: a server gives log softmax(logits), "
                "and from some of its classes no other temperature can be made. Use objectives at "
                "temperature 1, or serve the model with `hf-distill serve-teacher`."
            )
        if top_k < 1 or concurrency < 1:
            raise ValueError(
                f"Expected top_k >= 1 and concurrency >= 1, got {top_k} and {concurrency}."
            )
        self._client = Client(url.rstrip("/").removesuffix("/v1"), timeout, retries, backoff, token)
        if isinstance(tokenizer, (str, Path)):
            tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer)
        self._tokenizer: Any = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        self._model, self._top_k, self._concurrency = model, top_k, concurrency
        self.config: Any = None
        if self._tokenizer is not None:
            self._set_classes(max(self._tokenizer.get_vocab().values()) + 1)
        self._longest: int | None = None
        self._connected = self._compared = False
        self._owner: str | None = None
        self._pool: ThreadPoolExecutor | None = None

    # ---- a batch -----------------------------------------------------------------------------

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        self._connect()
        texts, shape = prompts.prompts_of(batch, items)
        self._check_lengths(texts)
        rows = min(ROWS, math.ceil(len(texts) / self._concurrency))
        tokens = min(TOKENS, ENTRIES // (min(self._top_k, self.config.vocab_size) + 1))
        groups = list(_groups(texts, rows, tokens))
        answered = [a for group in self._all(groups) for a in group]
        placed = self._assemble(texts, answered, shape)
        ids, log_probs, log_rest = (t.to(batch["input_ids"].device) for t in placed)
        sparse = SparseProbs(ids, log_probs, log_rest, self.config.vocab_size)
        return Signal(kind="softmax", sparse=sparse)

    def _all(self, groups: Sequence[list[prompts.Prompt]]) -> list[list[prompts.Answered]]:
        """Request all groups, at most `concurrency` at once; results are in order."""
        if len(groups) == 1:
            return [self._ask(groups[0])]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._concurrency, "server-teacher")
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        return list(self._pool.map(self._ask, groups))  # cancels the others after a failure

    def _ask(self, texts: Sequence[prompts.Prompt]) -> list[prompts.Answered]:
        request = {
            "model": self._model,
            "prompt": [prompt.ids for prompt in texts],
            "max_tokens": 1,  # vLLM refuses 0
            "temperature": 0,
            "prompt_logprobs": min(self._top_k, self.config.vocab_size),
        }
        values = sum(len(prompt.ids) for prompt in texts) * (request["prompt_logprobs"] + 2)
        most = SMALL + PER_ENTRY * values
        answer = self._client.json("POST", "/v1/completions", request, most=most) or {}
        url, choices = self._client.url, answer.get("choices")
        if not isinstance(choices, list) or len(choices) != len(texts):
            raise ValueError(
                f"Expected {len(texts)} choices from {url}, one per text, got "
                f"{len(choices) if isinstance(choices, list) else repr(choices)[:80]}."
            )
        found = []
        for prompt, choice in zip(texts, _ordered(choices, url), strict=True):
            entries: Any = choice.get("prompt_logprobs")
            try:
                answered = prompts.read_prompt(prompt, entries, self._top_k, self.config.vocab_size)
            except ValueError as error:
                raise ValueError(f"The answer of {url} cannot be read: {error}") from error
            found.append(answered)
            if not self._compared and self._tokenizer is not None:
                prompts.check_decoded(entries, self._tokenizer, url)
                self._compared = True
        return found

    def _assemble(
        self,
        texts: Sequence[prompts.Prompt],
        answered: Sequence[prompts.Answered],
        shape: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Assemble the answers into one signal; elsewhere all mass is in the rest."""
        width = min(self._top_k + 1, self.config.vocab_size)
        ids = torch.zeros(*shape, width, dtype=torch.int64)
        log_probs = torch.full((*shape, width), -torch.inf)
        log_rest = torch.zeros(shape)
        for prompt, answer in zip(texts, answered, strict=True):
            place = (prompt.row, slice(prompt.start, prompt.start + len(prompt.ids) - 1))
            ids[place], log_probs[place], log_rest[place] = answer
        return ids, log_probs, log_rest

    def _check_lengths(self, texts: Sequence[prompts.Prompt]) -> None:
        limit = math.inf if self._longest is None else self._longest
        for prompt in texts:
            if len(prompt.ids) >= limit:
                raise ValueError(
                    f"Expected texts of at most {limit - 1} tokens (the server's max_model_len "
                    f"{limit} holds one generated token too), got {len(prompt.ids)} in row "
                    f"{prompt.row}. Truncate the texts, or start the server with a longer "
                    "--max-model-len."
                )

    # ---- the server --------------------------------------------------------------------------

    def _connect(self) -> None:
        """Find the model, and compare the tokenizers; once."""
        if self._connected:
            return
        models: Any = (self._client.json("GET", "/v1/models") or {}).get("data")
        listed = models if isinstance(models, list) else ()
        cards = {str(c.get("id")): c for c in listed if isinstance(c, dict)}
        name = next(iter(cards)) if self._model is None and len(cards) == 1 else self._model
        if name not in cards:
            raise ValueError(
                f"Expected the model {self._model!r} at {self._client.url}, which has "
                f"{str(sorted(cards))[:500]}. Pass model=…, one of these names."
            )
        owner = cards[name].get("owned_by")
        self._model, self._owner = name, owner if isinstance(owner, str) else None
        self._longest = self._reported(cards[name], "max_model_len", LONGEST)
        known = None if self.config is None else self.config.vocab_size
        most = CLASSES if known is None else 2 * known + PHANTOMS
        classes = self._reported(cards[name], "vocab_size", most)
        if self._tokenizer is not None:
            self._compare_tokenizers()
        elif classes is None:
            raise ValueError(
                f"Expected a tokenizer for {self._client.url}: how many tokens it knows, and that "
                "they are the student's, cannot be learnt from the server. Pass "
                "tokenizer=AutoTokenizer.from_pretrained(…), the teacher's (which must be the "
                "student's)."
            )
        if classes is not None:
            self._set_classes(classes)
        self._connected = True

    def _reported(self, card: Mapping[str, Any], name: str, most: int) -> int | None:
        """A number that the server reports for the model, or None."""
        value = card.get(name)
        if value is not None and not (type(value) is int and 0 < value <= most):
            raise ValueError(
                f"Expected {name} from 1 to {most} for the model {self._model!r} at "
                f"{self._client.url}, got {value!r:.80}. Check that the tokenizer is the model's, "
                "and that the url is that of its server."
            )
        return value

    def _set_classes(self, classes: int) -> None:
        self.config = PretrainedConfig.from_dict({"vocab_size": classes})

    def _compare_tokenizers(self) -> None:
        request = {"model": self._model, "prompt": PROBE, "add_special_tokens": False}
        answer = self._client.json("POST", "/tokenize", request, missing_ok=True)
        theirs = None if answer is None else answer.get("tokens")
        if not isinstance(theirs, list):
            return  # not every server reports it
        if not all(type(token) is int and 0 <= token < CLASSES for token in theirs):
            raise ValueError(
                f"Expected the ids of a probe text's tokens from {self._client.url}/tokenize, got "
                f"{str(theirs)[:200]}. Check that the url is that of the server's root."
            )
        ours = self._tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        if ours != theirs:
            pairs = zip(ours, theirs, strict=False)
            place = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
            shown = [self._tokenizer.decode(ids[place : place + 1]) for ids in (ours, theirs)]
            raise ValueError(
                f"The tokenizer of {self._client.url} is another one: of a probe text, token "
                f"{place} is {ours[place : place + 1]} ({shown[0]!r}) here and "
                f"{theirs[place : place + 1]} there ({shown[1]!r} here). Serve a teacher with the "
                "student's tokenizer, or pass the one it has and a student that shares it."
            )

    # ---- as a teacher ------------------------------------------------------------------------

    def columns(self) -> set[str]:
        return {"input_ids", "attention_mask", "position_ids"}

    def tokens(self) -> Mapping[str, int] | None:
        return None if self._tokenizer is None else self._tokenizer.get_vocab()

    def place(self, accelerator: Accelerator) -> None:
        """Connect to the server; signals are returned on the device of their batch."""
        self._connect()

    def describe(self) -> dict[str, Any]:
        facts = {"name": self._model, "url": self._client.url}
        return {**facts, "server": self._owner, "top_k": self._top_k}

    def close(self) -> None:
        """Close threads and connections; they are reopened when needed."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._client.close()


def _ordered(choices: Sequence[Any], url: str) -> list[dict[str, Any]]:
    """Choices in the order of the texts, or as returned if they have no index."""
    given = [choice.get("index") if isinstance(choice, dict) else "" for choice in choices]
    whole: list[Any] = list(range(len(choices)))
    if all(index is None for index in given):
        given = whole
    if sorted(map(str, given)) != sorted(map(str, whole)):
        raise ValueError(
            f"Expected choices with the indices 0 to {len(choices) - 1} from {url}, got "
            f"{str(given)[:80]}."
        )
    return sorted(choices, key=lambda choice: int(choice.get("index") or 0))


def _groups(
    texts: Iterable[prompts.Prompt], most: int, longest: int
) -> Iterable[list[prompts.Prompt]]:
    """Split texts into requests, by number of texts and of tokens."""
    group: list[prompts.Prompt] = []
    for prompt in texts:
        tokens = sum(len(p.ids) for p in group) + len(prompt.ids)
        if group and (len(group) == most or tokens > longest):
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group
