"""The first examples of a trainer's data, read without moving a random state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from hf_distill.data.random_states import same_randomness
from hf_distill.data.streams import first_of
from hf_distill.models.batch_checks import collated
from hf_distill.models.modes import evaluating
from hf_distill.models.modules import has_config
from hf_distill.models.problems import settle
from hf_distill.models.signals import LOGITS
from hf_distill.models.task_model import TaskModel
from hf_distill.teachers import ModelTeacher
from hf_distill.training.idle import check_something_counts
from hf_distill.training.step import DistillationStep, StepBatch

LOOK = 8
"""Examples that the constructor reads."""


def first_batch(trainer: Any) -> dict[str, Any] | None:
    """A few collated examples, of the training data if there are any.

    A stream that can be read only once is replaced by one that gives the examples again.

    Args:
        trainer: A `DistillationTrainer`.
    """
    given: Any = trainer.eval_dataset if trainer.train_dataset is None else trainer.train_dataset
    sets = given if isinstance(given, dict) else {"": given}
    name, dataset = next(iter(sets.items()), ("", None))
    example = None
    if isinstance(dataset, IterableDataset):
        example, dataset = first_of(dataset)
        replaced = {**given, name: dataset} if isinstance(given, dict) else dataset
        if trainer.train_dataset is None:
            trainer.eval_dataset = replaced
        else:
            trainer.train_dataset = replaced
    return sample_of(trainer, dataset, example)


def sample_of(
    trainer: Any, dataset: Any, example: Any = None, start: int = 0
) -> dict[str, Any] | None:
    """A few collated examples of a data set, on the device, or None if it is empty.

    Args:
        trainer: A `DistillationTrainer`.
        dataset: The data set.
        example: The first example of a stream.
        start: Index of the first example of a data set that is not a stream.
    """
    if dataset is None or (has_length(dataset) and len(dataset) == 0):
        return None
    collate: Any = trainer.data_collator
    with same_randomness():
        if isinstance(dataset, datasets.Dataset):  # as in Trainer._get_dataloader
            dataset = trainer._remove_unused_columns(dataset)
        else:
            collate = trainer._get_collator_with_removed_columns(collate)
        if isinstance(dataset, IterableDataset):
            examples = [example]
        else:
            few = min(len(dataset) - start, trainer.args.per_device_train_batch_size, LOOK)
            examples = [dataset[start + index] for index in range(few)]
        with collated(examples):
            batch = trainer._prepare_inputs(dict(collate(examples)))
        task_model = trainer.step.task_model
        return dict(task_model.task.share(batch, task_model.model))


def check_labels_count(trainer: Any, first: dict[str, Any] | None) -> None:
    """Raise ValueError if no example of the training data counts for the objective."""
    data = trainer.train_dataset
    if data is None or first is None or isinstance(data, dict):
        return
    size = len(data) if has_length(data) and not isinstance(data, IterableDataset) else None

    def batches() -> Iterator[dict[str, Any]]:
        yield first
        few = min(trainer.args.per_device_train_batch_size, LOOK)
        for start in range(few, size or 0, few):
            batch = sample_of(trainer, data, start=start)
            assert batch is not None
            yield batch

    check_something_counts(trainer.step.objective, trainer.step.task_model, batches(), size)


def run_unseen_modules(step: DistillationStep, sample: dict[str, Any] | None) -> None:
    """Run models without a config once: their outputs and classes are known afterwards.

    Raises:
        ValueError: one logit for labels that are classes.
    """
    teacher: Any = step.teacher
    if sample is None:
        return
    student: nn.Module = step.task_model.given
    items = step.task_model.items(sample)
    members = getattr(teacher, "teachers", {"": teacher}).values()
    found = [getattr(member, "task_model", None) for member in members]
    with evaluating(student), torch.no_grad(), same_randomness():
        if step.task_model.unseen:
            own = send_to_device(sample, next(student.parameters()).device)
            step.task_model.ask(student, own, LOGITS, step.task_model.items(own))
        if any(isinstance(member, TaskModel) and member.unseen for member in found):
            step.ask_teacher(StepBatch(sample, items), LOGITS)
        for name, peer in getattr(teacher, "task_models", {}).items():
            if peer.unseen:
                peer.ask(teacher.models[name], sample, LOGITS, items)
    labels = items.labels
    whole = labels is not None and not labels.is_floating_point()
    plain = step.task_model.task.kind is None and not has_config(student)
    if whole and step.task_model.classes == 1 and plain:
        raise ValueError(
            f"Expected two logits or more of {step.task_model.who} for labels that are "
            "classes (integers), got one. For a regression give the labels as floats."
        )


def check_evaluation_data(trainer: Any) -> None:
    """Raise before training what a teacher with limited data (a cache) would raise at the first
    evaluation, and what labels of another shape would."""
    data, step = trainer.eval_dataset, trainer.step
    knows = step.teacher is None or isinstance(step.teacher, ModelTeacher)
    if knows and step.task_model.task.kind is not None:
        return
    for dataset in data.values() if isinstance(data, dict) else [data]:
        streams = isinstance(dataset, IterableDataset)  # which may not be read again
        batch = None if streams else sample_of(trainer, dataset)
        if batch is not None and batch.get("labels") is not None:
            settle(step.task_model, step.teacher, batch["labels"])
        if batch is not None and not knows:
            with torch.no_grad(), same_randomness():
                step.ask_teacher(StepBatch(batch, step.task_model.items(batch)))
