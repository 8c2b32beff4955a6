"""The sizes of tiny models, and those that depend on each other in ways that no name tells."""

from __future__ import annotations

from typing import Any

WIDTH, INNER, HEADS, LAYERS, VOCAB, IMAGE, PATCH, LABELS = 32, 48, 2, 2, 96, 32, 8, 3
HEAD = WIDTH // HEADS
LONGEST = 64
"""Positions."""
TOKENS = {"bos": 1, "eos": 2, "pad": 3, "decoder_start": 4, "mask": 5, "unk": 6, "cls": 7, "sep": 8}
"""Special tokens, none of them 0; others are numbered from 10 on."""
WORDS = 40
"""The first token that stands for nothing special."""

Value = Any
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
EXACT: dict[str, dict[str, Value]] = {
    "vits": {"upsample_rates": (2, 2), "upsample_kernel_sizes": (4, 4)},
    "autoformer": {"prediction_length": 4},
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
