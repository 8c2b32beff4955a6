"""Tiny models and data of every head, under an older and a newer layout of the package."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

import hf_distill as hd

OLD_NAMES = {
    "BaseModelTeacher": "AdaptersOff",
    "CrossTokenizerTeacher": "TranslatedTeacher",
    "EMATeacher": "PastStudent",
    "OnlineDistillationTrainer": "JointTrainer",
}
"""Name at the top of `hf_distill` -> its name in the older layout."""
HELPERS = {
    "tokenizer_families": ("tokenizer_families", "crossing_zoo"),
    "every_class": ("every_class",),
    "objective_table": ("objective_table",),
    "unknown_heads": ("unknown_heads",),
    "tiny_models": ("tiny_models", "zoo"),
}
"""A module of the tests -> the names that it has had, the newest first."""
BUILT = {
    "video_classification": "VideoMAEForVideoClassification",
    "image_seq2seq": "VisionEncoderDecoderModel",
    "audio_text_to_text": "AudioFlamingo3ForConditionalGeneration",
    "sigmoid_dual_encoder": "SiglipModel",
    "audio_dual_encoder": "ClapModel",
    "video_dual_encoder": "XCLIPModel",
}
"""Task without a case in the zoo -> a class of `transformers`."""


def public(name: str) -> Any:
    """A public class, under whichever of its names this checkout has."""
    found = getattr(hd, name, None)
    return getattr(hd, OLD_NAMES[name]) if found is None else found


def helper(name: str) -> Any:
    """A module of this checkout's tests."""
    for known in HELPERS[name]:
        if importlib.util.find_spec(known) is not None:
            return importlib.import_module(known)
    raise ImportError(f"Expected one of the modules {HELPERS[name]} in the tests, got none.")


zoo = helper("tiny_models")


@dataclass
class Setting:
    """Models and data of one head."""

    student: Any
    teacher: Any
    data: list[Any]
    collate: Callable[[list[Any]], Any]


def zoo_setting(head: str, case: Any = None) -> Setting:
    """A case of the zoo, in float32."""
    case = zoo.CASES[head] if case is None else case
    student, teacher = case.models(torch.float32)
    return Setting(student, teacher, case.data(8, torch.float32), zoo.collate)


def built_setting(name: str) -> Setting:
    """A class of `transformers` with one batch that it runs on."""
    every_class = helper("every_class")
    if name == "ClapModel":  # which the rules of the tests do not cover
        student, batch = clap()
    else:
        entry = next(each for each in every_class.listed() if each.name == name)
        student, batch = every_class.build(entry)
    return Setting(
        student,
        other(student),
        [{"row": row} for row in range(6)],
        lambda rows: {key: value.clone() for key, value in batch.items()},
    )


def clap() -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny encoder pair of sounds and texts, and a batch."""
    tf: Any = transformers
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
    text = {**sizes, "vocab_size": 40, "num_attention_heads": 2, "max_position_embeddings": 16}
    swin = {"depths": [1, 1], "num_attention_heads": [1, 2], "window_size": 2, "patch_size": 4}
    sound = {**swin, "hidden_size": 16, "patch_embeds_hidden_size": 8, "patch_stride": [4, 4]}
    sound |= {"spec_size": 32, "num_mel_bins": 8, "num_classes": 3, "projection_dim": 8}
    torch.manual_seed(0)
    config = tf.ClapConfig(text_config=text, audio_config=sound, projection_dim=8)
    batch = {
        "input_ids": torch.randint(3, 40, (3, 6)),
        "attention_mask": torch.ones(3, 6, dtype=torch.long),
        "input_features": torch.randn(3, 1, 128, 8),
        "is_longer": torch.zeros(3, 1, dtype=torch.bool),
    }
    return tf.ClapModel(config), batch


def unknown_setting() -> Setting:
    """A model whose head the task table does not have."""
    heads = helper("unknown_heads")
    student = heads.unknown("pretraining")
    return Setting(student, other(student), heads.rows_for("pretraining", 8), heads.stacked)


def two_tokenizers() -> Setting:
    """A teacher with another tokenizer than the student's."""
    families = helper("tokenizer_families")
    ours, theirs = families.family("byte_level"), families.family("fallback")
    student, teacher = families.model(len(ours)), families.model(len(theirs), 1, width=24)
    across = public("CrossTokenizerTeacher")(teacher, theirs, ours, folder="translation")
    texts = ["the end of the thing", "there and then", "things end", "the other thing"]
    ids = [[*ours(text)["input_ids"], ours.eos_token_id] for text in texts * 2]
    data = [{"input_ids": row, "labels": [-100, *row[1:]]} for row in ids]
    return Setting(student, across, data, across.collator(zoo.collate))


def other(student: Any) -> Any:
    """A teacher of the student's shape, with other weights."""
    teacher, generator = copy.deepcopy(student), torch.Generator().manual_seed(5)
    for parameter in teacher.parameters():
        if parameter.is_floating_point() and parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.1 * noise.to(parameter.dtype))
    return teacher
