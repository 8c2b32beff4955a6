"""An OpenAI-compatible chat endpoint, through the client of huggingface_hub."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

STOPPING = (401, 402, 403, 404, 405)
"""Statuses that mean that no request will be answered."""
REJECTING = (400, 413, 422)
"""Statuses that concern one request."""
NO_KEY = "none"
"""Sent in place of a key: without one the client would send the user's Hugging Face token."""
_KNOWN = set(inspect.signature(AsyncInferenceClient.chat_completion).parameters)


class EndpointError(ConnectionError):
    """The endpoint does not answer, or answers nothing that can be read."""


class RejectedError(ValueError):
    """The endpoint rejects one request."""


@dataclass(frozen=True)
class ChatEndpoint:
    """A model behind an OpenAI-compatible chat endpoint, and how it is called.

    Args:
        model: Its name there.
        base_url: Address to which ``/chat/completions`` is added, as for other clients:
            ``https://router.huggingface.co/v1``, ``http://localhost:8000/v1``.
        api_key_env: Environment variable with the key; None: no key is sent. The key is read for
            each call, and neither stored nor printed.
        provider: Who runs the model, for the model card; default: the host.
        terms: Terms for the use of its answers, for the model card: a URL or a sentence.
        prices: Price of a million tokens of prompts and of answers.
        concurrency: Number of simultaneous requests.
        timeout: Seconds for one attempt at a request, from its start to the end of the answer.
        retries: Attempts after the first, for timeouts, connection errors, the statuses 408, 409,
            425, 429 and 5xx, and answers that cannot be read.
        backoff: Seconds before the second attempt, doubled for each further one. A ``Retry-After``
            of the server that is longer holds for all requests.
        longest_pause: Longest accepted ``Retry-After``, in seconds.

    Raises:
        ValueError: an address with credentials, or a number out of its range.
    """

    model: str
    base_url: str
    api_key_env: str | None = None
    provider: str | None = None
    terms: str | None = None
    prices: tuple[float, float] | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 1.0
    longest_pause: float = 600.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"Expected base_url as http://HOST/v1 or https://HOST/v1, got {self.base_url!r:.80}"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "Expected base_url without credentials and without a query, got one with them. Set "
                "an environment variable, and name it: api_key_env='NAME'."
            )
        if self.concurrency < 1 or self.retries < 0 or not self.timeout > 0 or self.backoff < 0:
            raise ValueError(
                "Expected concurrency >= 1, retries >= 0, timeout > 0 and backoff >= 0, got "
                f"{self.concurrency}, {self.retries}, {self.timeout} and {self.backoff}."
            )
        if self.prices is not None and (len(self.prices) != 2 or min(self.prices) < 0):
            raise ValueError(
                "Expected prices as (input, output) per million tokens, both >= 0, got "
                f"{self.prices}."
            )

    @property
    def url(self) -> str:
        """Address of the requests."""
        parts = urlsplit(self.base_url)
        path = parts.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path = f"{path or '/v1'}/chat/completions"
        return urlunsplit((parts.scheme, parts.netloc, path, "", ""))

    @property
    def host(self) -> str:
        """Host of the address, without the port."""
        return str(urlsplit(self.base_url).hostname)

    def key(self) -> str:
        """The key from the environment.

        Raises:
            ValueError: the variable is not set.
        """
        if self.api_key_env is None:
            return NO_KEY
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(
                f"Expected the key of {self.host} in the environment variable {self.api_key_env}, "
                f"got none. Set it (export {self.api_key_env}=…)."
            )
        return key

    def describe(self) -> dict[str, Any]:
        """Facts for reports and model cards; of a model's path the last part."""
        model = Path(self.model).name if self.model.startswith(("/", ".", "~")) else self.model
        facts = {"model": model, "provider": self.provider or self.host, "terms": self.terms}
        return {name: value for name, value in facts.items() if value is not None}


