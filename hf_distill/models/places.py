"""Positions of a model's sequences that are not tokens of the batch, and padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from peft import PeftModel, PeftType
from torch import Tensor, nn

CACHED = tuple(
    getattr(PeftType, name) for name in ("PREFIX_TUNING", "CARTRIDGE") if hasattr(PeftType, name)
)
"""Prompts of keys and values in every layer, without positions in the sequence."""
ENCODED = ("encoder_last_hidden_state", "encoder_hidden_states")
DECODED = (
    *("logits", "start_logits", "end_logits"),
    *("last_hidden_state", "hidden_states", "decoder_hidden_states"),
)
AUDIO = ("input_values", "input_features")


# ---- in front: the prompts of PEFT ---------------------------------------------------------------


def prompt_config(model: nn.Module) -> Any:
    """The settings of the prompt that an adapter learns; None if it learns none."""
    config = model.active_peft_config if isinstance(model, PeftModel) else None
    return config if config is not None and config.is_prompt_learning else None


def cached_prompt(model: nn.Module) -> bool:
    """True if an adapter puts keys and values in front of each layer's (prefix tuning)."""
    config = prompt_config(model)
    return config is not None and config.peft_type in CACHED


def soft_prompt(model: nn.Module) -> bool:
    """True if an adapter puts positions in front of the tokens (prompt tuning, p-tuning)."""
    return prompt_config(model) is not None and not cached_prompt(model)


def task_columns(model: nn.Module) -> set[str]:
    """Columns that an adapter reads besides its model's inputs: the task of an example."""
    config = model.active_peft_config if isinstance(model, PeftModel) else None
    kinds = (PeftType.MULTITASK_PROMPT_TUNING, PeftType.POLY)
    return {"task_ids"} if config is not None and config.peft_type in kinds else set()


def needs_labels(model: nn.Module) -> bool:
    """True if PEFT derives the decoder's inputs from the labels, and passes no others on."""
    config = prompt_config(model)
    multitask = config is not None and config.peft_type == PeftType.MULTITASK_PROMPT_TUNING
    return multitask and bool(model.config.is_encoder_decoder)  # type: ignore[union-attr]


