"""A tiny configuration for any configuration class of transformers, by rules on field names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from tiny_sizes import (
    EXACT,
    HEAD,
    HEADS,
    IMAGE,
    INNER,
    LAYERS,
    LONGEST,
    PATCH,
    TOKENS,
    VOCAB,
    WIDTH,
    Value,
)
from transformers import PreTrainedConfig, ResNetConfig, TimmBackboneConfig

Rule = Callable[[Value], Value]


def _each(change: Rule) -> Rule:
    """A rule for a number, applied to every number of a sequence."""

    def rule(old: Value) -> Value:
        if isinstance(old, (list, tuple)):
            return type(old)(rule(part) for part in old)
        return old if old is None or isinstance(old, (bool, str)) else change(old)

    return rule


def _is(number: float) -> Rule:
    return _each(lambda old: number if old else old)


def _at_most(number: int) -> Rule:
    return _each(lambda old: min(old, number) if isinstance(old, int) else old)


def _key_values(old: Value) -> Value:
    return _each(lambda _: 1)(old)


RULES: tuple[tuple[str, Rule], ...] = (
    (r"drop(?!_path_token)|_prob$|_pdrop$|jitter", _each(lambda old: type(old)(0))),
    (r"^(n_)?(num_)?labels$|^id2label$|^label2id$", lambda old: old),
    (r"codebook_size", _is(64)),
    (r"vocab_size|num_embeddings|n_token$", _is(VOCAB)),
    (r"(key_value|kv).*heads|^n_head_kv$|^num_kv_heads$|num_query_groups", _key_values),
    (r"heads?$|num_heads_|heads_per", _is(HEADS)),
    (
        r"head_dim|^d_kv$|d_head$|kv_channels|dim_head|v_head|attention_head_size|^rotary_dim$",
        _is(HEAD),
    ),
    (
        r"ffn_dim|intermediate|^d_ff$|ff_dim|mlp_dim|^d_inner$|^n_inner$|ffn_hidden|feedforward",
        _is(INNER),
    ),
    (r"lora_rank|_rank$", _is(8)),
    (r"num_experts_per|top_?k$|^moe_k$|topk_experts", _at_most(2)),
    (r"topk_group|n_groups?$|num_expert_group", _is(1)),
    (r"num_.*experts|n_.*experts|experts$", _at_most(4)),
    (r"num_kv_shared_layers|first_k_dense", _is(0)),
    (r"layers?$|^depths?$|num_blocks|block_repeats|num_layers|_depth$|^n_layer", _at_most(LAYERS)),
    (r"depths$", _is(1)),
    (r"image_size|img_size|input_size|resolution$|crop_size", _is(IMAGE)),
    (r"upsample_groups", _at_most(WIDTH)),
    (r"^patch_size|_patch_size$", _at_most(PATCH)),
    (r"max_.*position|n_positions|max_seq|n_ctx$|seq_len|max_.*length", _at_most(LONGEST)),
    (
        r"sliding_window|attention_window|local_attention|attention_chunk_size|^chunk_size|mamba_chunk_size|attn_chunk_length",
        _at_most(4),
    ),
    (r"window_size", _at_most(4)),
    (r"mel_bins|spectrogram_bins|input_feat_per", _at_most(16)),
    (r"num_frames|frames_per_clip", _at_most(4)),
    (r"num_queries|num_query_tokens|num_latents|n_latents|query_num|detection_tokens", _at_most(4)),
    (
        r"hidden_size|hidden_dim|d_model|^dim$|embed_dim|n_embd|embedding_size|projection_dim|"
        r"_width$|width$|_dims?$|_channels$|channels?_list|_size_per_|hidden_channels|proj_size|"
        r"num_filters|_units$|project_dim|emb_dim|projection_size|embed_size|feature_size",
        _at_most(WIDTH),
    ),
)
"""(Pattern of the field's name, what becomes of its value); the first that matches counts."""

KEEP = r"^((num|in|input|audio)_channels|in_chans|(modality_)?type_vocab_size)$"
"""Sizes that the data have, or that are small."""


def tiny(kind: type[PreTrainedConfig], like: Any = None, **given: Value) -> Any:
    """Make a tiny configuration.

    Args:
        kind: The class of configuration.
        like: The configuration whose fields are shrunk; by default the one of its defaults.
        **given: Fields that no rule is to decide.
    """
    like = kind() if like is None else like
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name: field for field in dataclasses.fields(kind) if field.name not in common}
    fields = {name: _given(like, field) for name, field in sorted(own.items())}
    layers = _layers(fields)
    made = {name: _tiny_value(name, value, layers) for name, value in fields.items()}
    if "kv_lora_rank" in made and "num_key_value_heads" in made:  # latent attention has no groups
        made["num_key_value_heads"] = HEADS
    for name, number in NEVER_NONE.items():
        if name in made and made[name] is None:
            made[name] = number
    if "head_dim" in made and "num_attention_heads" in made:
        made["head_dim"] = HEAD
    exact = EXACT.get(kind.__name__) or EXACT.get(getattr(kind, "model_type", ""), {})
    return kind(**{**made, **exact, **given})


