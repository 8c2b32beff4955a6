"""Validation of the first examples and of the teacher's outputs for them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from hf_distill.data.language.checks import check_context, check_packing
from hf_distill.models.batch_checks import check_inputs, check_weights
from hf_distill.models.places import soft_prompt
from hf_distill.models.problems import task_models_of
from hf_distill.models.sharding import gathered_parameters
from hf_distill.models.signals import BatchItems, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.objective import WeightedSum
from hf_distill.teachers import ModelTeacher, Teacher


def check_data(
    dataset: Any, sample: Mapping[str, Any] | None, objective: WeightedSum, task_model: TaskModel
) -> None:
    """Refuse empty data, data without the labels that are needed, and senseless objectives."""
    if dataset is not None and hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(
            "Expected a train_dataset with examples, got an empty one. Check the filters and the "
            "split it was made with."
        )
    labels = None if sample is None else task_model.items(sample).labels
    objective.check(task_model.kind(labels), task_model.classes)
    if sample is not None and objective.needs_labels and labels is None:
        names = [type(part).__name__ for _, part in objective.parts if part.needs_labels]
        raise ValueError(
            f"{' and '.join(names)} needs the label column(s) {list(task_model.task.label_keys)}, "
            f"and the data gives {sorted(sample)}. Train on the teacher alone (alpha=1.0, or an "
            f"objective without {names[0]}), or add the labels."
        )
    packed = "position_ids" in (getattr(dataset, "column_names", None) or ())
    if packed and task_model.task.name == "causal_lm":
        with gathered_parameters(task_model.model.parameters()):
            check_packing(task_model.model)


def check_batch(
    sample: Mapping[str, Any] | None, task_model: TaskModel, teacher: Teacher | None, labels: bool
) -> None:
    """Refuse labels (if they are learned) and texts of a few collated examples that one of the
    models cannot read."""
    if sample is None:
        return
    items = task_model.items(sample)
    check_weights(items, wait=True)
    if labels:
        task_model.check_labels(sample, items, wait=True)
    check_inputs(task_model.who, task_model.model, sample)
    if isinstance(teacher, ModelTeacher) and type(teacher).__call__ is ModelTeacher.__call__:
        check_inputs(teacher.task_model.who, teacher.task_model.model, teacher.own(sample))
    _check_context(sample, task_model, teacher)


def _check_context(
    sample: Mapping[str, Any], task_model: TaskModel, teacher: Teacher | None
) -> None:
    """Raise if texts exceed the context of a causal language model."""
    if task_model.task.name != "causal_lm" or "input_ids" not in sample:
        return
    positions = sample.get("position_ids")
    length = sample["input_ids"].shape[-1] if positions is None else int(positions.max()) + 1
    check_context(task_model.config, length, "the student")
    if teacher is not None and teacher.config is not None:
        check_context(teacher.config, length, "the teacher")
    if positions is not None and isinstance(teacher, ModelTeacher):
        check_packing(teacher.model)
    heads = (task_model, *task_models_of(teacher))
    prompted = [one.who for one in heads if soft_prompt(one.given)]
    if prompted and positions is not None and int((positions == 0).sum()) > len(positions):
        raise ValueError(
            f"Expected {prompted[0]} to keep packed texts apart by their position_ids, which PEFT "
            "ignores for a model with a learned prompt. Give one text to a row (no packing), or "
            "learn another adapter (LoRA)."
        )


def check_targets(teacher: Signal, items: BatchItems) -> None:
    """Refuse a teacher whose outputs for the first batch are not finite; warn of one that has
    nothing to teach."""
    for name in items.members.keys() & teacher.members.keys():
        check_targets(teacher.members[name], items.members[name])
    logits, mask = teacher.logits, items.masks.get("items")
    if teacher.lazy_logits is not None and mask is not None:  # of a few items
        few = mask.flatten().nonzero().squeeze(-1)[:64]
        logits = teacher.lazy_logits.items(few).logits()
        mask = logits.new_ones(len(few), dtype=torch.bool)
    if logits is None or mask is None or teacher.kind not in ("softmax", "sigmoid"):
        return
    kept = logits.detach()[mask].double()
    if kept.isnan().any() or (kept == torch.inf).any():
        raise ValueError(
            "Expected finite logits of the teacher, got NaN or infinity on the first batch. Load "
            "it in float32 or bfloat16 (teacher_model_init_kwargs={'dtype': 'float32'}), and look "
            "at its weights and inputs."
        )
    if not len(kept) or (logits.shape[-1] < 2 and teacher.kind == "softmax"):
        return  # the logits of a single pair against its batch say nothing
    chances = kept.softmax(-1) if teacher.kind == "softmax" else kept.sigmoid()
    sure = chances.amax(-1) if teacher.kind == "softmax" else torch.maximum(chances, 1 - chances)
    if (sure > 1 - 1e-7).all():
        warnings.warn(
            "The teacher's outputs on the first batch are one-hot: it teaches no more than labels "
            "do. Raise the temperature (4 or more), use LogitMSE, or a teacher trained less long "
            "(or with label smoothing).",
            stacklevel=2,
        )
    elif len(kept) > 1 and (chances - chances[:1]).abs().max() < 1e-7:
        warnings.warn(
            "The teacher's outputs are the same for every example of the first batch: it teaches "
            "nothing. Check that it was fine-tuned for this task and sees the right inputs.",
            stacklevel=2,
        )
