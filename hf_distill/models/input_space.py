"""Perturbed inputs of models: key, units and bounds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_distill.models.batches import Batch
from hf_distill.models.pgd import NormBall
from hf_distill.models.task_model import TaskModel

EMBEDDINGS = "inputs_embeds"


@dataclass(frozen=True)
class InputSpace:
    """The perturbed input of a model, with its units and bounds.

    Images: pixel levels from 0 to 1, independent of the processor's normalisation (RobustBench's ε
    of 8/255 is the same for all models). Audio: the units of the model's input samples (where the
    feature extractor normalises, standard deviations of the clip). Text: the output of the token
    embeddings; one unit is the length of the token's embedding, and every token has its own ball,
    so that ε does not depend on the width or the number of tokens.

    Attributes:
        key: The batch's key: ``pixel_values``, ``input_values``, ``input_features``,
            ``inputs_embeds``.
        scale: Units of the input per unit of the norm, one for each channel (or a single one).
        low: The bounds in units of the input, one for each channel; None: none.
        high: As ``low``.
    """

    key: str
    scale: tuple[float, ...] = (1.0,)
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    def point(self, task_model: TaskModel, batch: Batch) -> Tensor:
        """The input itself, detached; for text the embeddings of the batch's tokens."""
        if self.key != EMBEDDINGS or batch.get(EMBEDDINGS) is not None:
            found: Tensor = batch[self.key]
            return found.detach()
        with torch.no_grad():
            embedded: Tensor = _embeddings(task_model)(batch["input_ids"])
        return embedded

    def replaced(self, batch: Batch, x: Tensor) -> dict[str, Any]:
        """The batch with its input replaced."""
        own = {key: v for key, v in batch.items() if self.key != EMBEDDINGS or key != "input_ids"}
        return {**own, self.key: x}

    def ball(self, batch: Batch, center: Tensor, epsilon: float, norm: str) -> NormBall:
        """The ball around a batch's input (or a part of it: the same examples of both).

        Args:
            batch: The batch, for its padding.
            center: Result of `point`.
            epsilon: The radius.
            norm: ``linf`` or ``l2``.
        """
        if self.key == EMBEDDINGS:
            length = center.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(center.dtype).tiny)
            mask = _real(batch, center)
            return NormBall(center, epsilon, norm, length, mask=mask, each=center.dim() - 1)
        wide = (self._wide(values, center) for values in (self.scale, self.low, self.high))
        scale, low, high = wide
        mask = None if self.key == "pixel_values" else _real(batch, center)
        # values already out of bounds (by rounding) are kept
        low = None if low is None else torch.minimum(low, center)
        high = None if high is None else torch.maximum(high, center)
        return NormBall(center, epsilon, norm, 1.0 if scale is None else scale, low, high, mask)

    def to_unit(self, x: Tensor) -> Tensor:
        """Images as pixel levels from 0 to 1, a form common to all processors.

        Raises:
            ValueError: no images, or no processor to define black and white.
        """
        low, scale = self._unit(x)
        return (x - low) / scale

    def from_unit(self, levels: Tensor) -> Tensor:
        """Pixel levels from 0 to 1 in this model's units: the inverse of `to_unit`."""
        low, scale = self._unit(levels)
        return low + levels * scale

    def _unit(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low, scale = (self._wide(values, like) for values in (self.low, self.scale))
        if self.key != "pixel_values" or low is None or scale is None:
            what = {
                EMBEDDINGS: "the token embeddings of one model mean nothing to another: transfer "
                "texts instead (a character or word attack)",
                "pixel_values": "without a processor nobody knows what is black and white: "
                "give `space_of` the image processor",
            }.get(self.key, "audio and features have no range that models share")
            raise ValueError(f"Expected images with bounds, got `{self.key}`; {what}.")
        return low, scale

    def _wide(self, values: Sequence[float] | None, like: Tensor) -> Tensor | None:
        if values is None:
            return None
        found = torch.tensor(values, dtype=like.dtype, device=like.device)
        if self.key != "pixel_values":
            return found
        if like.dim() < 4 or len(values) not in (1, like.shape[-3]):
            raise ValueError(
                f"Expected images (..., {len(values)}, height, width), as many channels as the "
                f"processor has means, got {tuple(like.shape)}. Is it the model's own processor?"
            )
        return found.view(-1, 1, 1)


@contextlib.contextmanager
def embedded(task_model: TaskModel, x: Tensor) -> Iterator[None]:
    """Replace the token embeddings of a model by these.

    Unlike with ``inputs_embeds``, the model still gets ``input_ids``, from which it determines the
    end of the text (a classifier on a decoder reads the last token that is not padding) and
    positions (RoBERTa counts from the first token that is not padding).

    Args:
        task_model: The model.
        x: ``(..., T, H)``, for the tokens of its input.

    Raises:
        ValueError: the model did not use its embeddings.
    """
    used: list[bool] = []

    def hook(module: Any, arguments: Any, output: Tensor) -> Tensor:
        used.append(True)
        return x.reshape(output.shape)

    handle = _embeddings(task_model).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if not used:
        raise ValueError(
            f"Expected {type(task_model.model).__name__} to call its input embeddings, and "
            "it did not. Give the batch `inputs_embeds` instead of `input_ids`."
        )


def _embeddings(task_model: TaskModel) -> Any:
    owner: Any = task_model.model
    owner = owner.get_encoder() if owner.config.is_encoder_decoder else owner
    return owner.get_input_embeddings()


def _real(batch: Batch, center: Tensor) -> Tensor | None:
    """Mask of an input without padding, ready to be broadcast; None if the batch has none."""
    mask = batch.get("attention_mask")
    if mask is None:
        return None
    if mask.shape == center.shape[: mask.dim()]:  # samples, tokens, or frames before features
        return mask.bool().view(*mask.shape, *[1] * (center.dim() - mask.dim()))
    if mask.dim() == 2 and mask.shape == (len(center), center.shape[-1]):  # features first
        return mask.bool().view(len(mask), *[1] * (center.dim() - 2), -1)
    return None


def input_space(task_model: TaskModel, processor: Any = None) -> InputSpace:
    """Find the input space of a model, in the units of its processor.

    Args:
        task_model: The model.
        processor: Its image processor, or an object that has one; without it images have no bounds,
            and the units of ``pixel_values``.

    Raises:
        ValueError: a model without an input that can be perturbed.
    """
    key = task_model.floating
    if key is None:
        if EMBEDDINGS not in task_model.accepts:
            raise ValueError(
                f"Expected a model that takes pixels, samples, features or `inputs_embeds`, got "
                f"{type(task_model.model).__name__}, which takes {sorted(task_model.accepts)}."
            )
        return InputSpace(EMBEDDINGS)
    audio = getattr(processor, "feature_extractor", processor)
    if key == "input_values" and not getattr(audio, "do_normalize", True):
        spectrogram = hasattr(audio, "num_mel_bins")
        return InputSpace(key) if spectrogram else InputSpace(key, low=(-1.0,), high=(1.0,))
    images = getattr(processor, "image_processor", processor)
    if key != "pixel_values" or not hasattr(images, "image_mean"):
        return InputSpace(key)
    factor = 255 * images.rescale_factor if getattr(images, "do_rescale", True) else 255.0
    black = -1.0 if getattr(images, "rescale_offset", False) else 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if getattr(images, "do_normalize", False):
        mean, std = _channels(images.image_mean), _channels(images.image_std)
    if getattr(images, "include_top", False):  # EfficientNet's: divided by its deviation twice
        again = _channels(images.image_std)
        std = tuple(s * a for s, a in zip(std * (len(again) // len(std)), again, strict=True))
        mean = mean * (len(again) // len(mean))
    scale = tuple(factor / s for s in std)
    low = tuple((black - m) / s for m, s in zip(mean, std, strict=True))
    high = tuple((black + factor - m) / s for m, s in zip(mean, std, strict=True))
    return InputSpace(key, scale, low, high)


def _channels(values: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(values) if isinstance(values, Sequence) else (values,)
