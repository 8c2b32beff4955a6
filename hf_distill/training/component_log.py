"""Running sums of loss components, for the log and for checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hf_distill.models.batch_checks import finite_mark
from hf_distill.models.signals import Signal

SUMS = "log-{:05d}.safetensors"
"""File of a checkpoint, one for each process: the sums since the last log entry."""
_COMPONENT = "component."


class LossSums(NamedTuple):
    """Sums of the training loss that `transformers.Trainer` keeps, and loses when it resumes.

    Attributes:
        since_log: Sum since the last log entry, shape ``()``.
        total: Sum of all steps before that entry.
        last_logged: Step of that entry.
    """

    since_log: Tensor
    total: float
    last_logged: int

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint, by name."""
        counts = {"total": self.total, "last_logged": self.last_logged}
        return {"loss": self.since_log, **{name: _number(n) for name, n in counts.items()}}

    @classmethod
    def load(cls, state: Mapping[str, Tensor]) -> LossSums:
        """The sums of `state`."""
        return cls(state["loss"], state["total"].item(), int(state["last_logged"]))


class ExtraCounts(Protocol):
    """Further counts since the last log entry, logged and saved with the components."""

    def figures(self) -> dict[str, float]:
        """Entries for the log, over all processes."""

    def adjust(self, means: dict[str, float]) -> dict[str, float]:
        """Correct the means of components."""

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint, by name."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`; other names in it are ignored."""

    def clear(self) -> None:
        """Start anew, after a log entry or with a new training."""


class ComponentLog:
    """Running sums of loss components since the last log entry.

    An entry holds the mean of every component per optimizer step, unweighted, under its name; with
    ``log_gradient_norms`` ``grad_norm_forward_kl``; of what changes during training
    ``forward_kl_weight`` and ``forward_kl_temperature``, as the last step used them.

    Args:
        reduce: Sum or mean of a tensor over all processes, as the losses are reduced.
        teacher: Class name of the teacher, for error messages.

    Attributes:
        scheduled: Weights and temperatures of the last step.
        gradient_norms: Gradient norms of components since the last entry.
        extra: Further counts that are logged and saved with the components.
        resumed: Whether the losses before a checkpoint were loaded with it.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor], teacher: str):
        self.scheduled: dict[str, float | Tensor] = {}
        self.gradient_norms: dict[str, Tensor] = {}
        self.extra: ExtraCounts | None = None
        self._reduce = reduce
        self._teacher = teacher
        self.clear()

    def clear(self) -> None:
        """Forget all sums: a new training begins."""
        self._sums: dict[str, Tensor] = {}
        self._first_step = 0
        self._mark: Tensor | None = None  # NaN: an output of the teacher was not finite
        self._losses: LossSums | None = None
        self.gradient_norms = {}
        self.resumed = False
        if self.extra is not None:
            self.extra.clear()

    def add(
        self, step: int, components: Mapping[str, Tensor], teacher: Signal | None = None
    ) -> None:
        """Add the components of one micro-batch.

        Args:
            step: Optimizer steps before this one.
            components: Name -> value, shape ``()``, divided by the count of the window.
            teacher: Output of the teacher on the micro-batch.

        Raises:
            FloatingPointError: a component of the first step is not finite.
        """
        mark = None if teacher is None else finite_mark(teacher)
        if mark is not None:
            self._mark = mark if self._mark is None else self._mark + mark
        if not self._sums:
            self._first_step = step
        elif step == 1:  # report at once what is broken from the start
            self.mean(step)
        for name, value in components.items():
            kept = self._sums.get(name)
            self._sums[name] = value if kept is None else kept + value

    def mean(self, step: int) -> dict[str, float]:
        """Mean of each component per optimizer step since the last log entry, over all processes.

        Args:
            step: Optimizer steps so far.

        Raises:
            FloatingPointError: a component is not finite.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        kept = [self._sums[name].double() for name in names]
        mark = kept[0].new_zeros(()) if self._mark is None else self._mark.to(kept[0])
        values = torch.stack([*kept, mark]) / max(1, step - self._first_step)
        *found, marked = self._reduce(values).tolist()
        means = dict(zip(names, found, strict=True))
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            said = f"The loss is not finite at step {step}: {bad} of {means}. "
            raise FloatingPointError(said + self._remedy(math.isfinite(marked)))
        return means if self.extra is None else self.extra.adjust(means)

    def _remedy(self, teacher_is_finite: bool) -> str:
        if teacher_is_finite:
            return (
                "The last checkpoint is from before. Lower the learning rate or raise "
                "warmup_steps, use bf16 instead of fp16, and look for NaN in the inputs; "
                "a CTC target with too few frames is left out with "
                "student.config.ctc_zero_infinity = True."
            )
        return (
            f"The teacher ({self._teacher}) gave NaN or infinity since the last log. "
            "The last checkpoint is from before. Load the teacher in float32 or bfloat16 "
            "(teacher_model_init_kwargs={'dtype': 'float32'}), and look at its weights and at "
            "the batches' inputs; of one on a server, at its log."
        )

    def figures(self, step: int) -> dict[str, float]:
        """Values of a log entry, after which the sums start anew.

        Args:
            step: Optimizer steps so far.

        Raises:
            FloatingPointError: a component is not finite.
        """
        found = {} if self.extra is None else self.extra.figures()
        found |= self.mean(step)
        changing = self.gradient_norms | self.scheduled
        found |= {name: float(value) for name, value in changing.items()}
        self._sums, self._mark, self.gradient_norms = {}, None, {}
        if self.extra is not None:
            self.extra.clear()
        return found

    def state(self, losses: LossSums, processes: int) -> dict[str, Tensor]:
        """Tensors of a checkpoint, by name.

        Args:
            losses: Sums of `transformers.Trainer`.
            processes: Number of processes, each with sums of its own.
        """
        counts = {"components_from": self._first_step, "processes": processes}
        components = {f"{_COMPONENT}{name}": value for name, value in self._sums.items()}
        extra = {} if self.extra is None else self.extra.state()
        numbers = {name: _number(n) for name, n in counts.items()}
        return {**losses.state(), **numbers, **components, **extra}

    def load(self, state: Mapping[str, Tensor], processes: int, device: torch.device) -> None:
        """Continue from `state`, unless it is of another number of processes or empty."""
        if int(state.get("processes", 0)) != processes:
            return
        self._first_step = int(state["components_from"])
        self._sums = {
            name.removeprefix(_COMPONENT): value.to(device)
            for name, value in state.items()
            if name.startswith(_COMPONENT)
        }
        if self.extra is not None:
            self.extra.load(state)
        self._losses, self.resumed = LossSums.load(state), True

    def resumed_losses(self) -> LossSums | None:
        """The loaded sums of the training loss, the first time; then None."""
        found, self._losses = self._losses, None
        return found


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
