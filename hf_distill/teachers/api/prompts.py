"""Prompt templates for chat endpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

LABELS = "labels"
"""Variable of a template with the answer words."""


class PromptTemplate:
    """Messages made from the columns of an example, as Jinja templates.

    Args:
        prompt: One user message (``"Review: {{ text }}"``), or a list of messages with ``role`` and
            ``content``.
        columns: Columns of the data set.
        labels: The answer words; in templates ``{{ labels | join(', ') }}``.

    Raises:
        ValueError: a template that cannot be parsed, reads a column that is not there, or reads
            none.
    """

    def __init__(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        columns: Sequence[str],
        labels: Sequence[str] = (),
    ):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        self.source = [dict(message) for message in messages]
        self._labels = list(labels)
        for message in self.source:
            if message.keys() != {"role", "content"} or not isinstance(message["content"], str):
                raise ValueError(
                    "Expected messages with the keys 'role' and 'content', both texts, got "
                    f"{str(message)[:80]}. Give a text, or such a list."
                )
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
        try:
            parsed = [environment.parse(message["content"]) for message in self.source]
            self._templates = [environment.from_string(m["content"]) for m in self.source]
        except TemplateError as error:
            raise ValueError(
                f"Expected a Jinja template as a prompt, got an error: {error}. Write columns as "
                "{{ column }}."
            ) from error
        self.columns = sorted(
            set().union(*(meta.find_undeclared_variables(one) for one in parsed)) - {LABELS}
        )
        missing = [name for name in self.columns if name not in columns]
        if missing or not self.columns:
            raise ValueError(
                f"Expected a prompt with at least one of the columns {sorted(columns)}, got one "
                f"with {missing or 'none'}. Write columns as {{{{ column }}}}."
            )

    def __call__(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
        """The messages for an example.

        Raises:
            ValueError: the template cannot be rendered.
        """
        values = {name: example[name] for name in self.columns} | {LABELS: self._labels}
        try:
            texts = [template.render(values) for template in self._templates]
        except Exception as error:  # whatever an expression of the template raises
            raise ValueError(
                f"The prompt cannot be rendered for {str(values)[:80]}: {error}. Correct the "
                "template, or the column."
            ) from error
        roles = [message["role"] for message in self.source]
        return [{"role": r, "content": text} for r, text in zip(roles, texts, strict=True)]
