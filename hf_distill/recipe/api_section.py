"""Section of a recipe for a teacher behind a chat endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_distill.recipe.errors import RecipeError, refusing
from hf_distill.teachers.api.budget import Budget
from hf_distill.teachers.api.endpoint import ChatEndpoint
from hf_distill.teachers.api.prompts import PromptTemplate


@dataclass(frozen=True)
class BudgetSection:
    """Limits of a chat endpoint's answers.

    Args:
        tokens: Tokens of prompts and answers.
        money: Money, in the currency of ``prices``.
    """

    tokens: int | None = None
    money: float | None = None


@dataclass(frozen=True)
class ApiSection:
    """A language model behind an OpenAI-compatible chat endpoint.

    Args:
        model: Its name there.
        base_url: Address to which ``/chat/completions`` is added.
        prompt: Jinja template over the data's columns (``{{ text }}``; ``{{ labels | join(', ')
            }}`` for the answer words), or messages of such.
        labels: Class -> answer word; default: the class names.
        samples: Votes per example; default: one answer, read by ``top_logprobs``.
        rationale: The answers end with ``Answer: WORD``.
        parameters: Further fields of the requests; null leaves one out.
        min_mass: Smallest total probability of the answer words of a readable answer.
        api_key_env: Environment variable with the key.
        provider: For the card; default: the host.
        terms: For the card: URL of the terms under which answers may be used.
        prices: Of a million tokens of prompts and of answers.
        budget: Limits over all answers; keys: ``tokens``, ``money``.
        concurrency: Simultaneous requests.
        timeout: Seconds of one attempt.
        retries: Attempts after the first.
    """

    model: str
    base_url: str
    prompt: str | list[dict[str, str]]
    labels: dict[str, str] | None = None
    samples: int | None = None
    rationale: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)
    min_mass: float = 0.5
    api_key_env: str | None = None
    provider: str | None = None
    terms: str | None = None
    prices: list[float] | None = None
    budget: BudgetSection | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6

    def __post_init__(self) -> None:
        with refusing("`teacher.api`"):
            self.endpoint()
            limits = self.limits()
        if limits is not None and limits.money is not None and self.prices is None:
            raise RecipeError("`teacher.api.budget.money` needs `teacher.api.prices`, got none.")

    def endpoint(self) -> ChatEndpoint:
        """The endpoint.

        Raises:
            ValueError: settings that do not fit.
        """
        names = ("model", "base_url", "api_key_env", "provider", "terms")
        numbers = ("concurrency", "timeout", "retries")
        options = {name: getattr(self, name) for name in (*names, *numbers)}
        prices: Any = None if self.prices is None else tuple(self.prices)
        return ChatEndpoint(**options, prices=prices)

    def limits(self) -> Budget | None:
        """The budget."""
        return None if self.budget is None else Budget(self.budget.tokens, self.budget.money)

    def identity(self) -> dict[str, Any]:
        """Everything on which the answers depend."""
        names = ("model", "prompt", "labels", "samples", "rationale", "parameters", "min_mass")
        return {name: getattr(self, name) for name in names}

    def words(self, labels: Sequence[str]) -> dict[str, str]:
        """The answer word of each class."""
        given = self.labels or {}
        return {name: given.get(name, name) for name in labels}

    def check(self, columns: list[str], labels: Sequence[str]) -> None:
        """Check that the prompt reads columns of the data, and the answer words.

        Raises:
            RecipeError: it does not.
        """
        if self.labels is not None and set(self.labels) != set(labels):
            raise RecipeError(
                f"`teacher.api.labels`: expected an answer word for each of {list(labels)}, got "
                f"{sorted(self.labels)}."
            )
        with refusing("`teacher.api.prompt`"):
            PromptTemplate(self.prompt, columns)
