"""Teachers made of the student: the base model of its adapters, the average of its weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from hf_distill.models.batches import Batch
from hf_distill.models.modes import evaluating
from hf_distill.models.redirect import redirected_forward
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel, describe_model
from hf_distill.models.tasks import Task
from hf_distill.teachers.cache.keys import model_fingerprint
from hf_distill.teachers.model import ModelTeacher
from hf_distill.teachers.protocol import Teacher


class BaseModelTeacher(Teacher):
    """The base model below a student's adapters: no second model in memory.

    For each batch the adapters are switched off and the model runs in eval mode without gradients;
    afterwards everything is restored. Other modules that PEFT trains (``modules_to_save``, such as
    a new classifier) are replaced by their original weights too.

    Args:
        student: The `PeftModel` that is trained; ValueError for a model without adapters.
        tokenizer: Its tokenizer, if it is to be compared with the trainer's.
        task: Its task, if its class does not determine it.
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
        """Context with the model in eval mode and without its adapters, all of which PEFT's own
        context makes trainable at its end."""
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


class EMATeacher(TrainerCallback):
    """Moving average of the student's weights (mean teacher, Tarvainen and Valpola 2017, arXiv
    1703.01780).

    After every ``every``-th optimizer step ``past = decay * past + (1 - decay) * student``; buffers
    are copied. With ``decay=0`` it is the student of at most ``every`` steps ago. It starts as a
    copy of the student at the start of a run, and is saved in checkpoints. It is in eval mode, in
    float32 if the student is in half precision (in which the small updates underflow), with a copy
    on every process.

    Args:
        student: The model that is trained, with its adapter if it has one (`PeftModel`).
        decay: From 0 (a snapshot) to below 1.
        every: Optimizer steps between updates.
        warmup: Faster updates at first: ``min(decay, (1 + t) / (10 + t))`` at its t-th update.
        task: Its task, if its class does not determine it.

    Raises:
        ValueError: a decay or interval out of its range; when training starts, another model.
    """

    def __init__(
        self,
        student: nn.Module,
        decay: float = 0.999,
        every: int = 1,
        warmup: bool = False,
        task: Task | None = None,
    ):
        if not 0 <= decay < 1:
            raise ValueError(f"Expected a decay of at least 0 and below 1, got {decay}.")
        if every < 1:
            raise ValueError(f"Expected to follow after 1 step or more, got every={every}.")
        self.decay, self.every, self.warmup = decay, every, warmup
        self.model = copy.deepcopy(student)
        if decay and any(p.dtype in (torch.float16, torch.bfloat16) for p in student.parameters()):
            self.model.float()
        self._teacher = ModelTeacher(self.model, task=task)
        self.task_model = self._teacher.task_model
        self.config, self.provides = self._teacher.config, self._teacher.provides

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        return self._teacher(batch, needs, items)

    def columns(self) -> set[str]:
        return self._teacher.columns()

    def tokens(self) -> Mapping[str, int] | None:
        return self._teacher.tokens()

    def place(self, accelerator: Accelerator) -> None:
        self._teacher.place(accelerator)

    def tensors(self) -> Mapping[str, Tensor]:
        return self.model.state_dict()

    def describe(self) -> dict[str, Any]:
        past = {"decay": self.decay, "every": self.every, "warmup": self.warmup}
        return {**self._teacher.describe(), "past_of_the_student": past}

    # ---- as a callback ---------------------------------------------------------------------------

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **others: Any
    ) -> None:
        """Check the student's weights; a new run starts from them, a resumed one continues."""
        self._check(model)
        if state.global_step == 0:
            self._follow(model, 0.0)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **others: Any
    ) -> None:
        """Update the average."""
        if state.global_step % self.every == 0:
            done = state.global_step // self.every
            early = (1 + done) / (10 + done) if self.warmup else 1.0
            self._follow(model, min(self.decay, early))

    @torch.no_grad()
    def _follow(self, student: nn.Module, decay: float) -> None:
        # by name: in training the student may have further parameters
        new = dict(student.named_parameters())
        pairs = [(p, new[name]) for name, p in self.model.named_parameters()]
        moving = [(p, q.to(p)) for p, q in pairs if decay and q.requires_grad]
        if moving:
            old, latest = zip(*moving, strict=True)
            get_ema_multi_avg_fn(decay)(list(old), list(latest), 0)
        for p, q in pairs:
            if not (decay and q.requires_grad):
                p.copy_(q)
        buffers = dict(student.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])

    def _check(self, student: nn.Module) -> None:
        theirs = {name: tuple(p.shape) for name, p in student.named_parameters()}
        ours = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        missing = [name for name, shape in ours.items() if theirs.get(name) != shape]
        sharded = any(hasattr(p, "to_local") for p in student.parameters())
        if missing or sharded:
            raise ValueError(
                "Expected the student that EMATeacher was made of, with whole weights on every "
                f"process; of its weights {missing[:4]} are missing or have another shape. Make it "
                "of the very model that is trained, after its adapter if it gets one "
                "(get_peft_model instead of peft_config), and train without FSDP and ZeRO-3."
            )
