"""A tiny student, a tiny teacher and ragged data for every head: no files, no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from hf_distill import (
    DistillationConfig,
    ForwardKL,
    HardLabels,
    HiddenStates,
    JensenShannon,
    LogitMSE,
    Objective,
    ReverseKL,
    WeightDecay,
)

tf: Any = transformers  # its configs take more than their declared fields

VOCAB = 40
PAD = 1
"""Not 0, as in RoBERTa and BART: code that takes 0 for granted fails."""
END = 0
"""The token that ends a text."""
IMAGE = 2
"""The token in place of a part of a picture."""
LABELS = 3
ROWS = 8
LENGTHS = (9, 4, 7, 5, 8, 3, 6, 9)

Example = dict[str, Any]


def _bert(**extra: Any) -> Any:
    return tf.BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
        **extra,
    )


def _wide(config: Any, **sizes: Any) -> Any:
    """The teacher's config: the student's with other sizes, so that projections are needed."""
    return type(config)(**{**config.to_diff_dict(), **sizes})


BERT_TEACHER = {"hidden_size": 24, "num_hidden_layers": 4}


def _ids(generator: torch.Generator, length: int, low: int = 3) -> list[int]:
    return torch.randint(low, VOCAB, (length,), generator=generator).tolist()


def pad(values: list[Any], value: float) -> Tensor:
    """Pad ragged lists to one tensor."""
    return nn.utils.rnn.pad_sequence(
        [torch.as_tensor(v) for v in values], batch_first=True, padding_value=value
    )


FILL = {"labels": -100, "shift_labels": -100, "input_ids": PAD}
MASKED = {"input_ids", "input_values"}


def collate(rows: list[Example]) -> dict[str, Tensor]:
    """Pad what is ragged, stack the rest, add the attention mask of what was padded."""
    batch: dict[str, Tensor] = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if isinstance(values[0], list) and isinstance(values[0][0], list):  # choices: [N][T]
            width = max(len(c) for v in values for c in v)
            padded = [[list(c) + [PAD] * (width - len(c)) for c in v] for v in values]
            batch[key] = torch.tensor(padded)
        elif torch.as_tensor(values[0]).dim() == 1:
            batch[key] = pad(values, FILL.get(key, 0))
        else:
            batch[key] = torch.stack([torch.as_tensor(v) for v in values])
        if key in MASKED:
            batch["attention_mask"] = _mask(values, batch[key])
    return batch


def _mask(values: list[Any], padded: Tensor) -> Tensor:
    mask = torch.zeros(padded.shape, dtype=torch.long)
    for row, value in enumerate(values):
        if isinstance(value[0], list):
            for position, part in enumerate(value):
                mask[row, position, : len(part)] = 1
        else:
            mask[row, : len(value)] = 1
    return mask


@dataclass(frozen=True)
class Case:
    """One head: how its models and its examples are made."""

    model: Callable[[Any], nn.Module]
    config: Callable[[], Any]
    teacher: dict[str, Any]
    example: Callable[[torch.Generator, int], Example]
    label_keys: tuple[str, ...] = ("labels",)
    objectives: tuple[str, ...] = field(
        default=(
            "hard_labels",
            "forward_kl",
            "reverse_kl",
            "jensen_shannon",
            "logit_mse",
            "hidden_states",
            "weight_decay",
        )
    )
    compares_examples: bool = False

    def models(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
        """Student and teacher, seeded."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            student = self.model(self.config()).to(dtype)
            teacher = self.model(_wide(self.config(), **self.teacher)).to(dtype)
            for parameter in (*student.parameters(), *teacher.parameters()):
                if parameter.dim() > 1:  # away from the near-uniform outputs of a fresh model
                    parameter.data.mul_(3)
        return student, teacher

    def data(self, rows: int = ROWS, dtype: torch.dtype = torch.float64) -> list[Example]:
        """Examples of different lengths; floating inputs in the models' dtype."""
        generator = torch.Generator().manual_seed(1)
        examples = [self.example(generator, LENGTHS[i % len(LENGTHS)]) for i in range(rows)]
        return [
            {
                k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
                for k, v in example.items()
            }
            for example in examples
        ]


def _classified(g: torch.Generator, n: int) -> Example:
    return {"input_ids": _ids(g, n), "labels": int(torch.randint(LABELS, (), generator=g))}


def _multi_label(g: torch.Generator, n: int) -> Example:
    return {
        "input_ids": _ids(g, n),
        "labels": torch.randint(2, (LABELS,), generator=g).to(torch.float64),
    }


def _scored(g: torch.Generator, n: int) -> Example:
    return {
        "input_ids": _ids(g, n),
        "labels": torch.randn((), generator=g, dtype=torch.float64),
    }


def _tagged(g: torch.Generator, n: int) -> Example:
    labels = torch.randint(LABELS, (n,), generator=g).tolist()
    return {"input_ids": _ids(g, n), "labels": [-100, *labels[1:]]}


