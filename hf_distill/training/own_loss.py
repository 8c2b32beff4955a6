"""Comparison of the label loss with that of the student's own forward."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill.models.batches import GENERATED, IGNORE, WEIGHTS, aligned_tokens, by_row, rows_of
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.models.tasks import shifts_labels
from hf_distill.objectives import HardLabels
from hf_distill.objectives.base.objective import Context, Term
from hf_distill.objectives.routing import with_router_balance
from hf_distill.training.reduction import reduce

logger = logging.getLogger(__name__)

ROWS = 2
"""Examples that are compared."""
LENGTH = 128
"""Tokens of a language model's text that are compared: its logits are as wide as a vocabulary."""
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
"""Largest relative difference; in half precision 3e-2."""


def check_label_loss(student: nn.Module, task_model: TaskModel, sample: Mapping[str, Any]) -> None:
    """Refuse a student whose own loss is another than that of `HardLabels`.

    Both are taken from one forward, over the labels that `HardLabels` counts, and reduced as in
    transformers. Where the forward gives no finite loss, there is nothing to compare.

    Args:
        student: The student, in evaluation mode.
        task_model: Its head.
        sample: A batch with labels, on its device.

    Raises:
        ValueError: the two differ; with both numbers and the remedy.
    """
    batch = _few(sample, task_model)
    shifts = "shift_labels" in task_model.task.label_keys and shifts_labels(task_model.model)
    losses = None if batch is None else _both(student, task_model, *batch, shifts)
    if batch is None or losses is None:
        return
    ours, own = losses
    dtype = next(student.parameters()).dtype
    near = TOLERANCE.get(dtype, 3e-2) * max(abs(own), 1e-2)
    if abs(ours - own) <= near:
        return
    name = type(task_model.model).__name__
    remedy = (
        "Let it compute its own: objective=0.5 * ModelLoss() + 0.5 * ForwardKL(2.0) (in a recipe "
        "the name model_loss); or keep ours with check_label_loss=False."
    )
    if shifts:
        items = aligned_tokens(batch[0], task_model.model, batch[1].masks["samples"])
        other = _both(student, task_model, batch[0], items, shifts=False)
        if other is not None and abs(other[0] - other[1]) <= near:
            remedy = (
                "It does not shift the labels, as its data have done that: say so with "
                f"hf_distill.models.tasks.UNSHIFTED.add({name!r})."
            )
    raise ValueError(
        f"Expected the loss of the labels to be the student's own, got {ours:.6g} where the "
        f"forward of {name} gives {own:.6g} for the same {len(batch[1].masks['samples'])} "
        f"example(s) (head {task_model.task.name}). {remedy}"
    )


def _few(
    sample: Mapping[str, Any], task_model: TaskModel
) -> tuple[dict[str, Any], BatchItems] | None:
    """One or two examples with labels that its own forward reads as we do; None: there are none."""
    batch = {k: v for k, v in sample.items() if k not in (WEIGHTS, "shift_labels")}
    labels = batch.get("labels")
    if GENERATED in batch or (labels is None and "shift_labels" in sample):
        return None
    if isinstance(labels, Tensor) and labels.is_floating_point() and labels.isnan().any():
        return None
    items = task_model.items(batch)
    labelled, axis = items.masks.get(items.own_labels), task_model.task.axis
    if items.labels is None or labelled is None:
        return None
    if axis is None or not by_row(batch):
        return batch, items
    there = labelled.movedim(axis, 0).flatten(1).all(1) if axis else labelled
    there = there.flatten(1).any(1) if there.dim() > 1 else there
    most = 1 if task_model.task.classes == "vocabulary" else ROWS
    rows = there.nonzero().flatten().tolist()[:most]
    if not rows:
        return None
    few, items = rows_of(batch, items, rows, axis)
    return _shortened(few, items, task_model)


