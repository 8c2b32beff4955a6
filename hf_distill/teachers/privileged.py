"""Longer prompts for a teacher: a system prompt, retrieved documents, the answer."""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_distill.models.batches import Batch
from hf_distill.teachers.own_inputs import POSITIONS, OwnInputs

MESSAGES, PROMPT = "messages", "prompt"
Template = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class PromptInputs(OwnInputs):
    """The teacher's own prompt in front of the student's completion, for causal language models.

    The completion is the labelled end of a row; both models read the same tokens of it, and the
    teacher's outputs are taken at these. Privileged context distils what examples share (a rule, a
    system prompt); hints about a single example, such as its answer, teach a student to state what
    it cannot know (arXiv 2605.11182).

    Args:
        template: A text with fields in braces (``"{document} {prompt}"``), the whole prompt; or
            messages with such fields, which precede the messages of the row.
    """

    template: Template = ""

    def found_in(
        self, example: Mapping[str, Any] | None, read: Collection[str] = ()
    ) -> OwnInputs | None:
        if example is None:
            return self
        texts = isinstance(self.template, str)
        own = () if texts else (MESSAGES if MESSAGES in example else PROMPT,)
        return replace(self, columns=(*fields_of(self.template), *own))

    def _processed(self, values: list[list[Any]]) -> dict[str, Tensor]:
        return {}  # made in `positions`, which knows the completion

    def prompt(self, row: Mapping[str, Any]) -> str | list[dict[str, Any]]:
        """The teacher's prompt for an example.

        Raises:
            ValueError: a column of the template is missing.
        """
        fields = {name: self._value(row, name) for name in fields_of(self.template)}
        if isinstance(self.template, str):
            return self.template.format(**fields)
        rendered: list[dict[str, Any]] = [
            {**m, "content": str(m["content"]).format(**fields)} for m in self.template
        ]
        own = self._value(row, self.columns[-1])
        if isinstance(own, str):
            raise ValueError(
                "Expected rows of messages for a template of messages, got a prompt that is a "
                "text. Give the template as a text: ModelTeacher(model, tokenizer, "
                "prompt='{prompt}')."
            )
        last = max((n for n, m in enumerate(own) if m["role"] == "assistant"), default=len(own))
        asked = [dict(m) for m in (own if MESSAGES not in row else own[:last])]
        if rendered and asked and rendered[0]["role"] == asked[0]["role"] == "system":
            asked = asked[1:]
        return [*rendered, *asked]

    def positions(self, examples: Sequence[Mapping[str, Any]], batch: Batch) -> dict[str, Tensor]:
        """The teacher's tokens ``(B, U)``, their mask, and for each of the student's positions that
        predicts a token of the completion the teacher's, ``(B, T)``; -1 elsewhere.

        Raises:
            ValueError: no labelled end of a row, packed rows, or a prompt that is too long.
        """
        ids, labels = batch["input_ids"], batch.get("labels")
        if labels is None or "position_ids" in batch:
            raise ValueError(
                "Expected rows with labels on their completion, one example each, for a teacher "
                f"with a prompt of its own, got {sorted(batch)}. Tokenize with labels, and do not "
                "pack."
            )
        rows, found = [], torch.full(ids.shape, -1)
        for number, example in enumerate(examples):
            first, end = _completion(labels[number])
            prompt = self._encoded(self.prompt(example))
            rows.append(torch.tensor([*prompt, *ids[number, first:end].tolist()]))
            if self.max_length is not None and len(rows[-1]) > self.max_length:
                raise ValueError(
                    f"Expected at most {self.max_length} tokens for the teacher, got "
                    f"{len(rows[-1])} in a prompt with its completion. Shorten the context, or "
                    "leave the row out."
                )
            found[number, first - 1 : end - 1] = torch.arange(len(prompt) - 1, len(rows[-1]) - 1)
        tokens = pad_sequence(rows, batch_first=True, padding_value=0)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        made = {"input_ids": tokens, "attention_mask": mask, POSITIONS: found}
        return {f"{self.prefix}{name}": value for name, value in made.items()}

    def _encoded(self, prompt: str | list[dict[str, Any]]) -> list[int]:
        if isinstance(prompt, str):
            return list(self.processor(prompt)["input_ids"])
        found = self.processor.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(found["input_ids"])


def fields_of(template: Template) -> tuple[str, ...]:
    """The columns that a template names in braces."""
    parts = [template] if isinstance(template, str) else [str(m["content"]) for m in template]
    found = [name for part in parts for _, name, _, _ in string.Formatter().parse(part) if name]
    return tuple(dict.fromkeys(found))


def _completion(labels: Tensor) -> tuple[int, int]:
    """The range of the labelled tokens.

    Raises:
        ValueError: there are none, or several ranges.
    """
    places = (labels != -100).nonzero().flatten()
    whole = len(places) and int(places[-1]) - int(places[0]) + 1 == len(places)
    if not whole or int(places[0]) == 0:
        raise ValueError(
            "Expected labels on one completion behind a prompt, for a teacher with a prompt of its "
            f"own, got labels at {places.tolist()[:12]}. Make one row of each answer of a "
            "conversation."
        )
    return int(places[0]), int(places[-1]) + 1
