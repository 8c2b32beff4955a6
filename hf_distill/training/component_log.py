"""Means of loss components, for the log and for checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_distill.training.reduction import RunningSums

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

    @classmethod
    def of(cls, trainer: Any) -> LossSums:
        """The present sums of a trainer."""
        return cls(trainer._tr_loss, trainer._total_loss_scalar, trainer._globalstep_last_logged)

    def restore(self, trainer: Any) -> None:
        """Let a trainer continue from these sums, before its first step."""
        trainer._tr_loss += self.since_log.to(trainer._tr_loss.device)
        trainer._total_loss_scalar = self.total
        trainer._globalstep_last_logged = self.last_logged


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
    """Means of loss components since the last log entry.

    An entry holds the mean of every component per optimizer step, unweighted, under its name; with
    ``log_gradient_norms`` ``grad_norm_forward_kl``; of what changes during training
    ``forward_kl_weight`` and ``forward_kl_temperature``, as the last step used them.

    Args:
        reduce: Sum or mean of a tensor over all processes, as the losses are reduced.
        teacher: Class name of the teacher, for error messages.

    Attributes:
        sums: Their sums.
        extra: Further counts that are logged and saved with the components.
        resumed: Whether the losses before a checkpoint were loaded with it.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor], teacher: str):
        self.extra: ExtraCounts | None = None
        self._reduce = reduce
        self._teacher = teacher
        self.clear()

    def clear(self) -> None:
        """Forget all sums: a new training begins."""
        self.sums = RunningSums()
        self._losses: LossSums | None = None
        self.resumed = False
        if self.extra is not None:
            self.extra.clear()

    def mean(self, step: int) -> dict[str, float]:
        """Mean of each component per optimizer step since the last log entry, over all processes.

        Args:
            step: Optimizer steps so far.

        Raises:
            FloatingPointError: a component is not finite.
        """
        if not self.sums.values:
            return {}
        names = sorted(self.sums.values)
        kept = [self.sums.values[name].double() for name in names]
        mark = kept[0].new_zeros(()) if self.sums.mark is None else self.sums.mark.to(kept[0])
        values = torch.stack([*kept, mark]) / max(1, step - self.sums.first_step)
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
        changing = {**self.sums.gradient_norms, **self.sums.scheduled}
        found |= {name: float(value) for name, value in changing.items()}
        self.sums.clear()
        if self.extra is not None:
            self.extra.clear()
        return found

    def save(self, folder: Path, losses: LossSums, accelerator: Accelerator) -> None:
        """Write the sums of this process to a checkpoint.

        Args:
            folder: The checkpoint.
            losses: Sums of `transformers.Trainer`.
            accelerator: Tells the processes apart.
        """
        numbers = {
            "total": losses.total,
            "last_logged": losses.last_logged,
            "components_from": self.sums.first_step,
            "processes": accelerator.num_processes,
        }
        held = {name: torch.tensor(n, dtype=torch.float64) for name, n in numbers.items()}
        held |= {"loss": losses.since_log} | ({} if self.extra is None else self.extra.state())
        held |= {f"{_COMPONENT}{name}": value for name, value in self.sums.values.items()}
        held = {name: value.detach().cpu().contiguous() for name, value in held.items()}
        save_file(held, folder / SUMS.format(accelerator.process_index))

    def load(self, folder: Path, accelerator: Accelerator) -> None:
        """Continue from `save`; anew, if there is no file or it is of another number of processes.

        Args:
            folder: The checkpoint.
            accelerator: Tells the processes apart.
        """
        path = folder / SUMS.format(accelerator.process_index)
        state = load_file(path) if path.is_file() else {}
        if int(state.get("processes", 0)) != accelerator.num_processes:
            return
        self.sums.first_step = int(state["components_from"])
        self.sums.values = {
            name.removeprefix(_COMPONENT): value.to(accelerator.device)
            for name, value in state.items()
            if name.startswith(_COMPONENT)
        }
        if self.extra is not None:
            self.extra.load(state)
        last_logged, self.resumed = int(state["last_logged"]), True
        self._losses = LossSums(state["loss"], state["total"].item(), last_logged)

    def resumed_losses(self) -> LossSums | None:
        """The loaded sums of the training loss, the first time; then None."""
        found, self._losses = self._losses, None
        return found
