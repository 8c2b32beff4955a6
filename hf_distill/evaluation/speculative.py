"""Acceptance of the student's draft tokens in speculative decoding (Leviathan et al., 2022)."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
)

from hf_distill.models.modes import evaluating
from hf_distill.models.task_model import vocabulary_size

CONSTANT: dict[str, Any] = {
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.0,
}
"""Settings of a draft model under which it always drafts the same number of tokens."""


@dataclass(frozen=True)
class Drafts:
    """Counts of speculative decoding.

    Attributes:
        accepted: Drafted tokens that the teacher accepted.
        examined: Those that it compared: the accepted ones and the first rejected one of each call.
        calls: Calls of the teacher.
        tokens: Generated tokens: the accepted ones, and one of the teacher's own per call.
    """

    accepted: int = 0
    examined: int = 0
    calls: int = 0
    tokens: int = 0

    def __add__(self, other: Drafts) -> Drafts:
        return Drafts(*map(operator.add, astuple(self), astuple(other)))

    @property
    def acceptance_rate(self) -> float:
        return self.accepted / max(1, self.examined)


def measured_acceptance(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompts: Sequence[str],
    tokenizer: Any,
    *,
    max_new_tokens: int = 64,
    drafted: int = 4,
    temperature: float = 0.0,
) -> Drafts:
    """Let a student draft for its teacher in `transformers`' assisted generation, and count.

    The models' generation settings and modes are the same afterwards as before.

    Args:
        student: The draft model, with the teacher's tokenizer.
        teacher: The model whose text is generated; drafts change nothing about its distribution.
        prompts: Texts, each continued by itself.
        tokenizer: Of both models.
        max_new_tokens: At which each continuation ends, if the end token does not come first.
        drafted: Tokens that the student drafts before each call of the teacher.
        temperature: At which both sample, from all tokens; 0: greedy decoding, where the rate is
            the agreement of both models along the teacher's own text.

    Raises:
        ValueError: no prompts, an empty one, numbers out of range, or vocabularies of different
            sizes.
    """
    if not prompts or max_new_tokens < 2 or drafted < 1 or temperature < 0:
        raise ValueError(
            "Expected prompts, at least 2 new tokens, at least 1 drafted token and a temperature "
            f"of 0 or more, got {len(prompts)} prompts, max_new_tokens={max_new_tokens}, "
            f"drafted={drafted} and temperature={temperature}."
        )
    _check_vocabularies(student, teacher)
    sampling: dict[str, Any] = {"do_sample": True, "top_k": 0} if temperature > 0 else {}
    settings = GenerationConfig(max_new_tokens=max_new_tokens, pad_token_id=0, **sampling)
    # as a setting, transformers 5.24 would apply the temperature to the drafts twice
    warped = [TemperatureLogitsWarper(float(temperature))] if temperature > 0 else []
    drafting = GenerationConfig(num_assistant_tokens=drafted, pad_token_id=0, **CONSTANT)
    ends: Any = getattr(teacher.generation_config, "eos_token_id", None)
    stops, total = frozenset(ends if isinstance(ends, list) else {ends}), Drafts()
    with _generating(student, drafting), _generating(teacher, settings):
        for prompt in prompts:
            inputs = tokenizer(prompt, return_tensors="pt").to(teacher.device)
            if not inputs["input_ids"].shape[1]:
                raise ValueError("Expected prompts with at least one token, got an empty one.")
            rounds = _Rounds(stops)
            handle = student.register_forward_hook(rounds.draft)
            try:
                generate: Any = teacher.generate
                generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    assistant_model=student,
                    logits_processor=LogitsProcessorList(warped),
                    stopping_criteria=StoppingCriteriaList([rounds]),
                    streamer=rounds,
                )
            finally:
                handle.remove()
            total = total + rounds.total
    return total


@dataclass
class _Rounds(StoppingCriteria):
    """Counts call by call: assisted generation streams the tokens that each call gave."""

    stops: frozenset[int]
    total: Drafts = field(default_factory=Drafts)
    drafted: int = 0
    begun: bool = False
    ended: bool = False

    def draft(self, module: Any, arguments: Any, output: Any) -> None:
        """A forward of the student is one drafted token."""
        self.drafted += 1

    def put(self, value: Tensor) -> None:
        """Count the tokens of one call: accepted ones, and one of the teacher at the end."""
        if not self.begun:  # the prompt
            self.begun = True
            return
        tokens = value.flatten().tolist()
        accepted, examined = len(tokens) - 1, min(len(tokens), self.drafted)
        ends = [place for place, token in enumerate(tokens, 1) if token in self.stops]
        if ends:  # what was generated after the end of the text is no text
            self.ended, tokens = True, tokens[: ends[0]]
            accepted, examined = min(accepted, ends[0]), min(examined, ends[0])
        self.total = self.total + Drafts(accepted, examined, 1, len(tokens))
        self.drafted = 0

    def __call__(self, input_ids: Tensor, scores: Any, **others: Any) -> Any:
        return torch.full(input_ids.shape[:1], self.ended, device=input_ids.device)

    def end(self) -> None:
        """The text is complete; nothing is left to count."""


@contextlib.contextmanager
def _generating(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Set generation settings and eval mode within the block."""
    owner: Any = model
    before, owner.generation_config = owner.generation_config, settings
    try:
        with evaluating(model):
            yield
    finally:
        owner.generation_config = before


def _check_vocabularies(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    ours, theirs = (vocabulary_size(model.config) for model in (student, teacher))
    if ours != theirs:
        raise ValueError(
            f"Expected one vocabulary for draft and teacher, got {ours} and {theirs} entries. "
            "Where only the padding of the vocabularies differs, give a copy of the smaller model "
            f"the larger size first: model.resize_token_embeddings({max(ours or 0, theirs or 0)})."
        )
