"""Outputs by name, from `ModelOutput`, dict, tuple or tensor, as `Trainer` accepts them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import ModelOutput


class Named(dict[str, Any]):
    """Outputs by name, as attributes too."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


def by_name(outputs: Any, fields: Sequence[str], labelled: bool = False) -> Any:
    """Convert the outputs of a model to outputs by name.

    Args:
        outputs: Result of its ``forward``.
        fields: Names of the entries of a tuple, in order; a tensor is the first.
        labelled: True if the inputs had labels: a tuple then begins with the loss, as in `Trainer`.

    Returns:
        A `ModelOutput` unchanged; otherwise a `Named`. In a dict with a single tensor (and a loss)
        the tensor gets the first name, whatever its key.
    """
    if isinstance(outputs, ModelOutput):
        return outputs
    if hasattr(outputs, "_asdict"):
        outputs = outputs._asdict()
    elif dataclasses.is_dataclass(outputs):
        outputs = vars(outputs)
    if isinstance(outputs, Tensor):
        return Named({fields[0]: outputs})
    if isinstance(outputs, Mapping):
        rest = [value for name, value in outputs.items() if name != "loss"]
        if len(rest) == 1 == len(fields) and isinstance(rest[0], Tensor):
            return Named({"loss": outputs.get("loss"), fields[0]: rest[0]})
        return Named(outputs)
    if isinstance(outputs, tuple | list):
        if labelled and isinstance(outputs[0], Tensor) and outputs[0].dim() == 0:
            fields = ["loss", *fields]
        names = [*fields, *(f"output_{index}" for index in range(len(fields), len(outputs)))]
        return Named(zip(names, outputs, strict=False))
    return outputs


def entry(outputs: Any, path: str) -> Any:
    """The output at a path (``text_model_output.hidden_states``); None if there is none."""
    for name in path.split("."):
        outputs = getattr(outputs, name, None)
    return outputs


def check_fields(outputs: Any, fields: Sequence[str], who: str, task: str) -> None:
    """Raise if outputs lack the fields of a task.

    Args:
        outputs: What `by_name` gave.
        fields: The names that are read.
        who: The model, for the message.
        task: The name of its task.

    Raises:
        ValueError: one of them is missing, naming what there is, with the remedy.
    """
    missing = [name for name in fields if not isinstance(entry(outputs, name), Tensor)]
    if not missing:
        return
    named = isinstance(outputs, Mapping)
    given = sorted(outputs) if named else type(outputs).__name__
    kind = who.rpartition(" ")[2].strip("()")
    raise ValueError(
        f"Expected {list(fields)} from {who}, which is read as {task}; it gives {given}. If it is "
        f"another kind of head, say which: hf_distill.register_task({kind!r}, …). If it has these "
        f"outputs under other names, return them as {{{fields[0]!r}: …}}, or pass register_task a "
        f"row that reads them: dataclasses.replace(hf_distill.models.tasks.TASKS[{task!r}], "
        f"read=…, fields=(…,))."
    )


# ---- reading the outputs: classes last -------------------------------------------------------


def plain(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    return outputs.logits


def start_end(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    logits = torch.stack([outputs.start_logits, outputs.end_logits])
    mask = batch.get("attention_mask")
    if mask is None:
        return logits
    mask = F.pad(mask, (0, logits.shape[-1] - mask.shape[-1]), value=1)  # images behind the text
    # a quarter of the lowest, so that a script may add start and end without overflow
    return logits.masked_fill(~mask.bool(), torch.finfo(logits.dtype).min / 4)


def at_pixels(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Logits at the labels' (or the image's) resolution, as transformers' own loss has them."""
    labels = batch.get("labels")
    size = (batch["pixel_values"] if labels is None else labels).shape[-2:]
    logits = F.interpolate(outputs.logits, size=size, mode="bilinear", align_corners=False)
    return logits.movedim(1, -1)


def spans_over_padding(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Start and end logits including padding, as the model's own loss reads them."""
    return torch.stack([outputs.start_logits, outputs.end_logits])


def similarities(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Logits ``(2, B, B)`` of each image (audio clip, video) against the texts, and of each text
    against them."""
    per_text = outputs.logits_per_text
    return torch.stack([per_text.t(), per_text])


def in_batch(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Logits of each query against the candidates of the batch, its own first."""
    found: Tensor = outputs.in_batch_logits
    return found


def sound_similarities(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """The same for CLAP, which has a scale for each direction."""
    return torch.stack([outputs.logits_per_audio, outputs.logits_per_text])


def sound_captions(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Logits ``(2, B, B)`` of each text against the audio clips, with both scales, as in CLAP's own
    loss."""
    return torch.stack([outputs.logits_per_audio.t(), outputs.logits_per_text])


def text_similarities(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    per_text: Tensor = outputs.logits_per_text
    return per_text


# ---- and back: the structure that `compute_metrics` expects of a model's predictions ---------


def as_is(logits: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return (logits,)


def unstacked(logits: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return tuple(logits)


def both_ways(logits: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return logits.t(), logits


def channels_first(logits: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return (logits.movedim(-1, 1),)
