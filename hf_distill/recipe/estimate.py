"""Estimates before a training: steps, memory, disk and time."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers import TrainingArguments

from hf_distill.hub.comparison import weight
from hf_distill.recipe.stages import Stage

STATES = {
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
    "adagrad": 1,
    "rmsprop": 1,
    "sgd": 0,
}
"""Optimizer -> tensors of the size of a weight that it keeps; besides these a step count of 4
bytes for each weight tensor."""
ESTIMATED = (
    "Memory is an estimate, of one process: weights, gradients and optimizer states are counted. "
    "Activations, the objective and the libraries themselves come on top."
)


@dataclass(frozen=True)
class Memory:
    """Bytes that a model holds, and its training.

    Attributes:
        weights: The learner's.
        gradients: Of the weights that are trained.
        optimizer: Its states; None: unknown for this optimizer.
        teacher: The teacher's weights; 0: there is none in memory.
    """

    weights: int
    gradients: int = 0
    optimizer: int | None = 0
    teacher: int = 0

    @classmethod
    def untrained(cls, model: nn.Module) -> Memory:
        """Its weights alone."""
        return cls(weight_bytes(model.parameters()))

    @property
    def total(self) -> int:
        """All that is known."""
        return self.weights + self.gradients + self.teacher + (self.optimizer or 0)

    def __str__(self) -> str:
        states = "unknown" if self.optimizer is None else weight(self.optimizer)
        teacher = f", teacher {weight(self.teacher)}" if self.teacher else ""
        return (
            f"{weight(self.total)} (weights {weight(self.weights)}, "
            f"gradients {weight(self.gradients)}, optimizer {states}{teacher})"
        )


def memory(model: nn.Module, args: TrainingArguments, teacher: int) -> Memory:
    """Memory for training this model, next to ``teacher`` bytes of the teacher's weights."""
    states = STATES.get(str(getattr(args.optim, "value", args.optim)))
    return Memory(
        weights=weight_bytes(model.parameters()),
        gradients=weight_bytes(p for p in model.parameters() if p.requires_grad),
        optimizer=None if states is None else state_bytes(model, states),
        teacher=teacher,
    )


def weight_bytes(weights: Iterable[Tensor]) -> int:
    """The bytes of some weights; their gradients take as many."""
    return sum(weight.numel() * weight.element_size() for weight in weights)


def state_bytes(model: nn.Module, states: int) -> int:
    """Bytes of an optimizer's states."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return states * weight_bytes(trained) + 4 * len(trained) * bool(states)


def steps(examples: int, args: TrainingArguments, processes: int = 1) -> int:
    """Optimizer steps, as `transformers.Trainer` counts them."""
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * _steps_of_epoch(examples, args, processes))


def _steps_of_epoch(examples: int, args: TrainingArguments, processes: int) -> int:
    batch = args.train_batch_size * processes
    batches = examples // batch if args.dataloader_drop_last else -(-examples // batch)
    return max(1, -(-batches // args.gradient_accumulation_steps))


def disk(needs: Memory, examples: int, args: TrainingArguments) -> int:
    """The most bytes on disk during a training: its checkpoints, of weights and optimizer states.

    A new checkpoint is written before an old one is deleted.
    """
    limit, saves = args.save_total_limit, _saves(examples, args)
    if limit is not None:
        best = args.load_best_model_at_end and limit == 1  # the best and the last
        saves = min(saves, limit + best + 1)
    return max(needs.weights, saves * (needs.weights + (needs.optimizer or 0)))


def _saves(examples: int, args: TrainingArguments) -> int:
    total, strategy = steps(examples, args), str(getattr(args.save_strategy, "value", ""))
    if strategy == "steps":
        every = args.save_steps if args.save_steps >= 1 else math.ceil(args.save_steps * total)
        return total // int(every) + bool(total % int(every))
    if strategy == "no":
        return 0
    return -(-total // _steps_of_epoch(examples, args, 1))


# ---- time ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """Seconds for a step, evaluations included, and which run they were measured in."""

    seconds: float
    source: str


def rate_of(stages: Sequence[Stage], role: str, root: Path) -> Rate | None:
    """Measured speed of the first finished stage among these, with any settings.

    Args:
        stages: The stage itself, then others of its role.
        role: The role, for an earlier report.
        root: The recipe's output folder.
    """
    for stage in stages:
        found = stage.record().get("results")
        if found and found.get("steps"):
            same = "" if stage.results() is not None else " with other settings"
            return Rate(found["seconds"] / found["steps"], f"{stage.name}{same}")
    return _reported(role, root / "report.json")


def _reported(role: str, path: Path) -> Rate | None:
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["models"][role]
        seconds, count = model["train_seconds"], model["train_steps"]
    except (OSError, ValueError, KeyError):
        return None
    mean = seconds["mean"] if isinstance(seconds, dict) else seconds / model.get("members", 1)
    return Rate(mean / count, "an earlier report.json") if count else None


@dataclass(frozen=True)
class Outlook:
    """Estimate of a remaining training.

    Attributes:
        steps: Optimizer steps; early stopping may end it before.
        memory: See `Memory`.
        disk: The most bytes on disk while it lasts.
        rate: How long a step takes; None: not known.
    """

    steps: int
    memory: Memory
    disk: int
    rate: Rate | None

    @property
    def seconds(self) -> float | None:
        return None if self.rate is None else self.steps * self.rate.seconds

    def __str__(self) -> str:
        time = "time unknown until the first run"
        if self.rate is not None:
            time = (
                f"about {duration(self.steps * self.rate.seconds)} ({self.rate.seconds:.3g} s a "
                f"step in {self.rate.source})"
            )
        return (
            f"{self.steps:,} steps, about {weight(self.memory.total)} of memory, up to "
            f"{weight(self.disk)} on disk, {time}"
        )


def together_of(outlooks: Collection[Outlook]) -> str:
    """A line on all trainings that are left to do, one after another."""
    known = [outlook.seconds for outlook in outlooks if outlook.seconds is not None]
    unknown = len(outlooks) - len(known)
    time = f"about {duration(sum(known))}" if known else "time unknown until the first run"
    if known and unknown:
        time += f", without {unknown} of which no step was measured"
    room = sum(one.memory.weights for one in outlooks) + max(one.disk for one in outlooks)
    return (
        f"to do: {len(outlooks)} trainings, {sum(one.steps for one in outlooks):,} steps, about "
        f"{weight(max(one.memory.total for one in outlooks))} of memory at most, {weight(room)} on "
        f"disk, {time}"
    )


# ---- in words ------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