@dataclass
class Connection:
    """One open client of an endpoint.

    Args:
        endpoint: The endpoint.
    """

    endpoint: ChatEndpoint
    stopped: bool = False
    _key: str = field(default="", repr=False)
    _paused_until: float = 0.0

    async def __aenter__(self) -> Connection:
        self._key = self.endpoint.key()
        self._client = AsyncInferenceClient(
            base_url=self.endpoint.url, api_key=self._key, timeout=self.endpoint.timeout
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def ask(
        self, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Send a request, again after transient errors, and read the answer.

        Args:
            messages: The messages.
            parameters: The other fields of the request; those that are None are left out.

        Returns:
            ``text``, ``finish``, ``refusal``, ``logprobs`` (``token``, ``logprob`` and ``top`` of
            each token), ``tokens`` (of prompt and answer) and ``model``; None where unknown.

        Raises:
            EndpointError: no answer in all attempts, or a status for all requests (401, 404, …).
            RejectedError: a status for this request alone (400, 413, 422).
        """
        given = {name: value for name, value in parameters.items() if value is not None}
        known = {name: given.pop(name) for name in given.keys() & _KNOWN}
        trouble, pause = "", self.endpoint.backoff
        for attempt in range(self.endpoint.retries + 1):
            if attempt and self.stopped:
                break
            await self._wait()
            try:
                async with asyncio.timeout(self.endpoint.timeout):
                    answer = await self._client.chat_completion(
                        [dict(message) for message in messages],
                        model=self.endpoint.model,
                        **known,
                        extra_body=given or None,
                    )
                return _read(answer)
            except HfHubHTTPError as error:
                trouble = self._status(error)
                self._pause(_retry_after(error.response.headers.get("Retry-After")))
            except OfflineModeIsEnabled:
                raise EndpointError(
                    f"Expected to reach {self.endpoint.url}, got HF_HUB_OFFLINE=1, with which the "
                    "client of huggingface_hub sends no requests, to no server. Unset it, or set "
                    "HF_HUB_OFFLINE=0."
                ) from None
            except TimeoutError:
                trouble = f"no answer within {self.endpoint.timeout:g} s"
            except Exception as error:  # of the network, or of an answer that cannot be read
                trouble = self._without_key(f"{type(error).__name__}: {error}")
            if attempt < self.endpoint.retries:
                await asyncio.sleep(pause)
                pause *= 2
        raise EndpointError(
            f"{self.endpoint.url} gave no answer in {attempt + 1} attempts; the last one: {trouble}"
        )

    def _status(self, error: HfHubHTTPError) -> str:
        """Status and text of an error.

        Raises:
            EndpointError, RejectedError: a status for which no further attempt is made.
        """
        status = error.response.status_code
        text = self._without_key(" ".join(error.response.text[:500].split()))
        told = f"status {status}: {text[:300]}"
        if status in STOPPING:
            raise EndpointError(
                f"{self.endpoint.url} refuses all requests, {told}. Check base_url, model and the "
                f"key ({self.endpoint.api_key_env or 'api_key_env is not set'})."
            ) from None
        if status in REJECTING:
            raise RejectedError(told) from None
        return told

    def _without_key(self, text: str) -> str:
        return text if self._key == NO_KEY else text.replace(self._key, "***")

    def _pause(self, seconds: float) -> None:
        """Hold all requests back.

        Raises:
            EndpointError: for longer than is accepted.
        """
        if seconds > self.endpoint.longest_pause:
            raise EndpointError(
                f"{self.endpoint.url} requests a pause of {seconds:,.0f} s. Repeat the call then: "
                "what was answered is kept; or set longest_pause."
            ) from None
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def _wait(self) -> None:
        while (left := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(left)


def _retry_after(value: str | None) -> float:
    """Seconds of a ``Retry-After`` header: a number, or a date; 0 for none and for others.

    >>> _retry_after("1.5"), _retry_after(None), _retry_after("soon")
    (1.5, 0.0, 0.0)
    """
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(str(value)).timestamp() - time.time())
    except ValueError:
        return 0.0


def _read(answer: Any) -> dict[str, Any]:
    """The parts of an answer that are kept.

    Raises:
        ValueError, LookupError, TypeError: it is no chat completion.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        raise ValueError(f"expected one choice, got {str(choices)[:80]}")
    choice, usage = choices[0], answer.get("usage") or {}
    message = choice["message"]
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"expected a text as content, got {str(text)[:80]}")
    tokens = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    counted = all(type(count) is int and count >= 0 for count in tokens)
    return {
        "text": text or "",
        "finish": choice.get("finish_reason"),
        "refusal": message.get("refusal"),
        "logprobs": _positions((choice.get("logprobs") or {}).get("content")),
        "tokens": tokens if counted else None,
        "model": str(answer.get("model"))[:200],
    }


def _positions(content: Any) -> list[dict[str, Any]] | None:
    """Token, log-probability and likeliest tokens of each position."""
    if not content:
        return None
    found, values = list[dict[str, Any]](), list[float]()
    for entry in content:
        top = [(str(t["token"]), float(t["logprob"])) for t in entry.get("top_logprobs") or ()]
        found.append({"token": str(entry["token"]), "logprob": float(entry["logprob"]), "top": top})
        values += [float(entry["logprob"]), *(value for _, value in top)]
    if not all(value <= 1e-3 for value in values):  # and no NaN
        raise ValueError("expected log-probabilities, got values above 0")
    return found
