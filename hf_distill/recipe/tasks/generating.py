"""Evaluation by generated text, for models with an encoder and a decoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import GenerationConfig, PreTrainedModel

from hf_distill.models.modes import evaluating
from hf_distill.models.sharding import is_sharded
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError, check_keys, refusing
from hf_distill.recipe.tasks.base import Collate, Split
from hf_distill.utils import interrupts
from hf_distill.utils.processes import process_state

NEW_TOKENS = 128
"""Longest generated text in tokens, unless the recipe sets another length."""
GREEDY: dict[str, Any] = {
    **{"do_sample": False, "num_beams": 1, "max_length": None, "max_new_tokens": NEW_TOKENS},
    **dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "typical_p")),
    **{"return_dict_in_generate": False, "num_return_sequences": 1},
}
"""Settings in place of those of a model, whose other ones (forced and suppressed tokens) stay."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "do_sample")
_FIXED = ("return_dict_in_generate", "num_return_sequences", "max_length", "_from_model_config")
_POSITIONS = ("max_target_positions", "max_position_embeddings")
_TARGETS = ("labels", "decoder_input_ids", "decoder_attention_mask")


def check_generation(data: Data) -> None:
    """Check ``data.generation``.

    Raises:
        RecipeError: arguments that `GenerationConfig` does not have, that contradict one another,
            or that draw tokens, so that figures would differ from run to run.
    """
    known = [name for name in GenerationConfig().to_dict() if name not in _FIXED]
    check_keys(data.generation, known, "data.generation.")
    for name in SAMPLING:
        if data.generation.get(name):
            raise RecipeError(
                f"`data.generation.{name}`: expected greedy or beam search, whose results do not "
                "depend on a seed, got sampling. Set `num_beams`, or leave it out."
            )
    with refusing("`data.generation`"):
        _settings(GenerationConfig(), data).validate(strict=True)


def _settings(own: GenerationConfig, data: Data) -> GenerationConfig:
    """Settings of a model with those of a recipe."""
    settings = copy.deepcopy(own)
    given = {"max_new_tokens": data.max_target_length} if data.max_target_length else {}
    settings.update(**{**GREEDY, **given, **data.generation})
    return settings


def configure(model: PreTrainedModel, data: Data, processor: Any) -> None:
    """Save the recipe's settings of generation with a model, so that ``model.generate(**inputs)``
    of its folder generates the texts that are measured.

    A new model whose config names no first token of the decoder begins with padding, as T5
    (Raffel et al. 2020, arXiv 1910.10683).
    """
    config: Any = model.config
    if getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id
    settings = _settings(model.generation_config or GenerationConfig(), data)
    if settings.decoder_start_token_id is None:
        settings.decoder_start_token_id = config.decoder_start_token_id
    model.generation_config = settings


def check_decoder(model: PreTrainedModel, who: str, length: int, ends: Sequence[int]) -> None:
    """Check that a model can generate the texts of a recipe.

    Args:
        model: The model.
        who: Its name in messages.
        length: Longest target in tokens.
        ends: Last tokens of the targets; the model stops at one of them.

    Raises:
        RecipeError: no decoder, no first token, too few positions, or no end of texts.
    """
    config, settings = model.config, model.generation_config
    if not config.is_encoder_decoder or settings is None:
        raise RecipeError(
            f"{who}: expected a model with an encoder and a decoder, got {type(model).__name__}. "
            "For decoders alone set `task: causal_lm`."
        )
    if settings.decoder_start_token_id is None and settings.bos_token_id is None:
        raise RecipeError(
            f"{who}: expected a first token of the decoder, got none. Set "
            "`decoder_start_token_id` in its generation_config.json."
        )
    parts, names = (config, config.get_text_config(decoder=True)), _POSITIONS
    limits = [getattr(part, name, None) for name in names for part in parts]
    places = next((limit for limit in limits if isinstance(limit, int)), None)
    if places is not None and length > places:
        raise RecipeError(
            f"{who}: expected targets of at most {places} tokens, its positions, got "
            f"`data.max_target_length: {length}`. Lower it."
        )
    decoder: Any = config.get_text_config(decoder=True)
    deep, cached = getattr(config, "num_decoder_layers", 0), decoder.num_hidden_layers
    if isinstance(deep, int) and deep > cached and settings.use_cache:
        raise RecipeError(
            f"{who}: expected at most {cached} decoder layers, as many as transformers' cache has "
            f"for a {config.model_type}, got {deep}. Set `data.generation: {{use_cache: false}}`, "
            "or keep more layers of the encoder."
        )
    stop = settings.eos_token_id
    stops = stop if isinstance(stop, list) else [stop]
    if not set(ends) <= set(stops):
        raise RecipeError(
            f"{who}: expected targets that end with its token {stops} (`eos_token_id`), got "
            f"{sorted(set(ends))}: it would never stop. Use the model's own tokenizer, or one that "
            "adds this token."
        )


def generated_texts(
    model: PreTrainedModel,
    split: Split,
    args: Any,
    collate: Callable[[Any], Collate],
    size: Callable[[Mapping[str, Any]], int] = lambda row: 0,
) -> list[str]:
    """One text per prepared example, in their order, without special tokens.

    The processes share the batches, which are the same for any number of processes: so are the
    texts. Every process calls this, and gets all texts.

    Args:
        model: The model; its mode stays as it is.
        split: The examples; its processor decodes token ids.
        args: Training arguments, with the device and the examples of a batch.
        collate: ``processor -> collator`` of the prepared examples; targets are left out.
        size: Length of an example, by which batches are put together.
    """
    state, rows = process_state(), split.rows
    collator = collate(split.processor)
    order = sorted(range(len(rows)), key=lambda i: -size(rows[i]))
    step = args.eval_batch_size
    batches = [order[start : start + step] for start in range(0, len(order), step)]
    rounds = math.ceil(len(batches) / state.num_processes)
    settings = _settings(model.generation_config or GenerationConfig(), split.data)
    device, together, found = args.device, is_sharded(model), []
    hidden = {*split.rows.column_names} & {*split.raw.column_names} - {*_TARGETS}
    model = model.to(device)
    for turn in range(rounds):
        interrupts.check()
        at = turn * state.num_processes + state.process_index
        own = batches[min(at, len(batches) - 1)]  # a sharded model runs everywhere equally often
        batch = collator([{k: v for k, v in rows[i].items() if k not in hidden} for i in own])
        inputs = {k: v.to(device) for k, v in batch.items() if k not in _TARGETS}
        with torch.no_grad(), evaluating(model):
            write: Any = model.generate
            ids = write(**inputs, generation_config=settings, synced_gpus=together)
        texts = split.processor.batch_decode(ids, skip_special_tokens=True)
        if at < len(batches):
            found += [(i, text.strip()) for i, text in zip(own, texts, strict=True)]
    gathered = gather_object(found) if state.num_processes > 1 else found
    return [text for _, text in sorted(gathered)]
