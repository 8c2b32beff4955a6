"""Several teachers as one: their columns, devices, states and events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback

from hf_distill.teachers.protocol import Teacher


class TeacherGroup(TrainerCallback):
    """Base of teachers that consist of others; members may be callbacks.

    Attributes:
        teachers: The members by name.
    """

    teachers: Mapping[str, Teacher]

    def columns(self) -> set[str]:
        return set().union(*(teacher.columns() for teacher in self.teachers.values()))

    def place(self, accelerator: Accelerator) -> None:
        for teacher in self.teachers.values():
            teacher.place(accelerator)

    def tensors(self) -> Mapping[str, Tensor]:
        return {
            f"{name}.{key}": tensor
            for name, teacher in self.teachers.items()
            for key, tensor in teacher.tensors().items()
        }


def _passed_on(event: str) -> Callable[..., Any]:
    def tell(self: TeacherGroup, args: Any, state: Any, control: Any, **others: Any) -> None:
        for teacher in self.teachers.values():
            if isinstance(teacher, TrainerCallback):
                getattr(teacher, event)(args, state, control, **others)

    return tell


for _event in [name for name in vars(TrainerCallback) if name.startswith("on_")]:
    setattr(TeacherGroup, _event, _passed_on(_event))
