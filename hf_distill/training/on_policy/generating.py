"""Completions of prompts, by a model of transformers or by anything else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import signature
from itertools import groupby
from numbers import Integral, Real
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from hf_distill.data.random_states import same_torch_randomness
from hf_distill.models.batch_checks import explained_errors
from hf_distill.models.modes import evaluating
from hf_distill.models.places import cached_prompt, prompt_config
from hf_distill.models.sharding import is_sharded
from hf_distill.models.task_model import base_of
from hf_distill.training.on_policy.continuous import (
    check_batchable,
    check_continuous,
    complete_continuously,
)

Tokens = list[int]
OWN_FIELDS = ("max_new_tokens", "max_length", "do_sample", "temperature", "top_p", "top_k", "min_p")


def check_number(
    name: str,
    value: Any,
    least: float,
    most: float = math.inf,
    *,
    whole: bool = False,
    above: bool = False,
) -> None:
    """Refuse a setting that is no (whole) number in the range; `above` excludes the lower bound.

    >>> check_number("top_p", 0.9, 0, 1, above=True)
    >>> check_number("top_p", "0.9", 0, 1, above=True)
    Traceback (most recent call last):
    ValueError: Expected top_p above 0 and at most 1, got '0.9'.
    """
    right = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if right and math.isfinite(value) and least <= value <= most and not (above and value == least):
        return
    kind = " as a whole number" if whole else ""
    bounds = f"above {least}" if above else f"of at least {least}"
    if most < math.inf:
        bounds = f"above {least} and at most {most}" if above else f"between {least} and {most}"
    raise ValueError(f"Expected {name} {bounds}{kind}, got {value!r}.")


def check_switch(name: str, value: Any) -> None:
    """Raise ValueError unless a setting is true or false: the text "no" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"Expected {name} as True or False, got {value!r}.")


@runtime_checkable
class Generator(Protocol):
    """Completion of prompts with the present weights of the student.

    One that is a `transformers.TrainerCallback` too is given the model during training. The README
    has one for vLLM.
    """

    def __call__(self, prompts: list[Tokens], seed: int) -> list[Tokens]:
        """The tokens after each prompt, without it, an end token among them if there was one.

        Args:
            prompts: The tokens of each prompt; of an encoder-decoder, what its encoder reads.
            seed: Another one for every optimizer step and process.
        """
        ...


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of completions.

    Args:
        max_completion_length: Tokens at most, the end token among them.
        temperature: Temperature of the softmax; 0: the likeliest token, without sampling.
        top_p: From the fewest tokens that have this probability together.
        top_k: From the so many likeliest tokens; 0: from all.
        min_p: From those with at least this share of the likeliest one's probability; None: all.
        repetition_penalty: Above 1 makes tokens less likely that were there already.
        others: Fields of `transformers.GenerationConfig` besides.

    Raises:
        ValueError: a value out of its range, or a field that has a name of its own here.
    """

    max_completion_length: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    others: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_number("max_completion_length", self.max_completion_length, 1, whole=True)
        check_number("generation_temperature", self.temperature, 0)
        check_number("top_p", self.top_p, 0, 1, above=True)
        check_number("top_k", self.top_k, 0, whole=True)
        check_number("min_p", 0 if self.min_p is None else self.min_p, 0, 1)
        check_number("repetition_penalty", self.repetition_penalty, 0, above=True)
        self._check_others()

    def _check_others(self) -> None:
        if taken := sorted(set(self.others) & {*OWN_FIELDS, "repetition_penalty"}):
            raise ValueError(
                f"generation_kwargs holds {taken}, which have arguments of their own: "
                "max_completion_length, generation_temperature, top_p, top_k, min_p, "
                "repetition_penalty."
            )
        if unknown := sorted(set(self.others) - set(vars(GenerationConfig()))):
            near = get_close_matches(unknown[0], [*vars(GenerationConfig()), *OWN_FIELDS], 2)
            raise ValueError(
                f"Expected generation_kwargs with fields of transformers.GenerationConfig, got "
                f"{unknown}. Near names are {near}."
            )
        ends = self.others.get("eos_token_id") or []
        for end in [ends] if isinstance(ends, (int, str)) else ends:
            check_number("eos_token_id in generation_kwargs", end, 0, whole=True)
        several = self.others.get("num_return_sequences", 1)
        if several != 1:
            raise ValueError(
                f"Expected one completion per prompt, got num_return_sequences={several}."
            )

    def config(self, ends: Sequence[int], padding: int) -> GenerationConfig:
        """Settings for ``generate``, in place of the sampling of the model's own config."""
        draws = self.temperature > 0
        fields: dict[str, Any] = {
            "max_new_tokens": self.max_completion_length,
            "do_sample": draws,
            "temperature": self.temperature if draws else 1.0,
            "top_p": self.top_p,
            "top_k": self.top_k if draws else 50,  # its default: others it says are not used
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "use_cache": True,
            "pad_token_id": padding,
            **self.others,
        }
        if ends:
            fields["eos_token_id"] = list(ends)
        return GenerationConfig(**fields)


