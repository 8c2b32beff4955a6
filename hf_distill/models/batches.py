"""Item masks and labels of batches: one function per task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.generic import find_labels

from hf_distill.models.modules import config_of
from hf_distill.models.places import AUDIO, frame_mask, with_images
from hf_distill.models.signals import BatchItems

Batch = Mapping[str, Any]
IGNORE = -100
WEIGHTS = "token_weights"
"""Batch key of the weights of label tokens, aligned with the labels."""
GENERATED = "generated"
"""Batch key ``(B,)`` that marks student-generated texts: their tokens are items without labels."""
ALIGNED = "teacher_positions"
"""Batch key for a teacher with another tokenizer: at each position the teacher's position that
predicts the same text (or, of token classifiers, that stands for the same word), or -1."""
TASKS_COLUMN = "tasks"
"""Batch key ``(B, H)`` of models with several heads: true where an example belongs to the task of a
head, in the order of the heads; without it all belong to all."""
RAW_COLUMNS = ("task", "labels", TASKS_COLUMN)
"""Columns of examples for several heads, see `hf_distill.data.multi_task.MultiTaskCollator`."""


# ---- reading the batch: what is there to count -----------------------------------------------


def batch_size(batch: Batch) -> int:
    """The number of examples in a batch of tensors."""
    for value in (batch.get("input_ids"), *batch.values()):  # images may have separate rows
        if isinstance(value, Tensor) and value.dim() > 0:
            return int(value.shape[0])
    raise ValueError(
        f"Expected a batch with at least one tensor, got the keys {sorted(batch)}. "
        "Check that the data collator returns tensors."
    )


def check_readable(values: Tensor) -> bool:
    """True if values can be read without waiting for a device."""
    return values.device.type == "cpu"


def by_row(batch: Batch) -> bool:
    """True if every tensor has one row per example; not so where the patches of all images of a
    batch form one list (Qwen2-VL)."""
    size = batch_size(batch)
    tensors = (v for v in batch.values() if isinstance(v, Tensor) and v.dim() > 0)
    return all(tensor.shape[0] == size for tensor in tensors)


def rows_of(
    batch: Batch, items: BatchItems, rows: Sequence[int], axis: int = 0
) -> tuple[dict[str, Any], BatchItems]:
    """Select examples of a batch and their items.

    Args:
        batch: The collated batch.
        items: Its items.
        rows: Indices of the examples, in this order.
        axis: The dimension of the items that is the batch.
    """
    size = batch_size(batch)

    def own(value: Any, dim: int = 0) -> Any:
        if not isinstance(value, Tensor) or value.dim() <= dim or value.shape[dim] != size:
            return value
        return value.index_select(dim, torch.tensor(rows, device=value.device))

    masks = {
        unit: own(mask, axis if unit in ("items", "labels", "spans") else 0)
        for unit, mask in items.masks.items()
    }
    labels, weights = own(items.labels, axis), own(items.weights, axis)
    members = {n: rows_of(batch, member, rows, axis)[1] for n, member in items.members.items()}
    kept = replace(items, masks=masks, labels=labels, weights=weights, members=members)
    return {name: own(value) for name, value in batch.items()}, kept


def labels_of(head: str) -> str:
    """Batch key of the labels of one head of a model with several."""
    return f"{head}_labels"


def batch_of(batch: Batch, head: str) -> dict[str, Any]:
    """The batch as one head of a model with several reads it: its labels are the labels."""
    own = {key: value for key, value in batch.items() if key not in RAW_COLUMNS}
    if batch.get(labels_of(head)) is not None:
        own["labels"] = batch[labels_of(head)]
    return own


def without_places(items: BatchItems) -> BatchItems:
    """The items without the mask of single items."""
    return replace(items, masks={u: mask for u, mask in items.masks.items() if u != "items"})


def _token_mask(batch: Batch, rows: Tensor) -> Tensor:
    mask = batch.get("attention_mask")
    if mask is None:
        reference = batch.get("input_ids")
        reference = batch["inputs_embeds"][..., 0] if reference is None else reference
        mask = _within_texts(reference, batch.get("position_ids"))
    return mask.bool() & rows.view(-1, *[1] * (mask.dim() - 1))


def _within_texts(reference: Tensor, positions: Tensor | None) -> Tensor:
    """Mask of tokens without an attention mask: all but those at the end of a packed row with
    position 0, as `LanguageCollator` pads packed rows."""
    if positions is None or positions.shape != reference.shape:
        return torch.ones_like(reference, dtype=torch.bool)
    return (positions != 0).flip(-1).cumsum(-1).flip(-1) > 0


def _count(
    rows: Tensor,
    items: Tensor | None,
    labels: Tensor | None = None,
    labelled: Tensor | None = None,
    **groups: Tensor,
) -> BatchItems:
    masks = {"batches": rows.new_ones(()), "samples": rows, **groups}
    if items is not None:
        masks["items"] = items
    if labels is not None and labelled is not None:
        masks["labels"] = labelled
    return BatchItems(masks, labels)


def _weighted(items: BatchItems, batch: Batch, shift: bool = False) -> BatchItems:
    weights = batch.get(WEIGHTS)
    if weights is None:
        return items
    return replace(items, weights=_next(weights, 0.0) if shift else weights)


def samples(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    labels = batch.get("labels")
    groups = _sequence_groups(batch, model, rows)
    if labels is None:
        return _count(rows, rows, **groups)
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"Expected labels as one tensor, with a row for each of {len(rows)} examples, got a "
            f"{type(labels).__name__}: {type(model).__name__} is read as a classifier of examples. "
            "If they are something else (boxes), let it compute its own loss: leave the class out "
            f"of hf_distill.models.tasks.CUSTOM_TASKS (del CUSTOM_TASKS[{type(model).__name__!r}], "
            "if it is there), with objective=0.5 * ModelLoss() + 0.5 * HiddenStates()."
        )
    if labels.is_floating_point():  # regression, several labels, soft ones: NaN marks a missing one
        missing = torch.isnan(labels)
        if labels.dim() > 1 and not _regresses(config_of(model)):
            missing |= labels < 0  # 0 and 1 are the labels, -100 too marks none
    else:
        if labels.shape[1:] == (1,) and not _has_several_labels(config_of(model)):
            labels = labels[:, 0]
        missing = labels == IGNORE
    missing = missing.all(-1) if missing.dim() > 1 else missing
    return _count(rows, rows, labels, rows & ~missing, **groups)


def _regresses(config: Any) -> bool:
    return getattr(config, "problem_type", None) == "regression" or config.num_labels == 1


def _has_several_labels(config: Any) -> bool:
    return getattr(config, "problem_type", None) == "multi_label_classification"


def _sequence_groups(batch: Batch, model: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    """Masks of the hidden states: tokens, audio frames, or none (images, unmasked audio)."""
    if "input_ids" in batch or "inputs_embeds" in batch:
        return {"hidden": _with_images(_token_mask(batch, rows), batch, model)}
    if batch.get("attention_mask") is not None and any(name in batch for name in AUDIO):
        return {"hidden": frame_mask(batch, model, rows, last=False)}
    return {}


def _with_images(mask: Tensor, batch: Batch, model: nn.Module) -> Tensor:
    images = "pixel_values" in batch or "visual_embeds" in batch
    return with_images(mask, batch, model) if images else mask


def of_both_stacks(
    items: Callable[[Batch, nn.Module, Tensor], BatchItems],
) -> Callable[[Batch, nn.Module, Tensor], BatchItems]:
    """The items of a model with an encoder and a decoder that both read the text (BART's
    classifiers): the padding of each; the decoder's text is the encoder's, one place later."""

    def found(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
        own = items(batch, model, rows)
        masks = {"encoder" if unit == "hidden" else unit: m for unit, m in own.masks.items()}
        ids, real = (batch.get(f"decoder_{key}") for key in ("input_ids", "attention_mask"))
        if real is None and ids is not None:
            real = torch.ones_like(ids)
        if real is not None:
            masks["decoder"] = real.bool() & rows[:, None]
        elif "encoder" in masks:
            masks["decoder"] = masks["encoder"]
        return replace(own, masks=masks)

    return found


def _class_ids(labels: Any, shape: Sequence[int], places: str) -> Tensor:
    """Check that labels are one class index for each position.

    Raises:
        ValueError: they have another shape, or are not integers.
    """
    fits = isinstance(labels, Tensor) and tuple(labels.shape) == tuple(shape)
    if fits and not labels.is_floating_point():
        return labels
    given = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels)
    raise ValueError(
        f"Expected labels that are classes (integers) of shape {tuple(shape)}, one for each "
        f"{places}, got {given}. Let the data collator pad labels as it pads the inputs, with -100 "
        "(DataCollatorForTokenClassification), and give class ids."
    )


def tokens(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    """Labelled tokens of examples with labels, all real tokens of examples without, so that
    labelled and unlabelled sentences can be mixed."""
    real, labels = _token_mask(batch, rows), batch.get("labels")
    hidden = _with_images(real, batch, model)
    if labels is None:
        return _aligned(_count(rows, real, hidden=hidden), batch)
    labels = _class_ids(labels, real.shape, "token")
    labelled = (labels != IGNORE) & rows[:, None]
    items = torch.where(labelled.any(-1, keepdim=True), labelled, real)
    return _aligned(_count(rows, items, labels, labelled, hidden=hidden), batch)


def masked_tokens(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    real, labels = _token_mask(batch, rows), batch.get("labels")
    if labels is None:
        return _weighted(_count(rows, real, hidden=real), batch)
    labels = _class_ids(labels, real.shape, "token")
    labelled = (labels != IGNORE) & rows[:, None]
    return _weighted(_count(rows, labelled, labels, labelled, hidden=real), batch)


def next_tokens(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    """Next tokens with a label, or all real ones without labels. The labels are shifted, not the
    logits, whose copy would be as large as the vocabulary: the last position predicts nothing. A
    padding position before the first token is not an item either: it would depend on the length of
    the other texts of the batch."""
    real = _token_mask(batch, rows)
    if batch.get("shift_labels") is not None:  # a collator that has shifted them already
        labels = batch["shift_labels"]
    elif batch.get("labels") is not None:
        labels = _next(_class_ids(batch["labels"], real.shape, "token"), IGNORE)
    else:
        items = _count(rows, _next(real, False) & real, hidden=real)
        return _aligned(_weighted(items, batch, shift=True), batch)
    labelled = (labels != IGNORE) & real
    items = _count(rows, labelled, labels, _given(labelled, batch), hidden=real)
    return _aligned(_weighted(items, batch, shift=True), batch)


def aligned_tokens(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    """Next tokens with a label, for classes whose labels are shifted in the data."""
    labels = batch.get("labels") if batch.get("shift_labels") is None else batch["shift_labels"]
    if labels is None:
        return next_tokens(batch, model, rows)
    labelled = (labels != IGNORE) & rows[:, None]
    real = _token_mask(batch, rows)
    items = _count(rows, labelled, labels, _given(labelled, batch), hidden=real)
    return _aligned(_weighted(items, batch), batch)


def _given(labelled: Tensor, batch: Batch) -> Tensor:
    """Labels without those of student-generated texts."""
    generated = batch.get(GENERATED)
    return labelled if generated is None else labelled & ~generated[:, None]


def _aligned(items: BatchItems, batch: Batch) -> BatchItems:
    """Restrict items (not labels) to positions where both tokenizers have a boundary, for a teacher
    with another tokenizer."""
    positions = batch.get(ALIGNED)
    if positions is None:
        return items
    mask = items.masks["items"] & (positions >= 0)
    return replace(items, masks={**items.masks, "items": mask})


def _next(values: Tensor, none: float) -> Tensor:
    """Shift ``(B, T)`` to the left by one; the last position gets ``none``."""
    return F.pad(values[:, 1:], (0, 1), value=none)


def decoder_tokens(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    encoded = _sequence_groups(batch, model, rows)
    groups = {"encoder": encoded["hidden"]} if encoded else {}
    labels = batch.get("labels")
    if labels is None:
        ids = batch["decoder_input_ids"]
        real = batch.get("decoder_attention_mask")
        real = (torch.ones_like(ids) if real is None else real).bool() & rows[:, None]
        return _weighted(_count(rows, real, decoder=real, **groups), batch)
    items = (labels != IGNORE) & rows[:, None]
    counted = _count(rows, items, labels, _given(items, batch), decoder=items, **groups)
    return _weighted(counted, batch)


def spans(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    real = _with_images(_token_mask(batch, rows), batch, model)
    items = rows.expand(2, -1)
    if batch.get("start_positions") is None or batch.get("end_positions") is None:
        return _count(rows, items, hidden=real)
    labels = torch.stack([batch["start_positions"], batch["end_positions"]]).flatten(1)
    within = (labels >= 0) & (labels < real.shape[-1]) & rows
    place = labels.masked_fill(~within, 0)
    labelled = within & torch.stack([real.gather(1, p[:, None])[:, 0] for p in place])
    return _count(rows, items, labels, labelled, spans=within, hidden=real)


def choices(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    real = _with_images(_token_mask(batch, rows).flatten(0, 1), batch, model)
    labels = batch.get("labels")
    if labels is None:
        return _count(rows, rows, hidden=real)
    return _count(rows, rows, labels, (labels != IGNORE) & rows, hidden=real)


def frames(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    frames, below = (frame_mask(batch, model, rows, last) for last in (True, False))
    labels = batch.get("labels")
    if labels is None:
        return _count(rows, frames, hidden=below)
    labelled = (labels >= 0) & rows[:, None]
    return _count(rows, frames, labels, labelled, hidden=below)


def pixels(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    labels = batch.get("labels")
    if labels is None:
        size = batch["pixel_values"].shape[-2:]
        return _count(rows, rows[:, None, None].expand(-1, *size))
    config: Any = config_of(model)
    ignored = getattr(config, "semantic_loss_ignore_index", 255)
    labelled = (labels != ignored) & (labels != IGNORE) & rows[:, None, None]
    items = torch.where(labelled.any(-1).any(-1)[:, None, None], labelled, rows[:, None, None])
    return _count(rows, items, labels.masked_fill(~labelled, IGNORE), labelled)


def pairs(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    labels = torch.arange(len(rows), device=rows.device).expand(2, -1)
    both = rows.expand(2, -1)
    return _count(rows, both, labels, both, text=_token_mask(batch, rows))


def matches(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    """Every pair of a text and an image, as a binary label."""
    labels = torch.eye(len(rows), device=rows.device)
    return _count(rows, rows, labels, rows, text=_token_mask(batch, rows))


def candidates(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    """Queries; a label is the place of the right candidate, by default the first."""
    labels = batch.get("labels")
    if labels is None:
        labels = torch.zeros_like(rows, dtype=torch.long)
    return _count(rows, rows, labels, rows & (labels != IGNORE))


def own_labels(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    """Examples, for a head with only its own loss; labelled where the batch has its labels, or
    where its class takes none (masked autoencoders)."""
    masks = _sequence_groups(batch, model, rows)
    config: Any = config_of(model)
    if "hidden" in masks and getattr(config, "is_encoder_decoder", False):
        masks = {"encoder": masks["hidden"]}
    keys = find_labels(type(model))
    labelled = not keys or any(batch.get(key) is not None for key in keys)
    return _count(rows, None, rows if labelled else None, rows, **masks)


def no_items(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    return _count(rows, None, **_sequence_groups(batch, model, rows))


# ---- inputs that student and teacher must share ----------------------------------------------


def decoder_inputs(batch: Batch, model: PreTrainedModel) -> Batch:
    """Compute decoder inputs from the labels once, so that both decoders read the same tokens."""
    if batch.get("decoder_input_ids") is not None:
        return batch
    labels = batch.get("labels")
    if labels is None:
        raise ValueError(
            f"A sequence-to-sequence batch needs `labels` or `decoder_input_ids`, got "
            f"{sorted(batch)}. For unlabelled data let the teacher generate the targets first."
        )
    prepare: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if prepare is not None:
        return {**batch, "decoder_input_ids": prepare(labels)}
    config: Any = config_of(model)
    parts = (config, config.get_text_config(decoder=True))  # an image encoder may be the model
    first, pad = (
        next((v for v in (getattr(part, name, None) for part in parts) if v is not None), None)
        for name in ("decoder_start_token_id", "pad_token_id")
    )
    if first is None or pad is None:
        raise ValueError(
            f"Expected a config that names the first token of the decoder and the padding, got "
            f"{first} and {pad} from {type(model).__name__}. Let the data collator give "
            "`decoder_input_ids` (and `decoder_attention_mask`) beside the labels."
        )
    shifted = torch.cat([torch.full_like(labels[:, :1], first), labels[:, :-1]], dim=1)
    return {**batch, "decoder_input_ids": shifted.masked_fill(shifted == IGNORE, pad)}


def same(batch: Batch, model: PreTrainedModel) -> Batch:
    return batch


def same_noise(batch: Batch, model: PreTrainedModel) -> Batch:
    """Draw the noise by which a masked autoencoder (ViTMAE) chooses its patches once, so that both
    models see the same ones."""
    if batch.get("noise") is not None or "noise" not in signature(model.forward).parameters:
        return batch
    config: Any = config_of(model)
    images = batch["pixel_values"]
    sides = [config.patch_size] * 2
    if hasattr(config, "masked_unit_size"):  # Hiera masks units of several patches
        units = zip(config.patch_stride, config.masked_unit_size, strict=True)
        sides = [stride * size for stride, size in units]
    patches = math.prod(n // side for n, side in zip(images.shape[-2:], sides, strict=True))
    return {**batch, "noise": torch.rand(len(images), patches, device=images.device)}
