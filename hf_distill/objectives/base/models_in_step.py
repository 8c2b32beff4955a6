"""Access to both models for objectives that need extra forward passes (perturbed inputs)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from hf_distill.models.batches import Batch
from hf_distill.models.input_space import EMBEDDINGS, InputSpace, embedded, input_space
from hf_distill.models.signals import Needs, Signal
from hf_distill.models.task_model import TaskModel

Ask = Callable[[Batch, Needs], Signal]
Made = TypeVar("Made")


@dataclass(frozen=True)
class ModelsInStep:
    """Both models and the current batch, for objectives that need further forward passes.

    Attributes:
        batch: The batch, on the device, with all its columns.
        head: The student.
        ask_student: Runs the student on another batch of the same items, with its graph, in its
            current mode; its classes in the order of the signals.
        ask_teacher: Runs the teacher, which is cut off from the graph (``traced`` apart); None:
            there is no teacher.
        processor: The student's processor or tokenizer.
        memory: Results that the objectives of a sum share; see `once`.
    """

    batch: Batch
    task_model: TaskModel
    ask_student: Ask
    ask_teacher: Ask | None = None
    processor: Any = None
    memory: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def space(self) -> InputSpace:
        """The input that can be perturbed."""
        return input_space(self.task_model, self.processor)

    def perturbed(self, x: Tensor) -> Batch:
        """The batch with another input; for text the tokens stay in the batch."""
        return {**self.batch, self.space.key: x}

    def show(self, batch: Batch, needs: Needs) -> Signal:
        """The student's signal on a perturbed batch.

        The batch is the result of `perturbed`, or another batch of the same items.
        """
        x = batch.get(EMBEDDINGS)
        if x is None or batch.get("input_ids") is None:
            return self.ask_student(batch, needs)
        with embedded(self.task_model, x):  # the model finds its padding and positions by the ids
            return self.ask_student({k: v for k, v in batch.items() if k != EMBEDDINGS}, needs)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The result of ``make``, computed once per key.

        Equal keys stand for one thing.
        """
        if key not in self.memory:
            self.memory[key] = make()
        made: Made = self.memory[key]
        return made

    def generator(self) -> torch.Generator | None:
        """Generator of noise: in training torch's global state, as for dropout, which checkpoints
        hold; in an evaluation the same numbers for every batch, without a change of state."""
        return None if self.task_model.model.training else torch.Generator().manual_seed(0)