@dataclass(frozen=True)
class ModelGenerator:
    """Generator with a transformers model, whose mode and settings are restored.

    Args:
        model: A causal language model or an encoder-decoder, or a PEFT model around one.
        sampling: Sampling of completions, from a random state of its own.
        tokenizer: Its end token ends a text too.
        batch_size: Prompts per call; None: all. Under FSDP2 and ZeRO-3 every process must make
            the same number of calls.
        continuous: Use continuous batching.

    Raises:
        ValueError: a model or a sampling that ``continuous`` does not support; a model whose
            ``generate`` ignores its adapter.
    """

    model: nn.Module
    sampling: Sampling = field(default_factory=Sampling)
    tokenizer: Any = None
    batch_size: int | None = None
    continuous: bool = False

    def __post_init__(self) -> None:
        base = base_of(self.model)
        if cached_prompt(self.model) and "cache" in signature(base.forward).parameters:
            raise ValueError(
                f"PEFT hands the prefix of this {type(base).__name__} to `generate` under a name "
                "that transformers no longer reads, so that texts would be written without it. "
                "Learn a prompt of tokens (PromptTuningConfig) or LoRA, or give texts that are "
                "written already (lmbda=0)."
            )
        if self.continuous:
            check_continuous(self.sampling.repetition_penalty, self.sampling.others)
            check_batchable(self.model)

    def __call__(self, prompts: list[Tokens], seed: int) -> list[Tokens]:
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        size = self.batch_size or max(1, len(prompts))
        found: dict[int, Tokens] = {}
        device = next(self.model.parameters()).device
        groups = [order]
        if not self._pads:  # those of one length together
            groups = [list(group) for _, group in groupby(order, lambda i: len(prompts[i]))]
        with torch.no_grad(), evaluating(self.model), same_torch_randomness(device, seed):
            for chunk in (g[n : n + size] for g in groups for n in range(0, len(g), size)):
                complete = self._continuously if self.continuous else self._together
                found.update(zip(chunk, complete([prompts[i] for i in chunk]), strict=True))
        return [until_end(found[i], self.ends) for i in range(len(prompts))]

    @property
    def _pads(self) -> bool:
        """True if prompts of several lengths may share a batch: PEFT forgets the positions of
        texts that have padding between a learned prompt and themselves."""
        base: Any = base_of(self.model)
        pads = prompt_config(self.model) is None or base.config.is_encoder_decoder
        if not pads and is_sharded(self.model):
            raise ValueError(
                f"A {type(base).__name__} with a learned prompt (PEFT) writes texts of each length "
                "by themselves, which FSDP2 and ZeRO-3 cannot wait for. Train it under DDP, or "
                "with another adapter (LoRA)."
            )
        return pads

    @property
    def ends(self) -> list[int]:
        """The tokens that end a completion: the model's and the tokenizer's, unless given."""
        own: Any = getattr(base_of(self.model), "generation_config", None)
        given = self.sampling.others.get("eos_token_id")
        known = [getattr(holder, "eos_token_id", None) for holder in (own, self.tokenizer)]
        found = known if given is None else [given]
        lists = [[end] if isinstance(end, int) else end for end in found if end is not None]
        return sorted({int(end) for ends in lists for end in ends})

    @property
    def padding(self) -> int:
        """A token to pad with, which is masked everywhere."""
        base: Any = base_of(self.model)
        holders = (self.tokenizer, getattr(base, "generation_config", None))
        known = [getattr(holder, "pad_token_id", None) for holder in holders]
        tokens = [token for token in known if isinstance(token, int)] + self.ends
        classes = base.config.get_text_config().vocab_size  # a config may name others by default
        return next((token for token in tokens if 0 <= token < classes), 0)

    def _together(self, prompts: list[Tokens]) -> list[Tokens]:
        """All prompts as one batch, padded on the left."""
        model: Any = self.model
        base = base_of(model)
        decoder_only = not base.config.is_encoder_decoder
        ids, mask = _padded(prompts, self.padding, left=decoder_only)
        device = next(model.parameters()).device
        who = f"the model that writes ({type(base).__name__})"
        with explained_errors(who, base, {"input_ids": ids}):
            out: Tensor = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self.sampling.config(self.ends, self.padding),
                synced_gpus=is_sharded(model),
            )
        completions: list[Tokens] = out[:, ids.shape[1] if decoder_only else 1 :].tolist()
        return completions

    def _continuously(self, prompts: list[Tokens]) -> list[Tokens]:
        config = self.sampling.config(self.ends, self.padding)
        return complete_continuously(self.model, prompts, config)


def until_end(tokens: Tokens, ends: Sequence[int]) -> Tokens:
    """Tokens up to the first end token, inclusive."""
    first = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: first + 1]


def _padded(rows: list[Tokens], padding: int, left: bool) -> tuple[Tensor, Tensor]:
    """Rows as one tensor ``(B, T)``, and its mask."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), padding)
    mask = torch.zeros(ids.shape, dtype=torch.long)
    for index, row in enumerate(rows):
        own = slice(width - len(row), None) if left else slice(len(row))
        ids[index, own] = torch.tensor(row, dtype=torch.long)
        mask[index, own] = 1
    return ids, mask