@dataclass(frozen=True)
class Prompt:
    """The positions that an adapter puts in front of the tokens (prompt tuning, p-tuning).

    Nothing is cut without a prompt (an adapter that is switched off).

    Attributes:
        size: Number of positions.
        tokens: Length T of the tokens ``(..., T)``; None: the batch has none.
        decoded: Length of the decoder's tokens behind an encoder; None: there is no encoder.
        cached: Number of keys and values in front of each layer's (prefix tuning too).
    """

    size: int
    tokens: int | None
    decoded: int | None
    cached: int

    @classmethod
    def of(cls, model: nn.Module, batch: Mapping[str, Any]) -> Prompt:
        """Describe the prompt in front of this batch."""
        config = prompt_config(model)
        if config is None:
            return cls(0, None, None, 0)
        size = int(config.num_virtual_tokens)
        ids, embeds = batch.get("input_ids"), batch.get("inputs_embeds")
        tokens = None if embeds is None else embeds.shape[-2]
        tokens = tokens if ids is None else ids.shape[-1]
        decoded = batch.get("decoder_input_ids", batch.get("labels"))
        several = getattr(model.config, "is_encoder_decoder", False)
        last = None if decoded is None or not several else int(decoded.shape[-1])
        return cls(0 if cached_prompt(model) else size, tokens, last, size)

    def after(self, values: Tensor, encoded: bool = False) -> Tensor:
        """``(B, size + T, ...)`` without the first positions; anything else unchanged.

        Args:
            values: Output of one layer.
            encoded: True for an encoder that a decoder follows.
        """
        count = self.tokens if encoded or self.decoded is None else self.decoded
        if not self.size or values.dim() < 2 or values.shape[1] != (count or 0) + self.size:
            return values
        return values[:, self.size :]

    def before(self, values: Tensor, like: Tensor) -> Tensor:
        """``(B, T, ...)`` with NaN in front, at the positions of the prompt in ``like``."""
        if not self.size or values.dim() != like.dim() or values.dim() < 2:
            return values
        if like.shape[1] != values.shape[1] + self.size:
            return values
        nothing = values.new_full((len(values), self.size, *values.shape[2:]), torch.nan)
        return torch.cat([nothing, values], 1)

    def outputs(self, outputs: Any) -> Any:
        """A model's outputs without the positions of the prompt."""
        if not self.size or not dataclasses.is_dataclass(outputs):
            return outputs
        found: dict[str, Any] = {}
        for name in (*ENCODED, *DECODED):
            value, encoded = getattr(outputs, name, None), name in ENCODED
            least = 2 if name in ("start_logits", "end_logits") else 3
            if isinstance(value, tuple):
                found[name] = tuple(self.after(layer, encoded) for layer in value)
            elif isinstance(value, Tensor) and value.dim() >= least:
                found[name] = self.after(value, encoded)
        return dataclasses.replace(outputs, **found)  # type: ignore[type-var]

    def module(self, path: str, values: Tensor) -> Tensor:
        """The output of a module, by its path, without the positions of the prompt."""
        if values.dim() < 3:
            return values
        return self.after(values, "encoder" in path.split(".") and self.decoded is not None)

    def check_maps(self, who: str, maps: Iterable[Tensor]) -> None:
        """Raise on attention maps with positions of a prompt.

        Raises:
            ValueError: maps that look at more places than the batch has tokens.
        """
        sizes = {self.tokens, self.decoded}
        if self.cached and any(layer.shape[-1] not in sizes for layer in maps):
            raise ValueError(
                f"Expected attention maps of {who} over the {self.tokens} tokens of the batch, got "
                f"maps in which a part of the attention goes to the {self.cached} virtual tokens "
                "of its prompt. Compare what is before the softmax (AttentionMaps(scores=True), "
                "MiniLMv2, TinyBERT), or hidden states."
            )


NO_PROMPT = Prompt(0, None, None, 0)


# ---- behind: images ------------------------------------------------------------------------------


