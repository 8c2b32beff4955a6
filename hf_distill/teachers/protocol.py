"""The seam between the trainer and whatever teaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from accelerate import Accelerator
from torch import Tensor

from hf_distill.models.batches import Batch
from hf_distill.models.signals import BatchItems, Needs, Signal


@runtime_checkable
class Teacher(Protocol):
    """Whatever says, for a batch, what a teacher says.

    One that is a `transformers.TrainerCallback` too follows the training: the trainer calls it.

    Attributes:
        config: The configuration that names its labels and vocabulary; None if there is none.
    """

    config: Any

    @property
    def provides(self) -> Needs:
        """The outputs that it can give; a plain attribute will do."""
        ...

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        """The signal for a batch, detached, in the teacher's own order of classes."""
        ...

    def columns(self) -> set[str]:
        """The batch keys it reads, so that they are not dropped from the data."""
        ...

    def tokens(self) -> Mapping[str, int] | None:
        """Its tokenizer's vocabulary, token -> id, if known."""
        ...

    def place(self, accelerator: Accelerator) -> None:
        """Move to the accelerator's device; called again when there is a new accelerator."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint must hold for a resumed run to have the same teacher.

        Empty for a frozen one; otherwise the tensors themselves, into which they are loaded back.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Facts for logs and model cards: name, revision, parameters, …"""
        ...
