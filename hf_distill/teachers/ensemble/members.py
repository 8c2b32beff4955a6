"""Members of an ensemble: names, compatibility, order of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import nn

from hf_distill.models.class_order import ClassOrder, match_heads
from hf_distill.models.signals import MEMBER_NAME
from hf_distill.models.task_model import TaskModel
from hf_distill.models.tasks import Task
from hf_distill.teachers.collating import inputs_of
from hf_distill.teachers.model import ModelTeacher
from hf_distill.teachers.protocol import Teacher

Tokens = Mapping[str, int] | None
AVERAGES = ("probabilities", "logits")
PER_ITEM = ("confidence", "labels")
"""Settings with a weight per item."""


def named(teachers: Any) -> dict[str, Teacher]:
    """Every member as a `Teacher`, by name."""
    if not isinstance(teachers, Mapping):
        teachers = {f"teacher_{index}": teacher for index, teacher in enumerate(teachers)}
    if not teachers:
        raise ValueError("Expected one teacher or more, got none.")
    found: dict[str, Teacher] = {}
    for name, teacher in teachers.items():
        if not isinstance(name, str) or not MEMBER_NAME.fullmatch(name):
            raise ValueError(
                "Expected members' names to be a letter, then letters, digits, '-' and '_', got "
                f"{name!r}: they become part of names in logs."
            )
        if not isinstance(teacher, (Teacher, nn.Module)):
            raise ValueError(
                f"Expected the member {name!r} to be a model or a Teacher, got "
                f"{type(teacher).__name__}. Load it first: AutoModelFor….from_pretrained(…)."
            )
        found[name] = ModelTeacher(teacher) if isinstance(teacher, nn.Module) else teacher
    return found


def normalised(weights: Sequence[float] | None, names: Sequence[str]) -> tuple[float, ...]:
    """One weight per member, which add up to 1; equal ones by default."""
    given = [1.0] * len(names) if weights is None else [float(weight) for weight in weights]
    right = len(given) == len(names) and all(0 <= weight < math.inf for weight in given)
    if not right or not sum(given):
        raise ValueError(
            f"Expected {len(names)} weights of at least 0 (one for each of {list(names)}), not all "
            f"0, got {given}."
        )
    return tuple(weight / sum(given) for weight in given)


def check_settings(weights: Sequence[float] | str | None, average: str, route: str | None) -> None:
    """Raise on unknown or contradictory settings."""
    if average not in AVERAGES:
        raise ValueError(f"Expected an average of {list(AVERAGES)}, got {average!r}.")
    if isinstance(weights, str) and weights not in PER_ITEM:
        raise ValueError(
            f"Expected weights to be numbers, None or one of {list(PER_ITEM)}, got {weights!r}."
        )
    if route is not None and weights is not None:
        raise ValueError(
            "With route each example has one teacher, and weights would have no use. Leave one of "
            "the two out."
        )


def check_kind(kind: str, weights: Sequence[float] | str) -> None:
    """Raise on weights that are not defined for a head."""
    if kind == "regression" and weights == "confidence":
        raise ValueError(
            "A regression output has no entropy, so there is no confidence to weigh it by. Use "
            "weights='labels', numbers, or fit()."
        )
    if kind == "ctc" and weights == "labels":
        raise ValueError(
            "The labels of a CTC head belong to no single frame. Use weights='confidence' or "
            "numbers."
        )


def check_members(mixed: Mapping[str, Teacher], average: str, route: str | None) -> None:
    """Refuse members that cannot be averaged or routed."""
    known = {name: teacher.provides for name, teacher in mixed.items()}
    drawn = [name for name, own in known.items() if own.logits and not own.unsampled]
    if drawn and average == "logits":
        raise ValueError(
            f"The members {drawn} give draws of their distribution, whose logits are not known. "
            "Use average='probabilities'."
        )
    some = [name for name, own in known.items() if not own.full_vocabulary]
    if route is not None and 0 < len(some) < len(known):
        raise ValueError(
            f"The members {some} know some classes alone and the others all of them. With route "
            "either all or none must know all: cache full logits, or leave those out."
        )
    sharded = [name for name, teacher in mixed.items() if getattr(teacher, "_shard", False)]
    if route is not None and sharded:
        raise ValueError(
            f"The members {sharded} are sharded, and all processes must ask such a model equally "
            "often. Leave route or shard=True out."
        )


def task_of_members(teachers: Mapping[str, Teacher], task_model: TaskModel | None) -> Task | None:
    """The task that the members share, if it can be determined: that of the first model, or of a
    member with a `task`. ValueError for members whose classes are of different sorts."""
    if task_model is None:
        return next((t.task for t in teachers.values() if hasattr(t, "task")), None)
    for name, teacher in teachers.items():
        own = getattr(teacher, "task_model", None)
        if isinstance(own, TaskModel) and own.task.classes != task_model.task.classes:
            raise ValueError(
                f"Expected members with one sort of classes, got {own.task.name} for {name!r} "
                f"beside {task_model.task.name}."
            )
    return task_model.task


def orders_of(
    teachers: Mapping[str, Teacher], task: Task | None
) -> tuple[dict[str, ClassOrder], Tokens, int | None]:
    """The order that aligns each member's classes with those of the first; the tokens of the
    vocabulary, if one of them has it; the size of the vocabulary if the members differ in its
    padding, which is cut off. ValueError for a member that does not fit the first one.
    """
    first_name, first = next(iter(teachers.items()))
    known = {name: teacher.tokens() for name, teacher in teachers.items()}
    own = {name for name, teacher in teachers.items() if any(inputs_of(teacher))}
    shared = (t for name, t in known.items() if t is not None and name not in own)
    tokens = next(shared, None)
    orders: dict[str, ClassOrder] = dict.fromkeys(teachers)
    head = getattr(first, "task_model", None)
    accepts = head.accepts if isinstance(head, TaskModel) else {"input_ids"} if tokens else set()
    rows: Any = task or SimpleNamespace(name="", classes="labels", kind=None)
    model = getattr(head, "model", None)
    reference: Any = SimpleNamespace(config=first.config, task=rows, accepts=accepts, model=model)
    cut: int | None = None
    for name, teacher in teachers.items():
        unnamed = rows.classes == "labels" and (first.config is None or teacher.config is None)
        if name == first_name or unnamed:
            continue
        try:
            ours, orders[name] = match_heads(
                reference,
                teacher.config,
                tokens,
                known[name],
                same_inputs=not own & {first_name, name},
            )
        except ValueError as error:
            raise ValueError(
                f"The member {name!r} of the ensemble does not fit the first one, {first_name!r} "
                f"(called the student here): {error}"
            ) from error
        cut = ours if isinstance(ours, int) else cut
    return orders if cut is None else dict.fromkeys(teachers, cut), tokens, cut