def with_images(mask: Tensor, batch: Mapping[str, Any], model: nn.Module) -> Tensor:
    """Mask of a model's states: its tokens ``(B, T)`` and the image positions behind them, which
    all count.

    LayoutLMv3 has a position for each patch and one for the image; VisualBERT gets them as inputs.
    """
    config: Any = getattr(model, "config", None)
    kind, rows = getattr(config, "model_type", ""), mask.any(-1, keepdim=True)
    images, visual = batch.get("pixel_values"), batch.get("visual_embeds")
    if kind == "layoutlmv3" and isinstance(images, Tensor) and config.visual_embed:
        height, width = (size // config.patch_size for size in images.shape[-2:])
        return torch.cat([mask, rows.expand(-1, height * width + 1)], 1)
    if kind == "visual_bert" and isinstance(visual, Tensor):
        real = batch.get("visual_attention_mask")
        real = torch.ones(visual.shape[:-1], device=mask.device) if real is None else real
        return torch.cat([mask, real.flatten(0, -2).bool() & rows], 1)
    return mask


def check_order(model: nn.Module, path: str, values: Tensor, batch: Mapping[str, Any]) -> None:
    """Raise on outputs ``(B, T, H)`` of a module that shuffles image patches.

    Raises:
        ValueError: for ViLT, which shuffles the patches of an image in every forward.
    """
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if kind == "vilt" and values.dim() == 3 and "pixel_values" in batch:
        raise ValueError(
            f"Expected places that stand for the same in both models, got those of {path!r} in "
            f"{type(model).__name__}, which shuffles the patches of an image in every forward. "
            "Take a module that gives one vector (HiddenStates('vilt.pooler:vilt.pooler')), or an "
            "objective on its logits."
        )


# ---- shorter: audio ------------------------------------------------------------------------------


def frame_mask(batch: Mapping[str, Any], model: nn.Module, rows: Tensor, last: bool) -> Tensor:
    """Mask ``(B, F)`` of audio frames without padding, by the model's own arithmetic.

    Args:
        batch: The audio and, if present, its ``attention_mask`` ``(B, samples or frames)``.
        model: Its ``_get_feat_extract_output_lengths``, or the like, converts samples to frames;
            the frames of a model without one are those of the batch.
        rows: ``(B,)``, the counted examples.
        last: True for the frames below the logits, which an adapter may shorten once more.
    """
    known = [batch[name] for name in AUDIO if name in batch]
    floats = [v for v in batch.values() if isinstance(v, Tensor) and v.is_floating_point()]
    signal = next((v for v in (*known, *floats) if v.dim() > 1), None)
    if signal is None:
        raise ValueError(
            f"Expected a batch with audio, samples or features (B, frames, …), got "
            f"{sorted(batch)}. Call the column one of {list(AUDIO)}, or give it as floats."
        )
    mask = batch.get("attention_mask", batch.get("padding_mask"))
    if signal.dim() == 3 and signal.shape[1] == 1:  # with a channel (OmniASR)
        signal = signal[:, 0]
    if mask is None:
        lengths = torch.full((len(signal),), signal.shape[1], device=signal.device)
        longest = int(signal.shape[1])
    else:
        mask = mask[:, :, -1] if mask.dim() > 2 else mask
        lengths, longest = mask.sum(-1), int(mask.shape[-1])
    total = int(_subsampled(torch.tensor([longest]), model, last))
    found = _subsampled(lengths, model, last).to(rows.device)
    return (torch.arange(total, device=rows.device) < found[:, None]) & rows[:, None]


def _subsampled(lengths: Tensor, model: nn.Module, last: bool) -> Tensor:
    """Number of frames for a number of samples."""
    for shorten in _arithmetic(model):
        adapted = "add_adapter" in signature(shorten).parameters and not last
        options = {"add_adapter": False} if adapted else {}
        try:
            found = torch.as_tensor(shorten(lengths, **options)).reshape(lengths.shape)
        except (RuntimeError, ValueError):  # arithmetic of one number (Moonshine)
            found = torch.tensor([int(shorten(n, **options)) for n in lengths.tolist()])
        if (found >= 0).all():  # else it counts samples, and these are frames (Cohere ASR)
            return found
    return lengths


def _arithmetic(model: nn.Module) -> list[Any]:
    """The methods of a model, and of its parts, that compute the number of frames."""
    names = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")
    found = (getattr(part, name, None) for part in model.modules() for name in names)
    return [method for method in found if method is not None]


# ---- what fits, and what does not ----------------------------------------------------------------


def check_length(
    who: str, what: str, length: int, mask: Tensor, layers: Sequence[int] | None = None
) -> None:
    """Raise if states or maps do not match the batch's mask of real positions.

    Args:
        who: The model.
        what: Their name in messages.
        length: Their number of positions.
        mask: ``(B, T)``, the real ones.
        layers: Number of positions of each layer of this model, for the remedy.

    Raises:
        ValueError: the two lengths differ.
    """
    wanted = int(mask.shape[-1])
    if length == wanted:
        return
    alike = [index for index, size in enumerate(layers or ()) if size == wanted]
    remedy = (
        "Take modules by their paths, of which all places count (HiddenStates('<of the teacher>:"
        "<of the student>')), or an objective on its logits, if it has some."
    )
    if alike:
        last = "" if alike[-1] != len(layers or ()) - 1 else ", for example layers='-1:-1'"
        remedy = f"Name layers that have them (its layers {alike} do{last}). {remedy}"
    raise ValueError(
        f"Expected {what} with {wanted} places from {who}, as many as the batch has, got {length}: "
        f"which of them are padding is not known. {remedy}"
    )
