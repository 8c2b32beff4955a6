"""Conversations: tokens of a chat template, with labels on the assistant's text."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset
from transformers.utils.chat_template_utils import render_jinja_template

from hf_distill.data.language.encoding import encode_cut
from hf_distill.data.streams import columns_of

Message = Mapping[str, Any]
Span = tuple[int, int, float]  # a range of characters of a text, and its weight
REMEDY = (
    "pass a template that marks the answers with {% generation %} "
    "(chat_template_kwargs={'chat_template': …})."
)
MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Chat:
    """Reader of conversations with a tokenizer's chat template; ValueError without one.

    Templates that mark the assistant's text (``{% generation %}``) are used directly. For all
    others, an answer is the difference between the rendered conversation up to its end and the one
    up to the generation prompt before it.

    Args:
        tokenizer: A transformers tokenizer.
        assistant_only: Learn the answers only, each with its end-of-turn token.
        options: Further arguments of the template, or another ``chat_template``.
    """

    tokenizer: Any
    assistant_only: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tokenizer.chat_template is None and self.options.get("chat_template") is None:
            raise ValueError(
                "Expected a tokenizer with a chat template for rows of messages, got "
                f"{type(self.tokenizer).__name__} without one. Take the tokenizer of a chat model, "
                "set tokenizer.chat_template, pass chat_template_kwargs={'chat_template': …}, or "
                "give the rows as plain 'prompt' and 'completion' strings."
            )

    def read(
        self, messages: Sequence[Message], tools: Any = None, first: int = 0
    ) -> tuple[list[int], list[float]]:
        """Tokens of a conversation with their label weights (0: no label).

        ``messages`` are dicts with ``role``, ``content`` and, if wanted, the answer's ``weight``;
        only those from index ``first`` on get labels.

        Raises:
            ValueError: the answers cannot be separated from the rest; an invalid weight.
        """
        if not messages:
            return [], []
        weights = [_weight(message) for message in messages]
        messages = [{k: v for k, v in m.items() if k != "weight"} for m in messages]
        if not self.assistant_only and first == 0:
            if any(weight != 1 for weight in weights):
                raise ValueError(
                    "Weights of messages are those of the assistant's answers, and with "
                    "assistant_only=False all tokens are learned alike. Leave one of them out."
                )
            ids, _ = encode_cut(self.tokenizer, self._render(messages, tools), ())
            return ids, [1.0] * len(ids)
        answers = {  # an opening assistant message is not an answer
            index: weights[index] if index >= max(first, 1) else 0.0
            for index, message in enumerate(messages)
            if message["role"] == "assistant"
        }
        template = self.tokenizer.get_chat_template(self.options.get("chat_template"), tools)
        if MARKER.search(template):
            text, spans = self._marked(messages, tools, answers, template)
        else:
            text, spans = self._by_prefix(messages, tools, answers)
        cuts = [cut for start, stop, _ in spans for cut in (start, stop)]
        ids, counts = encode_cut(self.tokenizer, text, cuts)
        learned = [0.0] * len(ids)
        for start, stop, (*_, weight) in zip(counts[::2], counts[1::2], spans, strict=True):
            stop = self._end_of_turn(ids, start, stop)
            learned[start:stop] = [weight] * (stop - start)
        return ids, learned

    def _render(self, messages: Sequence[Message], tools: Any, prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **self.options
        )

    def _by_prefix(
        self, messages: Sequence[Message], tools: Any, answers: Mapping[int, float]
    ) -> tuple[str, list[Span]]:
        text = self._render(messages, tools)
        spans = []
        for index in (index for index, weight in answers.items() if weight):
            before = self._render(messages[:index], tools, prompt=True)
            after = self._render(messages[: index + 1], tools)
            if not text.startswith(after):  # the text after the last message
                after = after.removesuffix(self.tokenizer.eos_token or "")
            which = f"message {index} of {len(messages)}"
            if not after.startswith(before):
                raise ValueError(
                    f"The chat template does not write {which} as a continuation of its generation "
                    "prompt, so where the answer begins cannot be told. Pass chat_template_kwargs "
                    "for a prompt without thoughts (such as {'enable_thinking': False}), or "
                    f"{REMEDY}"
                )
            if not text.startswith(after):
                raise ValueError(
                    f"The chat template does not keep what it wrote before: {which} reads "
                    "otherwise in the whole conversation than when it was answered, so its tokens "
                    "cannot be told from the rest. Make one row of each answer "
                    f"(hf_distill.data.language.one_answer_each(dataset)), or {REMEDY}"
                )
            spans.append((len(before), len(after), answers[index]))
        return text, spans

    def _marked(
        self, messages: Sequence[Message], tools: Any, answers: Mapping[int, float], template: str
    ) -> tuple[str, list[Span]]:
        options = {**self.tokenizer.special_tokens_map, **self.options, "chat_template": template}
        rendered: Any = render_jinja_template(
            conversations=[[{k: v for k, v in m.items() if v is not None} for m in messages]],
            tools=tools,
            return_assistant_tokens_mask=True,
            **options,
        )
        (text,), (marks,) = rendered
        weights = list(answers.values())
        if len(set(weights)) == 1:  # all alike: which is whose does not matter
            weights = weights[:1] * len(marks)
        if len(weights) != len(marks):
            return self._by_prefix(messages, tools, answers)
        return text, [(a, b, w) for (a, b), w in zip(marks, weights, strict=True) if w]

    def _end_of_turn(self, ids: Sequence[int], start: int, stop: int) -> int:
        """End of an answer: its end-of-turn token, without the line break that the template adds,
        which a model never generates."""
        added = self.tokenizer.added_tokens_decoder
        special = {*self.tokenizer.all_special_ids, *(i for i, t in added.items() if t.special)}
        ends = [index for index in range(start, stop) if ids[index] in special]
        if ends and not self.tokenizer.decode(ids[ends[-1] + 1 : stop]).strip():
            return ends[-1] + 1
        if stop < len(ids) and ids[stop] == self.tokenizer.eos_token_id:
            return stop + 1
        return stop


def _weight(message: Message) -> float:
    weight = message.get("weight")
    if weight is None:
        return 1.0
    if not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
        raise ValueError(
            f"Expected the weight of a message to be a number of 0 or more, got {weight!r}."
        )
    return float(weight)


def one_answer_each(
    dataset: Dataset | IterableDataset, column: str = "messages"
) -> Dataset | IterableDataset:
    """One row for each answer of the assistant, with the conversation up to it.

    Only the last answer of a row has labels: for chat templates that render earlier answers
    differently, such as those without the reasoning of all answers but the last. Columns other than
    ``column``, that of the messages, are left out.
    """

    def split(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        rows = []
        for messages in batch[column]:
            for index, message in enumerate(messages):
                if message["role"] == "assistant" and index and _weight(message):
                    before = [
                        {**m, "weight": 0.0 if m["role"] == "assistant" else m.get("weight")}
                        for m in messages[:index]
                    ]
                    rows.append([*before, {**message, "weight": _weight(message)}])
        return {column: rows}

    columns, dataset = columns_of(dataset)
    return dataset.map(split, batched=True, remove_columns=columns)
