"""Completions by transformers' continuous batching."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any

from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hf_distill.models.task_model import base_of

TOKENS = 8192
"""Maximum tokens of a forward pass, transformers' default."""
KNOWN = {"eos_token_id", "pad_token_id", "num_return_sequences"}
"""The fields of `transformers.GenerationConfig` that mean the same here."""


def check_continuous(repetition_penalty: float, others: Iterable[str]) -> None:
    """Refuse settings that transformers' continuous batching would ignore."""
    lost = sorted(set(others) - KNOWN) + (["repetition_penalty"] if repetition_penalty != 1 else [])
    if lost:
        raise ValueError(
            f"Continuous batching draws by temperature, top_p, top_k and min_p alone, and would "
            f"ignore {lost}. Leave them out, or set continuous_batching=False."
        )


def check_batchable(model: nn.Module, sharded: bool = False) -> None:
    """Refuse a model that is, or will be, in shards, or one that reads learned prompts."""
    if sharded or isinstance(model, FSDPModule) or is_deepspeed_zero3_enabled():
        raise ValueError(
            "Continuous batching makes another number of steps on each process, and a model in "
            "shards (FSDP, ZeRO-3) takes its steps together. Set continuous_batching=False."
        )
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            "Continuous batching would leave out the learned prompts of this adapter. Set "
            "continuous_batching=False."
        )


def complete_continuously(
    model: nn.Module, prompts: list[list[int]], config: GenerationConfig
) -> list[list[int]]:
    """The tokens after each prompt; one that is finished makes room for another.

    All prompts are queued before the first step: `generate_batch` adds them while it generates, so
    that a seed would give other texts each time. The model is in eval mode.

    Raises:
        RuntimeError: a prompt that was not completed.
        ValueError: an attention implementation that this does not work with.
    """
    base: Any = base_of(model)
    attention, manager = base.config._attn_implementation, None
    try:
        manager = base.init_continuous_batching(config, _sizes(base, prompts, config))
        names = manager.add_requests(prompts, config.max_new_tokens)
        manager.start()
        found = _answers(manager, len(names))
    finally:
        if manager is not None:
            if manager.is_running():
                manager.stop(hard_stop=True)  # all are done, or something has failed
            manager.destroy()
        if base.config._attn_implementation != attention:
            base.set_attn_implementation(attention)
    failed = [found[name].error if name in found else "no answer" for name in names]
    failed = [error for error in failed if error is not None]
    if failed:
        raise RuntimeError(
            f"Continuous batching failed for {len(failed)} of {len(prompts)} prompts: {failed[0]}. "
            "Lower generation_batch_size if memory is short, or set continuous_batching=False."
        )
    return [list(found[name].generated_tokens) for name in names]


def _answers(manager: Any, count: int) -> dict[str, Any]:
    """The answers by request, all of them unless the generation has failed."""
    found: dict[str, Any] = {}
    while len(found) < count:
        answer = manager.get_result(timeout=1)
        if answer is not None:
            found[answer.request_id] = answer
        elif not manager.is_running():
            break
    return found


def _sizes(
    model: Any, prompts: list[list[int]], config: GenerationConfig
) -> ContinuousBatchingConfig:
    """Cache size on a CPU: as much as all prompts need (the default is 60 % of the memory)."""
    sizes = ContinuousBatchingConfig(auto_switch_to_flash=False)  # it trains with what it has
    if model.device.type == "cpu":
        lengths = [len(prompt) + config.max_new_tokens for prompt in prompts]
        sizes.num_blocks = sum(ceil(length / sizes.page_size) for length in lengths)
        sizes.safety_margin = 0.0  # there is room for all
        sizes.max_batch_tokens = min(TOKENS, sum(len(prompt) for prompt in prompts))
    return sizes
