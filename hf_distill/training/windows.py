"""Counts of an accumulation window, and the divisor of a micro-batch's loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hf_distill.models.signals import Unit
from hf_distill.training.reduction import Counts


class AccumulationWindow:
    """Items of the micro-batches of one optimizer step, by unit.

    The loss of a window is a sum over its items divided by their number. In `training_step` it is
    computed as the mean over the micro-batches of their sums divided by the mean number, so that a
    loss that a subclass adds or returns instead may be the mean of its batch.

    Attributes:
        counts: Counts of the present window over all processes; None before the first.
        total: Counts of all windows of this training.
        in_step: Whether the trainer's own `training_step` runs.
        scaled: Value that a subclass gave to ``loss_is_scaled_for_ga``.
        stepped: Whether that method has run in this training.
        objective_ran: Whether the objective has been computed in this training.
    """

    def __init__(self) -> None:
        self.counts: Counts | None = None
        self.in_step = False
        self.scaled: bool | None = None
        self.clear()

    def clear(self) -> None:
        """Begin a new training."""
        self.total: dict[Unit, Tensor] = {}
        self.stepped = self.objective_ran = False

    def count(
        self,
        batches: Sequence[Mapping[Unit, Tensor]],
        device: torch.device,
        reduce: Callable[[Tensor], Tensor],
    ) -> Counts:
        """Begin a window.

        Args:
            batches: Counts of each micro-batch.
            device: Device of the result.
            reduce: Sums over all processes.

        Returns:
            The counts of the window, each of shape ``()``.
        """
        units = sorted(batches[0])
        total = torch.stack([torch.stack([c[u] for u in units]).to(device) for c in batches]).sum(0)
        self.counts = Counts(zip(units, reduce(total).unbind(), strict=True))
        self.total = {u: n + self.total.get(u, 0) for u, n in self.counts.items()}
        return self.counts

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Mark one `training_step`."""
        self.in_step = self.stepped = True
        try:
            yield
        finally:
            self.in_step = False

    @property
    def is_scaled(self) -> bool:
        """True if a loss is divided by the counts of the whole window, rather than by their mean
        over its micro-batches."""
        return not self.in_step if self.scaled is None else self.scaled

    def divisor(
        self, given: Mapping[Unit, Tensor] | None, scaled: bool, micro_batches: int
    ) -> tuple[Mapping[Unit, Tensor] | None, int]:
        """The divisor of a micro-batch's loss, and the further one of its components.

        Args:
            given: Counts that the caller of `compute_loss` passed; None: those of the window.
                Without them a loss is a mean in `training_step` or out of it, as in `transformers`.
            scaled: Value of ``loss_is_scaled_for_ga``.
            micro_batches: Number of micro-batches of the window.
        """
        summed = scaled if self.in_step else given is not None
        parts = 1 if summed else micro_batches
        if given is None and self.counts is not None:
            given = self.counts.over(parts)
        return given, parts
