"""Protocol of teachers, with default bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from accelerate import Accelerator
from torch import Tensor

from hf_distill.models.batches import Batch
from hf_distill.models.signals import BatchItems, Needs, Signal


@runtime_checkable
class Teacher(Protocol):
    """Source of the teacher's outputs for a batch.

    A subclass needs `provides` and `__call__`; everything else has a default body. Classes that
    have all of the methods need not be subclasses. A teacher that is also a
    `transformers.TrainerCallback` receives the trainer's events.

    Attributes:
        config: The configuration with its labels and vocabulary; None if there is none.
    """

    config: Any = None

    if TYPE_CHECKING:

        @property
        def provides(self) -> Needs:
            """The outputs that it can provide; may be a plain attribute."""
            ...
    else:  # a property here would forbid subclasses to set the attribute
        provides: Needs

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        """The signal for a batch, detached, in the teacher's own order of classes."""
        ...

    def columns(self) -> set[str]:
        """The batch keys that it reads besides the student's, so that they are kept in the data."""
        return set()

    def tokens(self) -> Mapping[str, int] | None:
        """Its tokenizer's vocabulary, token -> id, if known."""
        return None

    def place(self, accelerator: Accelerator) -> None:
        """Move to the accelerator's device; called again when there is a new accelerator."""
        return  # a body, so that a subclass without this method is not abstract for type checkers

    def tensors(self) -> Mapping[str, Tensor]:
        """State that a checkpoint must contain for a resumed run.

        Empty for a frozen teacher; otherwise the tensors themselves, into which saved values are
        loaded.
        """
        return {}

    def describe(self) -> dict[str, Any]:
        """Facts for logs and model cards: name, revision, parameters, …"""
        return {"name": None, "architecture": type(self).__name__}
