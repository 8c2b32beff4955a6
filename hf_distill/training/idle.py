"""Trainings that would train nothing: refused where that is certain, and never without a word."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from transformers.trainer_utils import has_length

from hf_distill.models.batches import WEIGHTS, batch_size
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.objective import WeightedSum

SCANNED = 256
"""Examples that are searched for one that counts, if the first ones have none."""


def check_something_counts(
    goal: WeightedSum,
    task_model: TaskModel,
    batches: Iterator[Mapping[str, Any]],
    examples: int | None,
) -> None:
    """Refuse data in which nothing counts (all labels -100, all weights 0); warn if that is so in
    all collated examples that were searched.

    Args:
        goal: The objective.
        task_model: The student's.
        batches: Collated examples from the beginning of the data on.
        examples: Number of examples in the data; None: not known.
    """
    seen = 0
    for batch in batches:
        if not _idle(goal, task_model.items(batch).counts()):
            return
        seen += batch_size(batch)
        if examples is None or seen >= SCANNED:
            break
    if seen == 0 or examples is None:
        return
    names = sorted({type(part).__name__ for _, part in goal.parts})
    told = (
        f"something in the data that counts for {' and '.join(names)}, got none in "
        f"{seen} of {examples} examples: all their labels are -100 (or out of the text), or all "
        f"{WEIGHTS} are 0. Look at how they are made; or take them out and learn from the teacher "
        "alone: dataset.remove_columns(…) and alpha=1.0."
    )
    if seen >= examples:
        raise ValueError(f"Expected {told}")
    warnings.warn(f"Nothing would be learned without {told}", stacklevel=3)


def _idle(goal: WeightedSum, counts: Mapping[str, Tensor]) -> bool:
    """Tell whether nothing of a batch with these counts is learned."""
    for _, part in goal.parts:
        needs = part.student_needs
        inside = needs.hidden_states or needs.attentions or needs.qkv or bool(needs.modules)
        unit = "labels" if part.needs_labels else "items"
        read = part.needs_labels or (needs.logits and not inside)
        if not read or unit not in counts or float(counts[unit]) > 0:
            return False
    return True


def check_trainable(*modules: nn.Module) -> None:
    """Raise a ValueError if all weights are frozen."""
    if not any(p.requires_grad for module in modules for p in module.parameters()):
        raise ValueError(
            f"Expected weights to train, got a {type(modules[0]).__name__} that is frozen: no "
            "parameter requires a gradient. Call model.requires_grad_(True), or evaluate() in "
            "place of train()."
        )


def no_steps(args: Any) -> str | None:
    """Explain why these arguments give no step that changes a weight; None: they give some."""
    if args.max_steps == 0:
        return "max_steps=0. Give a number above 0, or -1 (then num_train_epochs counts)"
    if args.max_steps < 0 and not args.num_train_epochs > 0:  # NaN, too
        return f"num_train_epochs={args.num_train_epochs:g}. Give a number above 0"
    return None


def check_batches(args: Any, dataset: Any) -> None:
    """Raise a ValueError if ``dataloader_drop_last`` leaves no batch."""
    if not args.dataloader_drop_last or not has_length(dataset):
        return
    needed = args.train_batch_size * args.world_size
    if len(dataset) < needed:
        raise ValueError(
            f"Expected at least {needed} training examples, one batch for each process, as "
            f"dataloader_drop_last=True leaves out what is not a whole batch; got {len(dataset)}. "
            "Set it to False, or lower per_device_train_batch_size."
        )


def warn_of_no_steps(args: Any) -> None:
    """Warn that a training has no steps; it goes on, as with `Trainer`."""
    reason = no_steps(args)
    if reason is not None:
        warnings.warn(
            f"Nothing is learned in this training: {reason}; to measure alone call evaluate().",
            stacklevel=4,
        )


def warn_if_nothing_counted(goal: WeightedSum, counts: Mapping[str, Tensor]) -> None:
    """Warn that nothing counted in a training of several batches, as in a stream without labels.

    `counts` are the items of all batches by unit; empty: not known.
    """
    if not counts or not _idle(goal, counts):
        return
    batches = int(counts["batches"])
    if batches > 1:
        warnings.warn(
            f"Nothing was learned: in {batches} batches nothing in the data counted (all labels "
            f"are -100, or all {WEIGHTS} are 0). Look at how they are made.",
            stacklevel=4,
        )
