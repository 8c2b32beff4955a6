"""Estimates before a training: steps, memory, disk and time."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from transformers import TrainingArguments

from hf_distill.hub.comparison import weight
from hf_distill.recipe.stages import Stage, read_record

STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "adagrad": 1, "rmsprop": 1, "sgd": 0}
"""Optimizer -> tensors of the size of a weight that it keeps, beside a step count of 4 bytes."""
_UNKNOWN = "time unknown until the first run"
ESTIMATED = (
    "Memory is an estimate, of one process: weights, gradients and optimizer states are counted. "
    "Activations, the objective and the libraries themselves come on top."
)


@dataclass(frozen=True)
class Memory:
    """Bytes of a training: weights, gradients, states of the optimizer (None: unknown), and the
    weights of a teacher in memory."""

    weights: int
    gradients: int = 0
    optimizer: int | None = 0
    teacher: int = 0

    @property
    def total(self) -> int:
        """The sum of all known parts."""
        return self.weights + self.gradients + self.teacher + (self.optimizer or 0)

    def __str__(self) -> str:
        states = "unknown" if self.optimizer is None else weight(self.optimizer)
        teacher = f", teacher {weight(self.teacher)}" if self.teacher else ""
        return (
            f"{weight(self.total)} (weights {weight(self.weights)}, "
            f"gradients {weight(self.gradients)}, optimizer {states}{teacher})"
        )


def memory(model: nn.Module, args: TrainingArguments | None = None, teacher: int = 0) -> Memory:
    """Memory of a training next to ``teacher`` bytes of the teacher's weights; without arguments
    that of the model's weights alone."""
    weights = weight_bytes(model.parameters())
    if args is None:
        return Memory(weights)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = weight_bytes(trained)
    states = STATES.get(str(getattr(args.optim, "value", args.optim)))
    optimizer = None if states is None else states * gradients + 4 * len(trained) * bool(states)
    return Memory(weights, gradients, optimizer, teacher)


def weight_bytes(weights: Iterable[Tensor]) -> int:
    """The bytes of some weights; their gradients take as many."""
    return sum(weight.numel() * weight.element_size() for weight in weights)


def steps(examples: int, args: TrainingArguments, processes: int = 1) -> int:
    """Optimizer steps, as `transformers.Trainer` counts them."""
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * steps_of_epoch(examples, args, processes))


def steps_of_epoch(examples: int, args: TrainingArguments, processes: int) -> int:
    """Optimizer steps of one pass over the examples."""
    batches = examples / (args.train_batch_size * processes)
    whole = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    return max(1, math.ceil(whole / args.gradient_accumulation_steps))


def examples_seen(count: int, examples: int, args: TrainingArguments, processes: int = 1) -> int:
    """Examples in the batches of ``count`` optimizer steps; the last batch of an epoch may be
    smaller.

    >>> examples_seen(3, 10, TrainingArguments(per_device_train_batch_size=4, use_cpu=True))
    10
    """
    batch = args.train_batch_size * processes * args.gradient_accumulation_steps
    epochs, more = divmod(count, steps_of_epoch(examples, args, processes))
    whole = min(examples, batch * steps_of_epoch(examples, args, processes))
    return epochs * whole + min(whole, more * batch)


def disk(needs: Memory, examples: int, args: TrainingArguments) -> int:
    """The most bytes of checkpoints on disk; a new one is written before an old one is deleted."""
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
    return -(-total // steps_of_epoch(examples, args, 1))


class Rate(NamedTuple):
    """Seconds of a step, evaluations included, and the run in which they were measured."""

    seconds: float
    source: str


def rate_of(stages: Sequence[Stage], role: str, root: Path) -> Rate | None:
    """Measured speed of the first finished stage among these, with any settings, or that of the
    role in an earlier report."""
    for stage in stages:
        found = read_record(stage.folder).get("results")
        if found and found.get("steps"):
            same = "" if stage.results() is not None else " with other settings"
            return Rate(found["seconds"] / found["steps"], f"{stage.name}{same}")
    try:
        report = json.loads((root / "report.json").read_text(encoding="utf-8"))
        model = report["models"][role]
        seconds, count = model["train_seconds"], model["train_steps"]
    except (OSError, ValueError, KeyError):
        return None
    mean = seconds["mean"] if isinstance(seconds, dict) else seconds / model.get("members", 1)
    return Rate(mean / count, "an earlier report.json") if count else None


@dataclass(frozen=True)
class Outlook:
    """Estimate of a training: steps, memory, most bytes on disk, and the rate if it is known."""

    steps: int
    memory: Memory
    disk: int
    rate: Rate | None

    @property
    def seconds(self) -> float | None:
        return None if self.rate is None else self.steps * self.rate.seconds

    def __str__(self) -> str:
        time = _UNKNOWN
        if self.seconds is not None and self.rate is not None:
            of_step = f"{self.rate.seconds:.3g} s a step in {self.rate.source}"
            time = f"about {duration(self.seconds)} ({of_step})"
        return (
            f"{self.steps:,} steps, about {weight(self.memory.total)} of memory, up to "
            f"{weight(self.disk)} on disk, {time}"
        )


def together_of(outlooks: Collection[Outlook]) -> str:
    """A line on all trainings that are left to do, one after another."""
    known = [one.seconds for one in outlooks if one.seconds is not None]
    time = f"about {duration(sum(known))}" if known else _UNKNOWN
    if known and len(known) < len(outlooks):
        time += f", without {len(outlooks) - len(known)} of which no step was measured"
    room = sum(one.memory.weights for one in outlooks) + max(one.disk for one in outlooks)
    return (
        f"to do: {len(outlooks)} trainings, {sum(one.steps for one in outlooks):,} steps, about "
        f"{weight(max(one.memory.total for one in outlooks))} of memory at most, {weight(room)} on "
        f"disk, {time}"
    )


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
