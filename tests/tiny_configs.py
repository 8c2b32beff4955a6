"""A tiny configuration for any configuration class of transformers, by rules on field names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig, ResNetConfig, TimmBackboneConfig

WIDTH, INNER, HEADS, LAYERS, VOCAB, IMAGE, PATCH, LABELS = 32, 48, 2, 2, 96, 32, 8, 3
HEAD = WIDTH // HEADS
LONGEST = 64
"""Positions."""
TOKENS = {"bos": 1, "eos": 2, "pad": 3, "decoder_start": 4, "mask": 5, "unk": 6, "cls": 7, "sep": 8}
"""Special tokens, none of them 0; others are numbered from 10 on."""
WORDS = 40
"""The first token that stands for nothing special."""

Value = Any
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


MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
EXACT: dict[str, dict[str, Value]] = {
    "glm_image_text": {"rope_parameters": MROPE},
    "vibevoice_acoustic_tokenizer_decoder": {
        "num_filters": 4,
        "depths": (1, 1, 1),
        "downsampling_ratios": (2, 4),
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "n_group": 1, "topk_group": 1},
    "DbrxAttentionConfig": {"rope_theta": 1e4, "clip_qkv": 8.0},
    "FunAsrNanoAdaptorConfig": {"intermediate_size": WIDTH // 4},
    "bros": {"hidden_size": 64},
    "xlstm": {"qk_dim_factor": 1.0, "chunk_size": 16},
    "upernet": {
        "backbone_config": {
            "model_type": "resnet",
            "depths": [1] * 4,
            "hidden_sizes": [16] * 4,
            "embedding_size": 16,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        }
    },
    "step3p7_text": {"sliding_window": 4},
    "sapiens2": {
        "num_key_value_heads_per_layer": [2, 1],
        "head_config": {
            "upsample_out_channels": [16],
            "upsample_kernel_sizes": [4],
            "conv_out_channels": [16],
            "conv_kernel_sizes": [1],
        },
    },
    "radio": {"video_temporal_patch_size": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "num_key_value_heads": 1,
    },
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [(0, 0)],
        "spatial_target_layers": [1],
    },
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "glm5_next_text": {"num_key_value_heads": 2, "index_topk": 16},
    "dpt": {
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [16] * 4,
    },
    "dory": {
        "num_hidden_layers": 3,
        "n_input_layers": 1,
        "n_recurrent_layers": 1,
        "n_output_layers": 1,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48},
    "chameleon": {
        "vocabulary_map": {
            "<image>": 20,
            **{f"IMGIMG{c}Z": 30 + i for i, c in enumerate("ABCDEFGH")},
        }
    },
    "apertus1p5_vision": {"codebook_size": 16},
    "apertus1p5": {"image_token_offset": 0, "audio_token_offset": 16},
    "align": {"projection_dim": 16},
    "efficientnet": {
        "depth_coefficient": 1.0,
        "width_coefficient": 1.0,
        "in_channels": (32,) + (16,) * 6,
        "out_channels": (16,) * 7,
        "hidden_dim": 1280,
    },
    "align_vision_model": {
        "depth_coefficient": 1.0,
        "width_coefficient": 1.0,
        "in_channels": [32] + [16] * 6,
        "out_channels": [16] * 7,
        "hidden_dim": 1280,
    },
    "cvt": {"depth": (1, 2, 3)},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "step3p7": {},
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": (1, 1)},
    "chameleon_vqgan": {"base_channels": 32, "channel_multiplier": (1, 1)},
    "janus_vqgan": {"base_channels": 32, "channel_multiplier": (1, 1)},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "qwen3_omni_moe_text": {"rope_parameters": MROPE},
    "qwen2_5_omni_text": {"rope_parameters": MROPE},
    "hy_v4_vl_text": {"rope_parameters": MROPE},
    "cosmos3_edge_text": {"rope_parameters": MROPE},
    "hunyuan_vl_text": {"rope_parameters": MROPE},
    "qwen2_5_vl_text": {"rope_parameters": MROPE},
    "qwen2_vl_text": {"rope_parameters": MROPE},
    "paddleocr_vl_text": {"rope_parameters": MROPE},
    "glm_ocr_text": {"rope_parameters": MROPE},
    "glm4v_text": {"rope_parameters": MROPE},
    "glm46v_text": {"rope_parameters": MROPE},
    "glm4v_moe_text": {"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "attn_layer_indices": [1]},
    "perceiver": {
        "d_latents": 32,
        "d_model": 32,
        "num_self_attends_per_block": 2,
        "qk_channels": 32,
        "v_channels": 32,
        "max_position_embeddings": 8,
    },
    "mobilevitv2": {"width_multiplier": 0.25, "image_size": 64},
    "levit": {"patch_size": 16, "image_size": 64},
    "maskformer-swin": {"embed_dim": 8, "patch_size": 2, "window_size": 2},
    "swinv2": {"embed_dim": 8, "patch_size": 2, "window_size": 2},
    "swin": {"embed_dim": 8, "patch_size": 2, "window_size": 2},
    "donut-swin": {"embed_dim": 8, "patch_size": 2, "window_size": 2},
    "xmod": {"default_language": "en_XX"},
    "lilt": {"hidden_size": 24},
    "layoutlmv2": {"coordinate_size": 4, "shape_size": 8},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"num_key_value_heads": 2},
    "emu3": {"vocabulary_map": {"<image>": 20}},
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}
    },
    "fun_asr_nano_adaptor": {"intermediate_size": WIDTH // 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "pp_lcnet": {
        "block_configs": [
            [[3, 16, 32, 1, False]],
            [[3, 32, 32, 2, False]],
            [[3, 32, 32, 2, False]],
            [[3, 32, 32, 2, False]],
            [[5, 32, 32, 2, True]],
        ],
        "class_expand": 32,
    },
    "vibevoice_acoustic_tokenizer": {
        "num_filters": 4,
        "depths": (1, 1, 1),
        "downsampling_ratios": (2, 4),
    },
    "vibevoice_acoustic_tokenizer_encoder": {
        "num_filters": 4,
        "depths": (1, 1, 1),
        "downsampling_ratios": (2, 4),
    },
    "beit": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "bit": {"num_groups": 4},
    "cpmant": {"dim_ff": 48},
    "data2vec-vision": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [32, 32], "output_channels": 32},
    "diffllama": {"num_key_value_heads": 2},
    "esm": {"vocab_size": VOCAB},
    "esmc": {"num_key_value_heads": 2},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64},
    "focalnet": {"embed_dim": 8},
    "gemma3n_text": {"intermediate_size": INNER, "activation_sparsity_pattern": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite_speech5_encoder": {"context_size": 8},
    "hiera": {"embed_dim": 8, "image_size": (64, 64)},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 4},
    "mobilenet_v1": {"depth_multiplier": 0.125},
    "mobilenet_v2": {"depth_multiplier": 0.125},
    "nemotron": {"num_key_value_heads": 1},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (2, 4)},
    "squeezebert": dict.fromkeys(
        ["q_groups", "k_groups", "v_groups", "intermediate_groups", "output_groups"], 2
    ),
    "wav2vec2-bert": {"vocab_size": VOCAB},
    "wav2vec2-conformer": {"vocab_size": VOCAB},
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 32,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
}
"""Sizes that depend on each other in ways that no name tells, by `model_type`."""
