"""Hidden states and attention maps in a model's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_distill.models.modules import has_config
from hf_distill.models.outputs import entry
from hf_distill.models.places import check_length
from hf_distill.models.pooling import as_states, pooled
from hf_distill.models.signals import BatchItems
from hf_distill.models.tasks import Task


def layers_of(
    outputs: Any, group: str, path: str, items: BatchItems, who: str
) -> tuple[Tensor, ...]:
    """The hidden states of one group: one tensor per layer, or the pooled embedding.

    Args:
        outputs: A model's outputs.
        group: The group.
        path: Their path in the outputs.
        items: The items of the batch.
        who: The model, for messages.

    Raises:
        ValueError: there are none, or not one row per example.
    """
    value = entry(outputs, path)
    value = tuple(value) if isinstance(value, list) else value  # Reformer's
    if value is None or (isinstance(value, tuple) and not value):
        raise ValueError(
            f"Expected hidden states from {who} under `{path}`, got none. Take modules by "
            "their paths (layers='<of the teacher>:<of the student>')."
        )
    if isinstance(value, tuple):
        own = items.masks.get(group, items.masks["samples"])
        return tuple(_one_row_each(layer, own, who) for layer in value)
    mask = items.masks.get("hidden", items.masks.get("decoder"))
    if group != "embedding":
        return (value,)
    if value.dim() == 2:  # pooled already, or the patches of all images in one sequence
        _one_row_each(value, items.masks["samples"], who)
    elif mask is not None:
        check_length(who, "states", as_states(value).shape[1], mask)
    return (pooled(value, mask),)


def other_items(model: nn.Module, shape: Sequence[int], mask: Tensor, task: Task, role: str) -> str:
    """Describe logits ``(..., C)`` that do not match the items of the batch.

    Args:
        model: The model that returned them.
        shape: Their shape.
        mask: Mask of the items, ``(...)``.
        task: The model's task.
        role: ``student``, ``teacher``, ….
    """
    name, over = type(model).__name__, tuple(mask.shape)
    more = shape[-2] - over[-1] if len(shape) == mask.dim() + 1 else 0
    remedy = (
        f"Name the head that it has: hf_distill.register_task({name!r}, …), with the name of a "
        "task or a `hf_distill.models.tasks.Task` of your own"
    )
    if len(shape) > mask.dim() + 1 and isinstance(model, PreTrainedModel):
        remedy = (
            "If its logits are of something else than the items (a detector's are of queries), "
            f"leave it out of hf_distill.models.tasks.CUSTOM_TASKS (del CUSTOM_TASKS[{name!r}]), "
            "and learn its own loss and hidden states: "
            "objective=0.5 * ModelLoss() + 0.5 * HiddenStates()"
        )
    if task.kind == "ctc" and not has_config(model):
        remedy = (
            "It shortens audio: give it a method _get_feat_extract_output_lengths(lengths), "
            "which says how many frames the logits have for so many of the input"
        )
    elif role == "teacher" and len(shape) == mask.dim() + 1:
        remedy = (
            "It makes other places (frames, patches) of the batch than the student: choose a "
            "teacher that makes the same"
        )
    if more > 0 and mask.dim() == 2:
        remedy = (
            f"It has {more} places more than the batch has tokens (an image, or a prefix). "
            "Say which are the tokens, for example the last: hf_distill.register_task("
            f"{name!r}, dataclasses.replace(hf_distill.models.tasks.TASKS[{task.name!r}], "
            f"name='behind', read=lambda outputs, batch: outputs.logits[:, {more}:]))"
        )
    return (
        f"Expected logits for the items {over} of the batch, read as {task.name}, from the {role} "
        f"({name}), got {tuple(shape)}. {remedy}."
    )


def _one_row_each(layer: Any, mask: Tensor, who: str) -> Tensor:
    """A layer's states; several streams of a token ``(B, T, n, H)`` (DeepSeek-V4) are one vector.

    Raises:
        ValueError: not a tensor, or not one row for each row of the mask ``(B, ...)``.
    """
    if not isinstance(layer, Tensor) or len(layer) != len(mask):
        got = f"shape {tuple(layer.shape)}" if isinstance(layer, Tensor) else f"{type(layer)}"
        raise ValueError(
            f"Expected hidden states of {len(mask)} rows, a tensor a layer, from {who}, got one of "
            f"{got}. Take modules by their paths (layers='<of the teacher>:<of the student>')."
        )
    return layer.flatten(2) if layer.dim() == 4 and layer.shape[:2] == mask.shape else layer


def stacks(outputs: Any, items: BatchItems) -> dict[str, str]:
    """Fields of all hidden states in an output with one row per example, by group."""
    size, suffix, found = len(items.masks["samples"]), "hidden_states", dict[str, str]()
    for name, value in outputs.items():
        layers = value if name.endswith(suffix) and isinstance(value, tuple) else ()
        if layers and all(isinstance(v, Tensor) and v.dim() > 1 and len(v) == size for v in layers):
            found[name.removesuffix(suffix).removesuffix("_") or "hidden"] = name
    return found


def attentions_of(outputs: Any, path: str, who: str) -> tuple[Tensor, ...]:
    maps = entry(outputs, path)
    if not maps or any(attention is None for attention in maps):
        raise ValueError(
            f"Expected attention maps from {who}, got none, even with the eager attention. Use an "
            "objective on its hidden states or logits, or another model."
        )
    return tuple(maps)