def _span(g: torch.Generator, n: int) -> Example:
    """Padded to one length: a model's own loss gives padding a share of the probability."""
    start, end = torch.randint(n, (2,), generator=g).tolist()
    padding = [0] * (max(LENGTHS) - n)
    return {
        "input_ids": _ids(g, n) + [PAD] * len(padding),
        "start_positions": start,
        "end_positions": end,
        "attention_mask": [1] * n + padding,
    }


def _choice(g: torch.Generator, n: int) -> Example:
    return {
        "input_ids": [_ids(g, max(1, n - k)) for k in range(3)],
        "labels": int(torch.randint(3, (), generator=g)),
    }


def _cloze(g: torch.Generator, n: int) -> Example:
    ids = _ids(g, n)
    hide = (torch.rand(n, generator=g) < 0.4).tolist()
    hide[0] = True
    masked = [2 if h else i for h, i in zip(hide, ids, strict=True)]
    labels = [i if h else -100 for h, i in zip(hide, ids, strict=True)]
    return {"input_ids": masked, "labels": labels}


def _text(g: torch.Generator, n: int) -> Example:
    ids = _ids(g, n)
    prompt = min(2, n - 2)
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}


def _translated(g: torch.Generator, n: int) -> Example:
    return {"input_ids": _ids(g, n), "labels": _ids(g, max(2, n - 2))}


def _pictured(g: torch.Generator, n: int) -> Example:
    return {
        "pixel_values": torch.randn(3, 32, 32, generator=g),
        "labels": int(torch.randint(LABELS, (), generator=g)),
    }


def _segmented(g: torch.Generator, n: int) -> Example:
    labels = torch.randint(LABELS, (32, 32), generator=g)
    labels[:n] = 255
    return {"pixel_values": torch.randn(3, 32, 32, generator=g), "labels": labels}


def _heard(g: torch.Generator, n: int) -> Example:
    return {
        "input_values": torch.randn(300 + 40 * n, generator=g),
        "labels": int(torch.randint(LABELS, (), generator=g)),
    }


def _spelt(g: torch.Generator, n: int) -> Example:
    return {
        "input_values": torch.randn(300 + 40 * n, generator=g),
        "labels": torch.randint(BLANK, (n // 2 + 1,), generator=g).tolist(),
    }


def _dictated(g: torch.Generator, n: int) -> Example:
    return {"input_features": torch.randn(8, 60, generator=g), "labels": _ids(g, n)}


def _captioned(g: torch.Generator, n: int) -> Example:
    return {
        "input_ids": [*_ids(g, n), VOCAB - 1],
        "pixel_values": torch.randn(3, 32, 32, generator=g),
    }


def _described(g: torch.Generator, n: int) -> Example:
    """A picture, of 4 tokens, before a text; the text is to be predicted."""
    text = _ids(g, n)
    places = [IMAGE] * 4
    return {
        "pixel_values": torch.randn(3, 32, 32, generator=g),
        "input_ids": [END, *places, *text],
        "labels": [-100] * 5 + text,
    }


def _unlabelled(g: torch.Generator, n: int) -> Example:
    return {"input_ids": _ids(g, n)}


BLANK = 11
"""The last of 12 letters, as the guides for XLSR have it."""


def _wav2vec2(**extra: Any) -> Any:
    return tf.Wav2Vec2Config(
        vocab_size=BLANK + 1,
        pad_token_id=BLANK,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        classifier_proj_size=8,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        ctc_loss_reduction="mean",
        **extra,
    )


def _t5() -> Any:
    return tf.T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=2,
        pad_token_id=PAD,
        eos_token_id=END,
    )


def _whisper() -> Any:
    return tf.WhisperConfig(
        vocab_size=VOCAB,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=30,
        max_target_positions=16,
        dropout=0.0,
        pad_token_id=PAD,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=2,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )


def _clip() -> Any:
    text = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "eos_token_id": VOCAB - 1,
        "bos_token_id": END,
        "pad_token_id": PAD,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    return tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)


def _vit() -> Any:
    return tf.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=32,
        patch_size=16,
        num_labels=LABELS,
    )


def _resnet() -> Any:
    return tf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=LABELS,
    )


def _segmenter(config: Any) -> nn.Module:
    """Without batch normalisation, whose training statistics depend on the batch by definition."""
    model = tf.SegformerForSemanticSegmentation(config)
    model.decode_head.batch_norm = nn.GroupNorm(1, config.decoder_hidden_size)
    return model


def _segformer() -> Any:
    return tf.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
        num_labels=LABELS,
    )


def _llama() -> Any:
    return tf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        pad_token_id=PAD,
    )


def _mixtral() -> Any:
    return tf.MixtralConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        output_router_logits=True,
        router_aux_loss_coef=0.02,
        experts_implementation="eager",  # the others have no float64
    )


