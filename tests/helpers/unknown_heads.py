"""Tiny models whose heads the table does not know, each with rows that its own loss takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

tf: Any = transformers

_SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIZES |= {"intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
_SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def _detr() -> Any:
    backbone = tf.ResNetConfig(**_RESNET, out_features=["stage2"])
    sizes = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")}
    return tf.DetrForObjectDetection(
        tf.DetrConfig(
            use_timm_backbone=False,
            backbone=None,
            use_pretrained_backbone=False,
            backbone_config=backbone,
            d_model=16,
            encoder_layers=1,
            decoder_layers=2,
            num_queries=5,
            num_labels=3,
            dropout=0.0,
            **sizes,
        )
    )


def _mask2former() -> Any:
    backbone = tf.SwinConfig(
        **_SWIN, image_size=32, patch_size=2, out_features=_STAGES, drop_path_rate=0.0
    )
    return tf.Mask2FormerForUniversalSegmentation(
        tf.Mask2FormerConfig(
            backbone_config=backbone,
            hidden_dim=32,
            feature_size=32,
            mask_feature_size=32,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            dim_feedforward=24,
            encoder_feedforward_dim=24,
            num_queries=5,
            num_labels=3,
            train_num_points=16,
        )
    )


def _xlnet() -> Any:
    sizes = {"vocab_size": 40, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}
    beams = {"start_n_top": 2, "end_n_top": 2, "summary_last_dropout": 0.0}
    return tf.XLNetForQuestionAnswering(tf.XLNetConfig(**sizes, **beams, dropout=0.0))


def _xlm(name: str) -> Any:
    sizes = {"vocab_size": 40, "emb_dim": 16, "n_layers": 1, "n_heads": 2, "dropout": 0.0}
    beams = {"start_n_top": 2, "end_n_top": 2, "attention_dropout": 0.0, "pad_index": 2}
    kind = "XLM" if name == "XLM" else "Flaubert"
    made = getattr(tf, f"{kind}Config")(**sizes, **beams, max_position_embeddings=16)
    return getattr(tf, f"{kind}ForQuestionAnswering")(made)


def _patchtst() -> Any:
    sizes = {"d_model": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24}
    series = {"num_input_channels": 2, "context_length": 16, "prediction_length": 4}
    parts = ("attention", "positional", "ff", "head")
    still = {f"{part}_dropout": 0.0 for part in parts}
    made = tf.PatchTSTConfig(**sizes, **series, patch_length=4, patch_stride=4, **still)
    return tf.PatchTSTForPrediction(made)


def _pretraining() -> Any:
    return tf.BertForPreTraining(tf.BertConfig(**_SIZES, vocab_size=40, max_position_embeddings=16))


def _speech_pretraining() -> Any:
    convolutions = {"conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8)}
    codes = {"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4}
    sizes = {k: v for k, v in _SIZES.items() if not k.endswith("_prob")}
    parts = ("hidden_", "attention_", "activation_", "feat_proj_", "feat_quantizer_")
    still = {f"{part}dropout": 0.0 for part in parts} | {"layerdrop": 0.0}
    return tf.Wav2Vec2ForPreTraining(
        tf.Wav2Vec2Config(
            **sizes,
            **convolutions,
            **codes,
            **still,
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_codevector_groups=2,
            num_negatives=3,
        )
    )


def _visual_answers() -> Any:
    sizes = {"image_size": 32, "patch_size": 16, "vocab_size": 40, "max_position_embeddings": 16}
    return tf.ViltForQuestionAnswering(tf.ViltConfig(**_SIZES, **sizes, num_labels=3))


def _picture(g: torch.Generator) -> Any:
    return torch.randn(3, 32, 32, generator=g)


def _ids(g: torch.Generator) -> Any:
    return torch.randint(3, 40, (6,), generator=g)


def _box(g: torch.Generator, i: int) -> dict[str, Any]:
    box = 0.3 + 0.2 * torch.rand(1 + i % 2, 4, generator=g)
    labels = {"class_labels": torch.randint(3, (len(box),), generator=g), "boxes": box}
    return {"pixel_values": _picture(g), "labels": labels}


def _areas(g: torch.Generator, i: int) -> dict[str, Any]:
    masks = (torch.rand(1 + i % 2, 32, 32, generator=g) < 0.5).float()
    classes = torch.randint(3, (len(masks),), generator=g)
    return {"pixel_values": _picture(g), "mask_labels": masks, "class_labels": classes}


def _answer(g: torch.Generator, i: int) -> dict[str, Any]:
    start, end = torch.tensor(i % 3), torch.tensor(3 + i % 3)
    return {"input_ids": _ids(g), "start_positions": start, "end_positions": end}


def _series(g: torch.Generator, i: int) -> dict[str, Any]:
    past, future = (torch.randn(steps, 2, generator=g) for steps in (16, 4))
    return {"past_values": past, "future_values": future}


def _two_labels(g: torch.Generator, i: int) -> dict[str, Any]:
    return {"input_ids": _ids(g), "labels": _ids(g), "next_sentence_label": torch.tensor(i % 2)}


def _frames(g: torch.Generator, i: int) -> dict[str, Any]:
    masked = torch.rand(18, generator=g) < 0.5
    others = torch.randint(18, (18, 3), generator=g)
    sound = torch.randn(400, generator=g)
    return {
        "input_values": sound,
        "mask_time_indices": masked,
        "sampled_negative_indices": others,
    }


def _votes(g: torch.Generator, i: int) -> dict[str, Any]:
    return {"input_ids": _ids(g), "pixel_values": _picture(g), "labels": torch.rand(3, generator=g)}


Row = Callable[[torch.Generator, int], dict[str, Any]]
UNKNOWN: dict[str, tuple[Callable[[], Any], Row]] = {
    "object detection": (_detr, _box),
    "universal segmentation": (_mask2former, _areas),
    "beam search answers": (_xlnet, _answer),
    "beam search answers of XLM": (lambda: _xlm("XLM"), _answer),
    "beam search answers of Flaubert": (lambda: _xlm("Flaubert"), _answer),
    "time series": (_patchtst, _series),
    "pretraining": (_pretraining, _two_labels),
    "speech pretraining": (_speech_pretraining, _frames),
    "visual answers": (_visual_answers, _votes),
}
"""Name -> what makes a model, and what makes a row."""


def unknown(name: str, seed: int = 0) -> Any:
    """A seeded model."""
    torch.manual_seed(seed)
    return UNKNOWN[name][0]()


def rows_for(name: str, count: int = 4) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [UNKNOWN[name][1](generator, index) for index in range(count)]


def stacked(rows: list[Any]) -> dict[str, Any]:
    """Tensors of one shape are stacked; dicts, and tensors of several, stay a list."""
    batch = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        listed = isinstance(values[0], dict) or len({v.shape for v in values}) > 1
        batch[key] = values if listed or key.endswith("_labels") else torch.stack(values)
    return batch
