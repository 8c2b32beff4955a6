"""The base model of an adapted student as the teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from hf_distill.models.batches import Batch
from hf_distill.models.modes import evaluating
from hf_distill.models.redirect import redirected_forward
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel, describe_model
from hf_distill.models.tasks import Task
from hf_distill.teachers.cache.keys import model_fingerprint
from hf_distill.teachers.protocol import Teacher


class BaseModelTeacher(Teacher):
    """The base model below a student's adapters: no second model in memory.

    For each batch the adapters are switched off and the model runs in eval mode without gradients;
    afterwards everything is restored. Other modules that PEFT trains (``modules_to_save``, such as
    a new classifier) are replaced by their original weights too.

    Args:
        student: The `PeftModel` that is trained.
        tokenizer: Its tokenizer, if it is to be compared with the trainer's.
        task: Its task, if its class does not determine it.

    Raises:
        ValueError: a model without adapters.
    """

    provides: Needs

    def __init__(self, student: nn.Module, tokenizer: Any = None, task: Task | None = None):
        if not isinstance(student, PeftModel):
            raise ValueError(
                f"Expected a student with adapters (PeftModel), got {type(student).__name__}. Put "
                "them on first (peft.get_peft_model), and pass that model to the trainer as well."
            )
        self.student = student
        self.task_model = TaskModel(student, task, role="teacher")
        self.config = self.task_model.config
        self.provides = self.task_model.provides
        self._tokenizer = tokenizer
        self._autocast: Any = contextlib.nullcontext

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        def ask() -> Signal:
            return self.task_model.ask(self.task_model.model, batch, needs, items)[1]

        with torch.no_grad(), self._off(), self._autocast():
            # within its forward, where FSDP2 and ZeRO-3 gather shards
            return redirected_forward(self.student, self.student, ask).detach()

    @contextlib.contextmanager
    def _off(self) -> Iterator[None]:
        """Context with the model in eval mode and without its adapters, restored afterwards.

        PEFT's own context makes every adapter trainable at its end.
        """
        trained = [p for p in self.student.parameters() if p.requires_grad]
        try:
            with evaluating(self.student), self.student.disable_adapter():
                yield
        finally:
            self.student.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)

    @property
    def fingerprint(self) -> str:
        """Hash of the weights below the adapters, which are not trained."""
        trained = {name for name, p in self.student.named_parameters() if p.requires_grad}
        state = self.student.state_dict()
        return model_fingerprint({name: state[name] for name in state if name not in trained})

    def columns(self) -> set[str]:
        return self.task_model.columns

    def tokens(self) -> Mapping[str, int] | None:
        return None if self._tokenizer is None else self._tokenizer.get_vocab()

    def place(self, accelerator: Accelerator) -> None:
        self._autocast = accelerator.autocast

    def describe(self) -> dict[str, Any]:
        return {**describe_model(self.task_model.model), "adapters": "off"}
