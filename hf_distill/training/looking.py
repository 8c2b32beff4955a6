"""The constructor's look at a few examples: what the data hold, and what modules answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.trainer_utils import has_length

from hf_distill.data.streams import first_of, same_randomness
from hf_distill.models.batch_checks import collated
from hf_distill.models.modules import has_config
from hf_distill.models.problems import settle
from hf_distill.models.signals import LOGITS, BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.objective import WeightedSum
from hf_distill.teachers import ModelTeacher, Teacher
from hf_distill.training.config import DistillationConfig
from hf_distill.training.idle import check_something_counts

LOOK = 8
"""Examples that the constructor looks at."""


class Looking(Trainer):
    """The part of the trainer that looks at the first examples, without moving a random state."""

    args: DistillationConfig
    teacher: Teacher | None
    training_objective: WeightedSum
    _task_model: TaskModel
    _first_batch: dict[str, Any] | None

    @property
    def _student(self) -> nn.Module:
        student = self.model
        if student is None:
            raise ValueError("Expected a model, got None. Pass model=… or model_init=….")
        return student

    def _teach(self, batch: Mapping[str, Any], needs: Needs, items: BatchItems) -> Signal | None:
        raise NotImplementedError

    def _look(self) -> None:
        """Keep a few collated examples, of the training data if there are any. A stream that can be
        read only once gets back what was taken from it."""
        given: Any = self.eval_dataset if self.train_dataset is None else self.train_dataset
        sets = given if isinstance(given, dict) else {"": given}
        name, dataset = next(iter(sets.items()), ("", None))
        example = None
        if isinstance(dataset, IterableDataset):
            example, dataset = first_of(dataset)
            replaced = {**given, name: dataset} if isinstance(given, dict) else dataset
            if self.train_dataset is None:
                self.eval_dataset = replaced
            else:
                self.train_dataset = replaced
        self._first_batch = self._sample(dataset, example)

    def _sample(self, dataset: Any, example: Any = None, start: int = 0) -> dict[str, Any] | None:
        """A few collated examples of a data set, from one of them on, or the one of a stream."""
        if dataset is None or (has_length(dataset) and len(dataset) == 0):
            return None
        collate: Any = self.data_collator
        with same_randomness():
            if isinstance(dataset, datasets.Dataset):  # as in Trainer._get_dataloader
                dataset = self._remove_unused_columns(dataset)
            else:
                collate = self._get_collator_with_removed_columns(collate)
            if isinstance(dataset, IterableDataset):
                examples = [example]
            else:
                few = min(len(dataset) - start, self.args.per_device_train_batch_size, LOOK)
                examples = [dataset[start + index] for index in range(few)]
            with collated(examples):
                batch = self._prepare_inputs(dict(collate(examples)))
            return dict(self._task_model.task.share(batch, self._task_model.model))

    def _look_for_labels(self) -> None:
        """See that something counts in the training data."""
        data, first = self.train_dataset, self._first_batch
        if data is None or first is None or isinstance(data, dict):
            return
        size = len(data) if has_length(data) and not isinstance(data, IterableDataset) else None

        def batches() -> Iterator[dict[str, Any]]:
            yield first
            few = min(self.args.per_device_train_batch_size, LOOK)
            for start in range(few, size or 0, few):
                batch = self._sample(data, start=start)
                assert batch is not None
                yield batch

        check_something_counts(self.training_objective, self._task_model, batches(), size)

    def _look_at_modules(self) -> None:
        """Let what has no config answer the first batch: its outputs and classes are then known."""
        teacher: Any = self.teacher
        sample = self._first_batch
        if sample is None:
            return
        items, training = self._task_model.items(sample), self._student.training
        members = getattr(teacher, "teachers", {"": teacher}).values()
        heads = [getattr(member, "task_model", None) for member in members]
        self._student.eval()
        with torch.no_grad(), same_randomness():
            if self._task_model.unseen:
                device = next(self._student.parameters()).device
                own = send_to_device(sample, device)
                self._task_model.ask(self._student, own, LOGITS, self._task_model.items(own))
            if any(isinstance(head, TaskModel) and head.unseen for head in heads):
                self._teach(sample, LOGITS, items)
            for name, head in getattr(teacher, "task_models", {}).items():  # peers
                if head.unseen:
                    head.ask(teacher.models[name], sample, LOGITS, items)
        self._student.train(training)
        classes, labels = self._task_model.classes, items.labels
        whole = labels is not None and not labels.is_floating_point()
        plain = self._task_model.task.kind is None and not has_config(self._student)
        if whole and classes == 1 and plain:
            raise ValueError(
                f"Expected two logits or more of {self._task_model.who} for labels that are "
                f"classes (integers), got one. For a regression give the labels as floats."
            )

    def _look_at_evaluation(self) -> None:
        """Let a teacher that does not know everything (a cache) say so before training, and not at
        the first evaluation; and labels of another shape too."""
        data: Any = self.eval_dataset
        knows = self.teacher is None or isinstance(self.teacher, ModelTeacher)
        if knows and self._task_model.task.kind is not None:
            return
        for dataset in data.values() if isinstance(data, dict) else [data]:
            streams = isinstance(dataset, IterableDataset)  # which may not be read again
            batch = None if streams else self._sample(dataset)
            if batch is not None and batch.get("labels") is not None:
                settle(self._task_model, self.teacher, batch["labels"])
            if batch is not None and not knows:
                with torch.no_grad(), same_randomness():
                    self._teach(batch, self.training_objective.needs, self._task_model.items(batch))
