"""What a head gives on one batch, without a trainer and with one."""

from pathlib import Path
from typing import Any

import torch
from tiny_models import CASES, collate, quiet_arguments
from torch import nn

from hf_distill import DistillationTrainer, Needs, Objective, Signal, WeightedSum
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.objective import Context
from hf_distill.training.reduction import reduce


def signal(model: Any, batch: Any, needs: Needs | None = None) -> Signal:
    """What the trainer reads from a model."""
    needs = Needs(logits=True) if needs is None else needs
    task_model = TaskModel(model)
    batch = task_model.task.share(batch, task_model.model)
    return task_model.ask(model, batch, needs, task_model.items(batch))[1]


@torch.no_grad()
def components(
    objective: Objective | WeightedSum, student: Any, batch: Any, teacher: Any = None
) -> dict[str, float]:
    """The components of an objective on one batch, with seeded projections."""
    objective = 1.0 * objective if isinstance(objective, Objective) else objective
    task_model = TaskModel(student)
    items = task_model.items(task_model.task.share(batch, task_model.model))
    ours = signal(student, batch, objective.student_needs)
    theirs = None if teacher is None else signal(teacher, batch, objective.needs)
    torch.manual_seed(0)
    built = nn.ModuleDict() if theirs is None else objective.build(ours, theirs)
    found = reduce(objective.terms(ours, theirs, items, Context(built)), items.counts())[1]
    return {name: value.item() for name, value in found.items()}


def value(objective: Objective, student: Any, batch: Any, teacher: Any = None) -> float:
    return sum(components(objective, student, batch, teacher).values())


def trainer(folder: Path, head: str, objective: Any, **options: Any) -> Any:
    case = CASES[head]
    student, teacher = case.models()
    given = {
        "model": student,
        "teacher_model": teacher,
        "args": quiet_arguments(folder, per_device_eval_batch_size=2, max_steps=2),
        "train_dataset": case.data(4),
        "eval_dataset": case.data(4),
        "data_collator": collate,
    }
    return DistillationTrainer(**{**given, "objective": objective, **options})
