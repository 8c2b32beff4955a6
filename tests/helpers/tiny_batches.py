"""A tiny batch for a model of any head, by the names of the inputs of its ``forward``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from tiny_sizes import IMAGE, LABELS, PATCH, TOKENS, VOCAB, WIDTH, WORDS
from torch import Tensor

LENGTHS = (8, 5, 7)
"""Tokens of each example: ragged, and more than one row."""
ROWS, LONG = len(LENGTHS), max(LENGTHS)
Batch = dict[str, Tensor]


def _first(config: Any, *fields: str) -> int | None:
    """The first of these fields that is a number."""
    values = (getattr(config, field, None) for field in fields)
    return next((value for value in values if isinstance(value, int)), None)


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
        if type(self.model).__name__.startswith("Longformer"):  # of question and context
            batch["input_ids"][:, 1:3] = self.config.sep_token_id
            batch["input_ids"][:, 3:] = batch["input_ids"][:, 3:].masked_fill(
                batch["input_ids"][:, 3:] == TOKENS["eos"], self.config.sep_token_id
            )
        if "token_type_ids" in self.takes and getattr(self.text, "type_vocab_size", 0) > 1:
            batch["token_type_ids"] = (torch.arange(LONG) > 2).long().expand(ROWS, -1)
        if "bbox" in self.takes:
            batch["bbox"] = self.integers(0, 20, ROWS, LONG, 4).sort(-1).values
        if "mm_token_type_ids" in self.takes:
            batch["mm_token_type_ids"] = torch.zeros(ROWS, LONG, dtype=torch.long)
        if "visual_feats" in self.takes:
            batch["visual_feats"] = self.normal(ROWS, 4, self.config.visual_feat_dim)
            batch["visual_pos"] = self.normal(ROWS, 4, self.config.visual_pos_dim)
        return {name: value for name, value in batch.items() if name in self.takes}

    def pictures(self, name: str = "pixel_values") -> Batch:
        vision: Any = getattr(self.config, "vision_config", None) or self.config
        size = getattr(vision, "image_size", None) or IMAGE
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        channels = _first(vision, "num_channels", "in_channels", "in_chans", "input_channels") or 3
        patch = getattr(vision, "patch_size", None) or PATCH
        if "spatial_shapes" in self.takes:  # patches, as SigLIP 2 takes them
            side = max(1, int(getattr(vision, "num_patches", 16)) // 4)
            grid = torch.tensor([[4, min(side, 4)]] * ROWS)
            patches = self.normal(ROWS, int(grid[0].prod()), channels * patch * patch)
            mask = torch.ones(patches.shape[:2], dtype=torch.long)
            return {name: patches, "pixel_attention_mask": mask, "spatial_shapes": grid}
        if "flattened_patches" in self.takes:  # with row and column
            patches = self.normal(ROWS, 4, vision.patch_embed_hidden_size + 2)
            patches[..., :2] = torch.tensor([[1.0, 1], [1, 2], [2, 1], [2, 2]])
            return {"flattened_patches": patches, "attention_mask": torch.ones(ROWS, 4)}
        frames = _first(vision, "num_frames", "frames_per_clip") if name != "inputs" else None
        shape = (channels, height, width) if frames is None else (frames, channels, height, width)
        batch = {name: self.normal(ROWS, *shape)}
        if "image_sizes" in self.takes:
            batch["image_sizes"] = torch.tensor([[height, width]] * ROWS)
        return batch

    def patches(self) -> Batch:
        """Pictures as Qwen2-VL takes them: all their patches in one list, and the grid of each."""
        vision: Any = getattr(self.config, "vision_config", None) or self.config
        channels = _first(vision, "num_channels", "in_channels", "in_chans") or 3
        side = 2 * int(getattr(vision, "spatial_merge_size", 2))
        each = channels * vision.patch_size**2 * int(getattr(vision, "temporal_patch_size", 1) or 1)
        grid = torch.tensor([[1, side, side]] * ROWS)
        return {"pixel_values": self.normal(ROWS * side * side, each), "image_grid_thw": grid}

    def sound(self) -> Batch:
        name = "input_features" if "input_features" in self.takes else self.model.main_input_name
        name = "input_values" if "input_values" in self.takes else name
        if name == "input_values" and not hasattr(self.config, "frequency_stride"):
            lengths = torch.tensor([800 + 320 * n for n in LENGTHS])
            values = self.normal(ROWS, int(lengths.max()))
            mask = (torch.arange(values.shape[1]) < lengths[:, None]).long()
            if "padding_mask" in self.takes:
                return {name: values[:, None], "padding_mask": mask}
            return {name: values, "attention_mask": mask}
        if name == "input_values":  # a spectrogram of one length
            return {name: self.normal(ROWS, self.config.max_length, self.config.num_mel_bins)}
        parts = [self.config]
        for part in ("audio_config", "encoder_config", "speech_config"):
            parts.append(getattr(self.config, part, None) or self.config)
        fields = (
            "feature_projection_input_dim",
            "input_feat_per_channel",
            "input_dim",
            "num_mel_bins",
        )
        widths = [getattr(part, field, None) for field in fields for part in parts[::-1]]
        width = next((int(w) for w in widths if w), WIDTH)
        longest = getattr(self.config, "max_source_positions", None)
        if longest is not None and not any(hasattr(self.config, name) for name in fields[:2]):
            return {name: self.normal(ROWS, width, 2 * int(longest))}  # channels first: Whisper
        values = self.normal(ROWS, 64, width)
        mask = (torch.arange(64) < torch.tensor([64, 40, 56])[:, None]).long()
        return {
            name: values,
            **({"attention_mask": mask} if "attention_mask" in self.takes else {}),
        }

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
    if "start_positions" not in make.takes:
        return {**make.text_inputs(), **_classes(make)}
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
    batch = make.text_inputs()
    if "input_ids" not in batch:
        return _translated(make)
    labels = batch["input_ids"].masked_fill(make.mask == 0, -100)
    labels[:, 0] = -100  # Trainer counts the labels, of which no class here predicts the first
    return {**batch, "labels": labels}


def _translated(make: Maker) -> Batch:
    labels = make.words()[:, :6].masked_fill(make.mask[:, :6] == 0, -100)
    if not make.config.is_encoder_decoder and "input_ids" in make.takes:
        return _words(make)
    batch = {**make.text_inputs(), "labels": labels}
    if type(make.model).__name__.startswith("FSMT"):  # which takes the source's otherwise
        batch["decoder_input_ids"] = _shifted(labels)
    return batch


def _shifted(labels: Tensor) -> Tensor:
    start = torch.full((ROWS, 1), TOKENS["decoder_start"])
    shifted = torch.cat([start, labels[:, :-1]], 1)
    return shifted.masked_fill(shifted == -100, TOKENS["pad"])


def _dictated(make: Maker) -> Batch:
    return {**make.sound(), "labels": _translated(make)["labels"]}


def _seen(make: Maker) -> Batch:
    """With a picture where the class takes one beside the text."""
    return {**_translated(make), **make.pictures()}


def _pictured(make: Maker) -> Batch:
    """A picture is all that the encoder reads."""
    batch = {**make.pictures(), "labels": _translated(make)["labels"]}
    if type(make.model).__name__.startswith("PPFormula"):  # which makes none of the labels
        batch["decoder_input_ids"] = _shifted(batch["labels"])
    return batch


def _described(make: Maker) -> Batch:
    """With as many tokens for a picture as the class makes features of it."""
    takes = set(inspect.signature(make.model.get_image_features).parameters)
    pictures = make.patches() if "image_grid_thw" in make.takes else make.pictures()
    with torch.no_grad():
        given = {name: value for name, value in pictures.items() if name in takes}
        count = _features(make.model.get_image_features(**given)) // ROWS
    token = _first(make.config, "image_token_id", "image_token_index")
    batch = _translated(make)
    width = {"input_ids": token, "attention_mask": 1, "token_type_ids": 0}
    if batch["labels"].shape == batch["input_ids"].shape:
        width["labels"] = -100
    for name, value in width.items():
        if name in batch:
            front, rest = batch[name][:, :1], batch[name][:, 1:]
            middle = torch.full((ROWS, count), value)
            batch[name] = torch.cat([front, middle, rest], 1)
    if "mm_token_type_ids" in make.takes:
        pictures["mm_token_type_ids"] = (batch["input_ids"] == token).long()
    return {**batch, **pictures}


def _features(found: Any) -> int:
    """How many features there are in what `get_image_features` gives."""
    if hasattr(found, "pooler_output"):
        found = found.last_hidden_state if found.pooler_output is None else found.pooler_output
    if isinstance(found, (list, tuple)):
        return sum(map(_features, found))
    return int(found.numel() // found.shape[-1])


def _one_of(*makers: Callable[[Maker], Batch]) -> Callable[[Maker], Batch]:
    """The first of these batches on which the class runs; the last, if it runs on none."""

    def first(make: Maker) -> Batch:
        for maker in makers[:-1]:
            try:
                batch = {n: v for n, v in maker(make).items() if n in make.takes}
                with torch.no_grad():
                    if torch.isfinite(make.model(**batch).loss):
                        return batch
            except Exception:
                continue
        takes = {*make.takes, "labels"}  # what its forward does not take is for us alone
        return {name: value for name, value in makers[-1](make).items() if name in takes}

    return first


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
    name = "pixel_values_videos" if "pixel_values_videos" in make.takes else "pixel_values"
    batch = {**make.text_inputs(), **make.pictures(name), "return_loss": torch.tensor(True)}
    return {name: value for name, value in batch.items() if name in make.takes}


def _anything(make: Maker) -> Batch:
    name = getattr(make.model, "main_input_name", "input_ids")
    if {"grid_thw", "image_grid_thw"} & make.takes and "input_ids" not in make.takes:
        batch = make.patches()  # of a vision model as Qwen2-VL has it
        batch["grid_thw"] = batch["image_grid_thw"]
        batch["hidden_states"] = batch["pixel_values"]
    elif name in ("pixel_values", "pixel_values_videos"):
        batch = make.pictures(name)
    elif name in ("input_values", "input_features"):
        batch = make.sound()
    else:
        batch = make.text_inputs()
    if make.config.is_encoder_decoder:
        batch["decoder_input_ids"] = make.words()[:, :6]
    return {name: value for name, value in batch.items() if name in make.takes}


def _everything(make: Maker) -> Batch:
    """Text and pictures."""
    text = _anything(make) if make.config.is_encoder_decoder else make.text_inputs()
    batch = {**text, **make.pictures()}
    for name in ("qformer_input_ids", "qformer_attention_mask"):
        batch[name] = batch.get(name.removeprefix("qformer_"))
    return {name: value for name, value in batch.items() if name in make.takes}


def _one_channel(make: Maker) -> Batch:
    """A sound ``(B, 1, L)``, as audio codecs take it."""
    values = make.sound()[make.model.main_input_name]
    return {make.model.main_input_name: values[:, None, :3200] if values.dim() == 2 else values}


def _turned(make: Maker) -> Batch:
    """A spectrogram with the time last, and its mask under another name."""
    batch = make.sound()
    name = next(iter(batch))
    mask = torch.ones(ROWS, batch[name].shape[1], dtype=torch.long)
    if "input_features_mask" in make.takes:
        batch["input_features_mask"] = mask
    else:
        batch = {name: batch[name].transpose(1, 2)}
    return {name: value for name, value in batch.items() if name in make.takes}


def _that_runs(*makers: Callable[[Maker], Batch]) -> Callable[[Maker], Batch]:
    """The first of these batches on which a class without a loss runs; the first, if none does."""

    def found(make: Maker) -> Batch:
        for maker in makers:
            try:
                batch = maker(make)
                with torch.no_grad():
                    make.model(**batch)
            except Exception:
                continue
            return batch
        return makers[0](make)

    return found


BATCHES: dict[str, Callable[[Maker], Batch]] = {
    "sequence_classification": _sequence,
    "image_classification": _image,
    "audio_classification": _audio,
    "video_classification": _image,
    "token_classification": _tagged,
    "question_answering": _spans,
    "multiple_choice": _choices,
    "seq2seq_lm": _one_of(_translated, _dictated),
    "speech_seq2seq": _one_of(_dictated, _translated),
    "causal_lm": _one_of(_words, _seen),
    "image_text_to_text": _one_of(_described, _translated, _pictured, _seen),
    "masked_lm": _cloze,
    "semantic_segmentation": _segmented,
    "ctc": _spelt,
    "dual_encoder": _captioned,
    "encoder": _that_runs(_anything, _everything, _one_channel, _turned),
}
