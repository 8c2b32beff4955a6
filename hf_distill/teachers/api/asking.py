"""Requests to a chat endpoint: several at once, within a budget, each answer kept at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hf_distill.teachers.api.budget import BudgetError, Ledger, size_of
from hf_distill.teachers.api.endpoint import (
    ChatEndpoint,
    Connection,
    EndpointError,
    RejectedError,
)
from hf_distill.teachers.api.journal import Journal

IN_DOUBT = 8
"""Rejected requests without any answer after which all of them are taken to be wrong."""
LIMITS = ("max_tokens", "max_completion_tokens")
UNLIMITED = 4096
"""Tokens reserved for an answer without a limit."""


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        key: Its `key_of`.
        messages: The messages.
        parameters: The other fields.
    """

    key: str
    messages: Sequence[Mapping[str, str]]
    parameters: Mapping[str, Any]

    @property
    def longest_answer(self) -> int:
        """Largest number of tokens of the answer."""
        given = [self.parameters.get(name) for name in LIMITS]
        return max((int(limit) for limit in given if limit), default=UNLIMITED)


def ask_all(
    requests: Sequence[Request],
    endpoint: ChatEndpoint,
    journal: Journal,
    ledger: Ledger,
    done: Callable[[], Any] = lambda: None,
) -> None:
    """Send all requests without an answer in the journal.

    Args:
        requests: The requests.
        endpoint: The endpoint.
        journal: An open journal.
        ledger: Tokens and money spent.
        done: Called for each answer.

    Raises:
        BudgetError: the budget does not cover the next request.
        EndpointError: see `Connection.ask`; or the first requests are all rejected.
    """
    open_ones = {one.key: one for one in requests if one.key not in journal.answers}
    if not open_ones:
        return
    answered = any("rejected" not in journal.answers.get(r.key, {"rejected": ""}) for r in requests)
    asking = _Asking(endpoint, journal, ledger, iter(open_ones.values()), done, answered)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(asking.run())
    else:  # a notebook
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, asking.run()).result()


class _Asking:
    def __init__(
        self,
        endpoint: ChatEndpoint,
        journal: Journal,
        ledger: Ledger,
        requests: Iterator[Request],
        done: Callable[[], Any],
        answered: bool,
    ):
        self._endpoint, self._journal, self._ledger = endpoint, journal, ledger
        self._requests, self._done = requests, done
        self._error: Exception | None = None
        self._rejected: list[dict[str, Any]] = []
        self._answered = answered  # else the rejections may be due to the parameters of all
        self._under_way = 0

    async def run(self) -> None:
        self._settled = asyncio.Condition()
        async with Connection(self._endpoint) as connection:
            workers = [self._work(connection) for _ in range(self._endpoint.concurrency)]
            await asyncio.gather(*workers)
        if self._error is None and self._rejected:
            self._error = self._all_rejected()
        if self._error is not None:
            raise self._error

    async def _work(self, connection: Connection) -> None:
        """Answer requests one after another until there is none, or an error anywhere."""
        while self._error is None and (request := next(self._requests, None)) is not None:
            if not await self._reserve(request):
                return
            try:
                answer = await connection.ask(request.messages, request.parameters)
                self._keep(request, answer)
            except RejectedError as error:
                self._reject(request, str(error))
            except Exception as error:
                self._error = self._error or error
            finally:
                self._ledger.release(request.key)
                connection.stopped = self._error is not None
                async with self._settled:
                    self._under_way -= 1
                    self._settled.notify_all()

    async def _reserve(self, request: Request) -> bool:
        """Wait until the budget covers a request; False if it never will."""
        size = size_of(request.messages)
        async with self._settled:
            while not self._ledger.reserve(request.key, size, request.longest_answer):
                if not self._under_way and self._error is None:
                    self._error = BudgetError(
                        f"The budget ends here: {self._ledger.spent} are spent, and the next "
                        f"request may exceed it. All {len(self._journal.answers):,} answers are "
                        f"in {self._journal.path}; with a larger budget the same call goes on."
                    )
                if self._error is not None:
                    return False
                await self._settled.wait()
            self._under_way += 1
        return True

    def _keep(self, request: Request, answer: dict[str, Any]) -> None:
        tokens = self._ledger.settle(request.key, answer["tokens"], size_of(request.messages))
        self._append({"key": request.key, **answer, "tokens": tokens})
        self._answered = True
        while self._rejected:
            self._append(self._rejected.pop())

    def _reject(self, request: Request, told: str) -> None:
        record = {"key": request.key, "rejected": told, "tokens": [0, 0]}
        if self._answered:
            self._append(record)
            return
        self._rejected.append(record)
        if len(self._rejected) >= IN_DOUBT:
            self._error = self._error or self._all_rejected()

    def _all_rejected(self) -> EndpointError:
        return EndpointError(
            f"{self._endpoint.url} rejects every request, {self._rejected[0]['rejected']}. Check "
            "the prompt and the parameters; a field that the server does not know is left out with "
            "parameters={'NAME': None}."
        )

    def _append(self, record: dict[str, Any]) -> None:
        self._journal.append({**record, "host": self._endpoint.host})
        self._done()
