"""A tiny model and a tiny batch for every class in transformers' auto mappings, by rules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tiny_configs import IMAGE, LABELS, TOKENS, VOCAB, WORDS, tiny
from torch import Tensor, nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_distill.tasks import TASKS, task_of

LENGTHS = (8, 5, 7)
"""Tokens of each example: ragged, and more than one row."""
ROWS, LONG = len(LENGTHS), max(LENGTHS)
LARGEST = 1_500_000
"""Parameters of a model that still is tiny."""

Batch = dict[str, Tensor]
Built = tuple[nn.Module, Batch]


@dataclass(frozen=True)
class Listed:
    """A class as the auto mappings list it.

    Attributes:
        name: The class.
        mapping: The task whose mapping names it (``encoder`` for `AutoModel` alone).
        model_type: The configuration's.
    """

    name: str
    mapping: str
    model_type: str


def listed() -> list[Listed]:
    """Every class that a row of the task table names, once, in the order of the table."""
    found: dict[str, Listed] = {}
    for task in TASKS.values():
        name = f"MODEL_FOR_{task.mapping}_MAPPING_NAMES" if task.mapping else "MODEL_MAPPING_NAMES"
        for model_type, value in getattr(modeling_auto, name).items():
            for cls in [value] if isinstance(value, str) else value:
                found.setdefault(cls, Listed(cls, task.name, model_type))
    return list(found.values())


class NotBuiltError(Exception):
    """No tiny model can be made of a class, or it does not run; the message says why."""


def model_of(entry: Listed) -> Any:
    """A tiny model of a class, with seeded weights, on the CPU and in float32.

    Raises:
        NotBuiltError: a library is missing, or no rule makes a configuration that it takes.
    """
    try:
        cls = getattr(transformers, entry.name)
        config = tiny(cls.config_class or CONFIG_MAPPING[entry.model_type])
        for field, value in BY_CLASS.get(entry.name, {}).items():
            setattr(config, field, value)
        _complete(config, entry)
        with torch.device("meta"):
            large = sum(p.numel() for p in cls(config).parameters())
        if large > LARGEST:
            raise NotBuiltError(f"not tiny: {large} parameters")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = cls(config)
        for module in model.modules():  # some classes have dropout that no field names
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        return model
    except ImportError as error:
        raise NotBuiltError(f"needs a library: {_line(error)}") from None
    except NotBuiltError:
        raise
    except Exception as error:
        raise NotBuiltError(f"{type(error).__name__}: {_line(error)}") from None


def _complete(config: Any, entry: Listed) -> None:
    """What a class needs in its configuration, and does not have by default."""
    if "Classification" in entry.name or "SemanticSegmentation" in entry.name:
        config.num_labels = LABELS
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = TOKENS["decoder_start"]
    for part in ("encoder", "decoder"):
        if getattr(config, part, None) is not None:
            config.decoder_start_token_id, config.pad_token_id = (
                TOKENS["decoder_start"],
                TOKENS["pad"],
            )
    if hasattr(config, "ctc_loss_reduction"):
        config.ctc_loss_reduction = "sum"
    for name in ("vision_start_token_id", "vision_end_token_id"):
        if "Omni" in entry.name and not hasattr(config, name):
            setattr(config, name, 30)


BY_CLASS: dict[str, dict[str, Any]] = {"ReformerModelWithLMHead": {"is_decoder": True}}
"""Fields that only one of the classes of a configuration needs."""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


# ---- batches ---------------------------------------------------------------------------------


class Maker:
    """Makes the inputs of one model, by the names of the parameters of its ``forward``."""

    def __init__(self, model: Any):
        self.model, self.config = model, model.config
        text = self.config.get_text_config() if hasattr(self.config, "get_text_config") else None
        self.text: Any = self.config if text is None else text
        self.takes = set(inspect.signature(model.forward).parameters)
        self.random = torch.Generator().manual_seed(1)
        self.mask = torch.tensor([[int(i < n) for i in range(LONG)] for n in LENGTHS])

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.random)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def words(self) -> Tensor:
        """Tokens that are nothing special; padding where the mask is 0."""
        high = min(VOCAB, int(getattr(self.text, "vocab_size", None) or VOCAB))
        ids = self.integers(min(WORDS, high // 2), high, ROWS, LONG)
        pad = getattr(self.text, "pad_token_id", None)
        for row, length in enumerate(LENGTHS):  # BART's classifiers read the end of the text
            ids[row, length - 1] = TOKENS["eos"]
        return ids.masked_fill(self.mask == 0, 0 if pad is None else pad)

    def text_inputs(self) -> Batch:
        batch = {"input_ids": self.words(), "attention_mask": self.mask}
        if "token_type_ids" in self.takes and getattr(self.text, "type_vocab_size", 0) > 1:
            batch["token_type_ids"] = (torch.arange(LONG) > 2).long().expand(ROWS, -1)
        if "bbox" in self.takes:
            batch["bbox"] = self.integers(0, 20, ROWS, LONG, 4).sort(-1).values
        return {name: value for name, value in batch.items() if name in self.takes}

    def pictures(self, name: str = "pixel_values") -> Batch:
        vision: Any = getattr(self.config, "vision_config", None) or self.config
        size = getattr(vision, "image_size", None) or IMAGE
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        channels = next(
            (
                getattr(vision, field)
                for field in ("num_channels", "in_channels", "in_chans", "input_channels")
                if isinstance(getattr(vision, field, None), int)
            ),
            3,
        )
        frames = next(
            (
                getattr(vision, field)
                for field in ("num_frames", "frames_per_clip")
                if isinstance(getattr(vision, field, None), int)
            ),
            None,
        )
        shape = (channels, height, width) if frames is None else (frames, channels, height, width)
        return {name: self.normal(ROWS, *shape)}

    def sound(self) -> Batch:
        name = self.model.main_input_name
        audio: Any = getattr(self.config, "audio_config", None) or self.config
        mels = getattr(audio, "num_mel_bins", None)
        if name == "input_values" and mels is None:
            lengths = torch.tensor([800 + 320 * n for n in LENGTHS])
            values = self.normal(ROWS, int(lengths.max()))
            mask = (torch.arange(values.shape[1]) < lengths[:, None]).long()
            return {name: values, "attention_mask": mask}
        if name == "input_values":  # a spectrogram of one length
            return {name: self.normal(ROWS, int(getattr(audio, "max_length", 32)), mels)}
        return {name: self.normal(ROWS, int(mels or 16), 2 * self._positions(audio))}

    def _positions(self, audio: Any) -> int:
        return int(getattr(audio, "max_source_positions", 16))

    def token_labels(self, high: int) -> Tensor:
        return self.integers(0, high, ROWS, LONG).masked_fill(self.mask == 0, -100)


def _classes(make: Maker) -> Batch:
    return {"labels": torch.arange(ROWS) % LABELS}


def _sequence(make: Maker) -> Batch:
    return {**make.text_inputs(), **_classes(make)}


def _image(make: Maker) -> Batch:
    name = make.model.main_input_name
    if name == "input_ids":
        return {**make.text_inputs(), **_classes(make)}
    return {**make.pictures(name), **_classes(make)}


def _audio(make: Maker) -> Batch:
    return {**make.sound(), **_classes(make)}


def _tagged(make: Maker) -> Batch:
    labels = make.token_labels(LABELS)
    labels[:, 0] = -100
    return {**make.text_inputs(), "labels": labels}


def _spans(make: Maker) -> Batch:
    start, end = torch.tensor([1, 2, 0]), torch.tensor([4, 3, 6])
    return {**make.text_inputs(), "start_positions": start, "end_positions": end}


def _choices(make: Maker) -> Batch:
    one, other = make.text_inputs(), make.text_inputs()
    both = {name: torch.stack([one[name], other[name]], 1) for name in one}
    return {**both, "labels": torch.tensor([0, 1, 1])}


def _cloze(make: Maker) -> Batch:
    batch = make.text_inputs()
    hidden = torch.zeros(ROWS, LONG, dtype=torch.bool)
    hidden[:, 1] = hidden[0, 6] = hidden[2, 3] = True
    labels = batch["input_ids"].masked_fill(~hidden, -100)
    return {**batch, "input_ids": batch["input_ids"].masked_fill(hidden, 5), "labels": labels}


def _words(make: Maker) -> Batch:
    if make.config.is_encoder_decoder:
        return _translated(make)
    batch = make.text_inputs()
    labels = batch["input_ids"].masked_fill(make.mask == 0, -100)
    labels[:, 0] = -100  # Trainer counts the labels, of which no class here predicts the first
    return {**batch, "labels": labels}


def _translated(make: Maker) -> Batch:
    if not make.config.is_encoder_decoder:
        return _words(make)
    labels = make.words()[:, :6].masked_fill(make.mask[:, :6] == 0, -100)
    return {**make.text_inputs(), "labels": labels}


def _dictated(make: Maker) -> Batch:
    if not make.config.is_encoder_decoder and "input_ids" in make.takes:
        return _words(make)
    labels = make.words()[:, :6].masked_fill(make.mask[:, :6] == 0, -100)
    return {**make.sound(), "labels": labels}


def _spelt(make: Maker) -> Batch:
    labels = make.integers(10, 30, ROWS, 3)
    labels[1, 2] = -100
    return {**make.sound(), "labels": labels}


def _segmented(make: Maker) -> Batch:
    batch = make.pictures()
    height, width = batch["pixel_values"].shape[-2:]
    labels = make.integers(0, LABELS, ROWS, height, width)
    labels[:, :3] = 255
    return {**batch, "labels": labels}


def _captioned(make: Maker) -> Batch:
    batch = {**make.text_inputs(), **make.pictures(), "return_loss": torch.tensor(True)}
    return {name: value for name, value in batch.items() if name in make.takes}


def _anything(make: Maker) -> Batch:
    name = getattr(make.model, "main_input_name", "input_ids")
    if name in ("pixel_values", "pixel_values_videos"):
        return make.pictures(name)
    if name in ("input_values", "input_features"):
        return make.sound()
    return make.text_inputs()


BATCHES: dict[str, Callable[[Maker], Batch]] = {
    "sequence_classification": _sequence,
    "image_classification": _image,
    "audio_classification": _audio,
    "video_classification": _image,
    "token_classification": _tagged,
    "question_answering": _spans,
    "multiple_choice": _choices,
    "seq2seq_lm": _translated,
    "speech_seq2seq": _dictated,
    "causal_lm": _words,
    "image_text_to_text": _words,
    "masked_lm": _cloze,
    "semantic_segmentation": _segmented,
    "ctc": _spelt,
    "dual_encoder": _captioned,
    "encoder": _anything,
}


def build(entry: Listed) -> Built:
    """A tiny model and a batch that it runs on.

    Raises:
        NotBuiltError: with the reason.
    """
    model = model_of(entry).eval()
    batch = BATCHES[task_of(model).name](Maker(model))
    return model, batch
