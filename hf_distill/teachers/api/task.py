"""Kinds of annotation: their requests, and how the answers are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_distill.teachers.api import answers as read
from hf_distill.teachers.api.asking import Request
from hf_distill.teachers.api.journal import key_of

MARKER = "Answer:"
"""Text between a rationale and its label."""


@dataclass(frozen=True)
class Task:
    """Requests for a kind of annotation, and how their answers are read.

    Args:
        names: Names of the labels; empty for completions.
        words: The answer word of each label.
        samples: Requests per example; None: one, of which the likeliest tokens are read.
        rationale: True: the answer is a rationale, the marker and the label.
        parameters: Fields of the requests in addition to the defaults, or in place of them.
        min_mass: Smallest total probability of the answer words.
        marker: Text between a rationale and its label.
    """

    names: list[str]
    words: list[str]
    samples: int | None
    rationale: bool
    parameters: Mapping[str, Any]
    min_mass: float
    marker: str

    def fields(self, sample: int) -> dict[str, Any]:
        """The fields of the request of a sample; those that are None are left out."""
        if not self.names:
            own: dict[str, Any] = {"temperature": 0, "max_tokens": 1024}
        elif self.samples is None:
            own = {"temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 20}
        else:
            own = {"temperature": 1.0 if self.samples > 1 else 0}
            own |= {"max_tokens": 512 if self.rationale else 16, "seed": sample}
        fields = own | dict(self.parameters)
        if self.samples is not None and self.samples > 1 and self.parameters.get("seed"):
            fields["seed"] = self.parameters["seed"] + sample
        return {name: value for name, value in fields.items() if value is not None}

    def requests(self, model: str, messages: Sequence[Mapping[str, str]]) -> Iterator[Request]:
        """The requests for one example."""
        for sample in range(self.samples or 1):
            fields = self.fields(sample)
            yield Request(key_of(model, messages, fields, sample), messages, fields)

    def label(self, answer: Mapping[str, Any]) -> int | None:
        """Label of one answer."""
        text = answer.get("text") or ""
        if self.rationale:
            parts = read.split_rationale(text, self.marker)
            return None if parts is None else read.label_of(parts[1], self.words)
        return read.label_of(text, self.words)

    def distribution(self, answers: Sequence[Mapping[str, Any]]) -> read.Distribution | None:
        """Distribution over the labels by the answers to one example; None: not readable.

        Raises:
            ValueError: the server returns no log-probabilities.
        """
        if self.samples is not None:
            return read.votes([self.label(answer) for answer in answers], len(self.words))
        answer = answers[0]
        if "rejected" in answer or not answer["text"]:
            return None
        if not answer.get("logprobs"):
            raise ValueError(
                "Expected log-probabilities (`top_logprobs`) in the answers, got none: this server "
                "does not provide them. Pass samples=8 to count votes in place of them."
            )
        found = read.distribution(answer["logprobs"], self.words)
        return None if found is None or found[1] < self.min_mass else found

    def best_rationale(self, answers: Sequence[Mapping[str, Any]], label: int) -> str | None:
        """First rationale that ends with a label."""
        for answer in answers:
            if self.label(answer) == label:
                parts = read.split_rationale(answer["text"], self.marker)
                return None if parts is None else parts[0].strip()
        return None