def _llava() -> Any:
    text = {k: v for k, v in _llama().to_diff_dict().items() if k != "architectures"}
    vision = {**_clip().vision_config.to_diff_dict(), "model_type": "clip_vision_model"}
    return tf.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        # the stock trainer, with which ours is compared, fails on the states of a vision tower
        keys_to_ignore_at_inference=["past_key_values", "cache", "image_outputs"],
    )


_T5_TEACHER = {"d_model": 24, "num_layers": 3, "num_decoder_layers": 3}
_NO_LOGITS = ("hidden_states", "weight_decay")
_NO_JS = ("hard_labels", "forward_kl", "reverse_kl", "logit_mse", "hidden_states", "weight_decay")
_WIDE_CLIP = {
    "text_config": {**_clip().text_config.to_diff_dict(), "hidden_size": 24},
    "vision_config": {**_clip().vision_config.to_diff_dict(), "num_hidden_layers": 3},
    "projection_dim": 8,
}
_WIDE_LLAVA = {
    "text_config": {
        **_llava().text_config.to_diff_dict(),
        "hidden_size": 24,
        "num_hidden_layers": 3,
    },
    "vision_config": {**_llava().vision_config.to_diff_dict(), "num_hidden_layers": 3},
}

CASES: dict[str, Case] = {
    "sequence_classification": Case(
        tf.BertForSequenceClassification,
        lambda: _bert(num_labels=LABELS),
        BERT_TEACHER,
        _classified,
    ),
    "multi_label": Case(
        tf.BertForSequenceClassification,
        lambda: _bert(num_labels=LABELS),
        BERT_TEACHER,
        _multi_label,
    ),
    "regression": Case(
        tf.BertForSequenceClassification,
        lambda: _bert(num_labels=1),
        BERT_TEACHER,
        _scored,
        objectives=_NO_JS,
    ),
    "token_classification": Case(
        tf.BertForTokenClassification, lambda: _bert(num_labels=LABELS), BERT_TEACHER, _tagged
    ),
    "question_answering": Case(
        tf.BertForQuestionAnswering,
        lambda: _bert(),
        BERT_TEACHER,
        _span,
        label_keys=("start_positions", "end_positions"),
    ),
    "multiple_choice": Case(tf.BertForMultipleChoice, lambda: _bert(), BERT_TEACHER, _choice),
    "masked_lm": Case(tf.BertForMaskedLM, lambda: _bert(), BERT_TEACHER, _cloze),
    "causal_lm": Case(
        tf.LlamaForCausalLM, _llama, {"hidden_size": 24, "num_hidden_layers": 3}, _text
    ),
    "image_text_to_text": Case(tf.LlavaForConditionalGeneration, _llava, _WIDE_LLAVA, _described),
    "seq2seq_lm": Case(tf.T5ForConditionalGeneration, _t5, _T5_TEACHER, _translated),
    "image_classification": Case(
        tf.ViTForImageClassification, _vit, {"hidden_size": 24, "num_hidden_layers": 3}, _pictured
    ),
    "semantic_segmentation": Case(_segmenter, _segformer, {"hidden_sizes": [12, 24]}, _segmented),
    "audio_classification": Case(
        tf.Wav2Vec2ForSequenceClassification,
        lambda: _wav2vec2(num_labels=LABELS),
        {"hidden_size": 24, "num_hidden_layers": 3},
        _heard,
    ),
    "ctc": Case(tf.Wav2Vec2ForCTC, _wav2vec2, {"hidden_size": 24, "num_hidden_layers": 3}, _spelt),
    "speech_seq2seq": Case(
        tf.WhisperForConditionalGeneration,
        _whisper,
        {"d_model": 24, "encoder_layers": 3, "decoder_layers": 3},
        _dictated,
    ),
    "dual_encoder": Case(
        tf.CLIPModel, _clip, _WIDE_CLIP, _captioned, label_keys=(), compares_examples=True
    ),
    "encoder": Case(
        tf.BertModel,
        lambda: _bert(),
        BERT_TEACHER,
        _unlabelled,
        label_keys=(),
        objectives=_NO_LOGITS,
    ),
}
"""Head -> case."""

OBJECTIVES: dict[str, Objective] = {
    "hard_labels": HardLabels(),
    "forward_kl": ForwardKL(2.0),
    "reverse_kl": ReverseKL(2.0),
    "jensen_shannon": JensenShannon(2.0, 0.3),
    "logit_mse": LogitMSE(),
    "hidden_states": HiddenStates(),
    "weight_decay": WeightDecay(0.01),
}
"""The names of `Case.objectives` -> objective, none at its default value."""


def quiet_arguments(folder: str | Path, **options: Any) -> DistillationConfig:
    """Arguments that print, save and reorder nothing unless asked, on the CPU."""
    quiet = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
    }
    return DistillationConfig(str(folder), **{**quiet, **options})
