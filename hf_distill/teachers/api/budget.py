"""Limits on the tokens and the money that a data set may cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OVERHEAD = 16
"""Tokens of a chat template per message, at most, before any usage is known."""
MARGIN = 1.1
"""Factor on the largest number of tokens per byte of the answered requests."""


class BudgetError(RuntimeError):
    """The budget does not allow the next request. All answers so far are on disk."""


@dataclass(frozen=True)
class Budget:
    """Upper limits over all answers of a folder, earlier calls included.

    Args:
        tokens: Tokens of prompts and answers together.
        money: Money, in the currency of `ChatEndpoint.prices`.

    Raises:
        ValueError: a limit that is not positive.
    """

    tokens: int | None = None
    money: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"Expected {name} > 0 in a Budget, got {value}.")


def size_of(messages: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of the messages, with an allowance for the chat template."""
    texts = [str(message["content"]) for message in messages]
    return sum(len(text.encode("utf-8", "surrogatepass")) + OVERHEAD for text in texts)


class Ledger:
    """Tokens and money spent and reserved.

    A request is sent only if the budget covers its largest possible cost: its prompt, estimated
    from its bytes, and all tokens that its answer may have. A token has at least one byte; after
    the first answers the largest observed number of tokens per byte is used, and a tenth more.

    Args:
        budget: The limits; None: no limits.
        prices: Price of a million tokens of prompts and of answers.
    """

    def __init__(self, budget: Budget | None, prices: tuple[float, float] | None):
        self.budget, self.prices = budget or Budget(), prices
        if self.budget.money is not None and prices is None:
            raise ValueError(
                "Expected the prices of the endpoint for a budget in money, got none. Pass "
                "prices=(input, output) per million tokens to ChatEndpoint."
            )
        self.prompt_tokens = self.answer_tokens = 0
        self._reserved: dict[str, tuple[int, int]] = {}
        self._per_byte = 0.0

    def reserve(self, key: str, size: int, answer: int) -> bool:
        """Reserve the largest cost of a request; False if the budget does not cover it.

        Args:
            key: The request's key.
            size: Its `size_of`.
            answer: Largest number of tokens of its answer.
        """
        per_byte = min(1.0, self._per_byte * MARGIN) if self._per_byte else 1.0
        wanted = (int(size * per_byte) + 1, answer)
        parts = [*self._reserved.values(), wanted, (self.prompt_tokens, self.answer_tokens)]
        prompts, answers = (sum(part[i] for part in parts) for i in (0, 1))
        limits = self.budget
        if limits.tokens is not None and prompts + answers > limits.tokens:
            return False
        if limits.money is not None and self.cost(prompts, answers) > limits.money:
            return False
        self._reserved[key] = wanted
        return True

    def settle(
        self, key: str, tokens: Sequence[int] | None, size: int | None = None
    ) -> tuple[int, int]:
        """Replace a reservation by the usage that the server reported; without one it is kept.

        Args:
            key: The request's key.
            tokens: Tokens of prompt and answer, as reported; None: unknown.
            size: The request's `size_of`.

        Returns:
            The tokens of prompt and answer that are counted.
        """
        reserved = self._reserved.pop(key, (0, 0))
        prompt, answer = reserved if tokens is None else (tokens[0], tokens[1])
        self.prompt_tokens += prompt
        self.answer_tokens += answer
        if tokens is not None and size:
            self._per_byte = max(self._per_byte, tokens[0] / size)
        return prompt, answer

    def release(self, key: str) -> None:
        """Forget the reservation of a request without an answer."""
        self._reserved.pop(key, None)

    def cost(self, prompts: int | None = None, answers: int | None = None) -> float:
        """Money for numbers of tokens; default: what was spent. 0 without prices."""
        given, taken = self.prices or (0.0, 0.0)
        prompts = self.prompt_tokens if prompts is None else prompts
        answers = self.answer_tokens if answers is None else answers
        return (prompts * given + answers * taken) / 1e6

    @property
    def spent(self) -> str:
        """Tokens and money spent, in words."""
        tokens = f"{self.prompt_tokens + self.answer_tokens:,} tokens"
        return tokens if self.prices is None else f"{tokens} and {self.cost():.4f} in money"