NEVER_NONE = {"num_experts_per_tok": 2, "topk_group": 1, "n_group": 1}
"""Sizes without which some classes do not run."""
PER_LAYER = (
    r"layer_types|layers_block_type|_types$|^attn_layers$|no_rope_layers|layer_rope|per_layer$"
)


def _given(like: Any, field: Any) -> Value:
    """A field's value; None where the class works it out from the others."""
    plain = field.name not in getattr(like, "attribute_map", {}) and field.name in vars(like)
    value = vars(like)[field.name] if plain else getattr(like, field.name, None)
    kept = isinstance(value, PreTrainedConfig) or re.search(PER_LAYER, field.name)
    return value if kept or field.default is not None else None


def _layers(fields: dict[str, Value]) -> int:
    """As many layers as there are kinds of them."""
    kinds = [len(set(v)) for n, v in fields.items() if re.search(PER_LAYER, n) and _flat(v)]
    return max([LAYERS, *kinds])


def _flat(value: Value) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(v, (str, int, float)) for v in value)


def _tiny_value(name: str, value: Value, layers: int) -> Value:
    if isinstance(value, TimmBackboneConfig):  # whose library may not be there
        return tiny(ResNetConfig, out_features=[f"stage{i}" for i in range(1, 5)])
    if isinstance(value, PreTrainedConfig):
        return tiny(type(value), value)
    if re.search(r"_token(_id|_index)?s?$|^(pad|bos|eos|unk|mask)_index$", name) and not isinstance(
        value, dict
    ):
        return _token(name, value)
    if re.search(PER_LAYER, name) and _flat(value):
        kinds = list(dict.fromkeys(value))
        return type(value)((kinds + kinds[-1:] * layers)[:layers])
    if re.search(r"indexes|indices|layer_ids|_ids$|hybrid_layer", name) and _flat(value):
        return type(value)([layers - 1] if value else [])
    if re.fullmatch(r"(num_)?(hidden_)?layers|n_layers?|num_hidden_layers", name) and isinstance(
        value, int
    ):
        return layers
    if re.search(KEEP, name):
        return value
    if isinstance(value, dict):
        return _rope(value) if "rope" in name else value
    for pattern, rule in RULES:
        if re.search(pattern, name):
            return rule(value)
    return value


def _rope(value: dict[str, Value]) -> dict[str, Value]:
    made = {k: _rope(v) if isinstance(v, dict) else v for k, v in value.items()}
    if "mrope_section" in made:
        made["mrope_section"] = [4, 2, 2]
    return made


NUMBERED: dict[str, int] = {}


def _token(name: str, value: Value) -> Value:
    if name == "pad_token_id":
        return TOKENS["pad"]
    if isinstance(value, (list, tuple)):
        several = value if value and isinstance(value[0], bool) else value[:1]
        return type(value)(_token(name, part) for part in several)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return value
    short = re.sub(r"_token_(id|index)$|_index$|_token$", "", name)
    if short in TOKENS:
        return TOKENS[short]
    return NUMBERED.setdefault(short, 10 + len(NUMBERED) % 28)