def _shortened(
    batch: dict[str, Any], items: BatchItems, task_model: TaskModel
) -> tuple[dict[str, Any], BatchItems]:
    """The end of a long text, for a language model that reads nothing else."""
    ids = batch.get("input_ids")
    plain = task_model.task.classes == "vocabulary" and not task_model.config.is_encoder_decoder
    if not plain or task_model.floating in batch or ids is None or ids.shape[-1] <= LENGTH:
        return batch, items
    last = int(items.masks["labels"].nonzero()[:, 1].max()) + 2
    chosen = slice(max(0, last - LENGTH), last)
    width = ids.shape[-1]
    long = {k: v for k, v in batch.items() if isinstance(v, Tensor) and v.shape[1:] == (width,)}
    cut = {**batch, **{key: value[:, chosen] for key, value in long.items()}}
    return cut, task_model.items(cut)


def _both(
    student: nn.Module,
    task_model: TaskModel,
    batch: dict[str, Any],
    items: BatchItems,
    shifts: bool,
) -> tuple[float, float] | None:
    """Our loss and the model's own, which may shift the labels, of one forward; None: it gives
    none, which is logged if it failed (in training it never gets labels)."""
    goal = with_router_balance(1.0 * HardLabels(), task_model)
    needs = goal.student_needs | Needs(own_loss=True)
    labelled = _as_counted(batch, items, task_model, shifts)
    try:
        _, signal = task_model.ask(student, labelled, needs, items)
    except Exception as error:
        logger.warning("%s gives no loss to compare the label loss with: %s", task_model.who, error)
        return None
    if signal.own_loss is None:
        return None
    terms = goal.terms(signal, None, items, Context())
    terms[0] = _as_transformers_reduces(terms[0], signal, task_model, items)
    ours, own = float(reduce(terms, items.counts())[0]), float(signal.own_loss.float().mean())
    if signal.kind == "sigmoid" and signal.logits is not None:  # some sum over the classes (ViLT)
        ours = min(ours, ours * signal.logits.shape[-1], key=lambda loss: abs(loss - own))
    return (ours, own) if torch.tensor([ours, own]).isfinite().all() else None


def _as_counted(
    batch: dict[str, Any], items: BatchItems, task_model: TaskModel, shifts: bool
) -> dict[str, Any]:
    """The batch with only those labels that `HardLabels` counts."""
    counted = items.masks[items.own_labels]
    if task_model.task.name == "question_answering":  # transformers leaves out what is not in it
        width = int(items.masks["encoder" if "encoder" in items.masks else "hidden"].shape[-1])
        rows = zip(task_model.task.label_keys, counted, strict=True)
        return {**batch, **{k: batch[k].flatten().masked_fill(~row, width) for k, row in rows}}
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() < 2:
        return batch
    if counted.dim() != labels.dim():  # 0 and 1 for each class of an example: none is left out
        return batch
    if shifts:
        counted = F.pad(counted[:, :-1], (1, 0))
    ignored = IGNORE
    if task_model.task.name == "semantic_segmentation":
        ignored = getattr(task_model.config, "semantic_loss_ignore_index", 255)
    return {**batch, "labels": labels.masked_fill(~counted, ignored)}


def _as_transformers_reduces(
    term: Term, signal: Signal, task_model: TaskModel, items: BatchItems
) -> Term:
    """Term with the reduction of transformers."""
    values, mask = term.values, items.masks[items.own_labels]
    if signal.kind == "ctc":
        if getattr(task_model.config, "ctc_loss_reduction", "mean") == "sum":
            return dataclasses.replace(term, values=values.sum()[None], unit="batches", mask=None)
        values, unit = values / mask.sum(-1).clamp(min=1), "samples"
        return dataclasses.replace(term, values=values, unit=unit, mask=items.masks["samples"])
    if task_model.task.name == "question_answering":  # the mean of two means
        means = torch.stack([v[m].mean() for v, m in zip(values, mask, strict=True)])
        return dataclasses.replace(term, values=means.mean()[None], unit="batches", mask=None)
    several = signal.kind == "regression" or (
        signal.kind == "sigmoid" and task_model.task.axis == 0
    )
    classes = 1 if signal.logits is None or not several else signal.logits.shape[-1]
    return dataclasses.replace(term, values=values / classes)
