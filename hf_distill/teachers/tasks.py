"""One teacher for each head of a multi-task student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_distill.models.batches import Batch, batch_of, rows_of
from hf_distill.models.signals import LOGITS, BatchItems, Needs, Signal, for_member, of_member
from hf_distill.teachers.group import TeacherGroup
from hf_distill.teachers.protocol import Teacher


class TaskTeachers(TeacherGroup):
    """One teacher for each head of a `MultiHead` student: ``teacher_model={"rating": …}``.

    Each reads the examples of its task (all, in a batch without a column of tasks) and gives the
    signal of the head of its name. It is any teacher: a model, an `Ensemble`, a cache.

    Args:
        teachers: The teacher of each head, by the head's name.
    """

    config = None

    def __init__(self, teachers: Mapping[str, Teacher]):
        self.teachers = dict(teachers)

    @property
    def provides(self) -> Needs:
        found = Needs()
        for name, teacher in self.teachers.items():
            found |= of_member(name, teacher.provides)
        return found

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        """The signals of all heads, as members, see `Teacher`."""
        members = {}
        for name, teacher in self.teachers.items():
            own = for_member(name, needs) & teacher.provides
            if own:
                members[name] = _ask(teacher, batch_of(batch, name), own, items.members[name])
        return Signal(kind="none", members=members)

    def tokens(self) -> Mapping[str, int] | None:
        return None

    def describe(self) -> dict[str, Any]:
        described = {name: teacher.describe() for name, teacher in self.teachers.items()}
        return {"architecture": "TaskTeachers", "members": described}


def _ask(teacher: Teacher, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
    """Ask a teacher about the examples of its task; the logits of the others are 0."""
    rows = items.masks["samples"]
    chosen = rows.nonzero().flatten()
    classes = getattr(teacher.config, "num_labels", None)
    only_logits = (needs & LOGITS) == needs
    if len(chosen) == len(rows) or classes is None or not only_logits:
        return teacher(batch, needs, items)
    if not len(chosen):
        shape = (*items.masks["items"].shape, classes)
        return Signal(torch.zeros(shape, device=rows.device), "none")
    kept = chosen.tolist()
    part, own = rows_of(batch, items, kept)
    lists = {k: v for k, v in batch.items() if isinstance(v, (list, tuple))}
    part |= {key: [value[row] for row in kept] for key, value in lists.items()}
    signal = teacher(part, needs, own)

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(len(rows), *values.shape[1:]).index_copy(0, chosen, values)

    logits = None if signal.logits is None else spread(signal.logits)
    sparse = signal.sparse
    if sparse is not None:
        found: dict[str, Any] = {
            name: spread(getattr(sparse, name)) for name in ("ids", "log_probs", "log_rest")
        }
        sparse = replace(sparse, **found)
    return replace(signal, logits=logits, sparse=sparse)
