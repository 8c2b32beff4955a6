"""Sums over items: their counts in an accumulation window, division by these, running sums."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_distill.models.signals import BatchItems, Signal, Unit
from hf_distill.objectives.base.objective import Term


class Counts(dict[Unit, Tensor]):
    """Counts by unit. A loss that is divided by all of them is divided by the number of labels, as
    with the one number that `transformers` counts."""

    def __rtruediv__(self, total: Tensor) -> Tensor:
        return total / self["labels" if "labels" in self else "items"]

    def over(self, parts: int) -> Counts:
        """Share of each micro-batch."""
        if parts == 1:
            return self
        exact = {"mps": torch.float32}
        return Counts(
            {u: n.to(exact.get(n.device.type, torch.float64)) / parts for u, n in self.items()}
        )


def reduce(
    terms: Sequence[Term], counts: Mapping[Unit, Tensor], scale: float = 1.0, parts: int = 1
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Mask, sum and divide: the only place that does.

    Args:
        terms: The terms of one micro-batch.
        counts: Number of items of each unit in the whole window, over all ranks; or their mean
            over its micro-batches, where the losses of these are averaged.
        scale: Number of processes when ``counts`` are global, since gradients are averaged.
        parts: Number of micro-batches of which ``counts`` are the mean; components are added up.

    Returns:
        The loss, each component (its sum over the count of the window, unweighted, detached) and
        each component's sum (detached).
    """
    loss: Tensor | None = None
    components, sums = {}, {}
    for term in terms:
        total, mean = _total_and_mean(term, counts)
        components[term.name], sums[term.name] = mean.detach() / parts, total.detach()
        part = mean * (term.weight * scale)
        loss = part if loss is None else loss + part
    if loss is None:
        raise ValueError("Expected an objective with at least one term, got none.")
    return loss, components, sums


def gradient_norms(
    terms: Sequence[Term], counts: Mapping[Unit, Tensor], parameters: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The norm of each component's gradient with respect to the parameters, unweighted."""
    norms = {}
    for term in terms:
        _, mean = _total_and_mean(term, counts)
        if not mean.requires_grad:
            continue
        with torch.autocast(mean.device.type, enabled=False):  # a backward runs outside of it
            gradients = torch.autograd.grad(mean, parameters, retain_graph=True, allow_unused=True)
        squares = [g.float().square().sum() for g in gradients if g is not None]
        norms[f"grad_norm_{term.name}"] = torch.stack(squares).sum().sqrt()
    return norms


def _total_and_mean(term: Term, counts: Mapping[Unit, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of a term, and the sum divided by its count, or by 1 where there is nothing to count."""
    total = (term.values if term.mask is None else term.values.where(term.mask, 0.0)).sum()
    count = torch.where(counts[term.unit] > 0, counts[term.unit], 1)
    return total, total / (count.to(total.dtype) if count.is_floating_point() else count)


@dataclass(frozen=True)
class StepResult:
    """The outcome of one micro-batch.

    Attributes:
        loss: The scalar to minimise.
        components: Each component's sum over the counts, unweighted, detached.
        sums: Each component's sum, detached.
        terms: The values per item that the loss is made of, with their units and weights.
        items: The items of the micro-batch.
        outputs: The student's outputs, as its forward returned them.
        teacher: The teacher's outputs.
        scheduled: Weights and temperatures that change during training, as this step used them.
        gradient_norms: The norm of each component's gradient, where it was requested.
    """

    loss: Tensor
    components: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]
    terms: list[Term]
    items: BatchItems
    outputs: Any = None
    teacher: Signal | None = None
    scheduled: Mapping[str, float | Tensor] = field(default_factory=dict)
    gradient_norms: Mapping[str, Tensor] = field(default_factory=dict)


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


class RunningSums:
    """Sums of the loss components since the last log entry.

    Attributes:
        values: Each component's sum, shape ``()``.
        first_step: Optimizer steps before the first of them.
        mark: NaN if an output of the teacher was not finite, otherwise 0; None: there was none.
        gradient_norms: Norms of the components' gradients, as computed last.
        scheduled: Weights and temperatures that change during training, as the last step used them.
    """

    def __init__(self) -> None:
        self.first_step = 0
        self.scheduled: Mapping[str, float | Tensor] = {}
        self.clear()

    def clear(self) -> None:
        """Start anew after a log entry."""
        self.values: dict[str, Tensor] = {}
        self.mark: Tensor | None = None
        self.gradient_norms: Mapping[str, Tensor] = {}

    def add(self, step: int, result: StepResult) -> None:
        """Add a micro-batch, ``step`` optimizer steps after the start."""
        self.scheduled = result.scheduled
        self.gradient_norms = result.gradient_norms or self.gradient_norms
        mark = None if result.teacher is None else _finite_mark(result.teacher)
        if mark is not None:
            self.mark = mark if self.mark is None else self.mark + mark
        if not self.values:
            self.first_step = step
        for name, value in result.components.items():
            kept = self.values.get(name)
            self.values[name] = value if kept is None else kept + value


def _finite_mark(signal: Signal) -> Tensor | None:
    """0, or NaN if a teacher's signal has NaN or infinity in its logits, its top classes (whose
    unused slots are -inf), its last layers or modules; None if it has none of these. Computed
    without waiting for its device, in float32 at least."""
    values = [*signal.modules.values()]
    values += [own[-1] for own in (*signal.hidden_states.values(), *signal.attentions.values())]
    values += [] if signal.logits is None else [signal.logits]
    values += [] if signal.lazy_logits is None else [*signal.lazy_logits.hidden]
    if signal.sparse is not None:
        values.append(signal.sparse.log_probs.nan_to_num(nan=torch.nan, neginf=0.0))
    sums = [v.sum(dtype=torch.promote_types(v.dtype, torch.float32)) * 0 for v in values]
    return torch.stack([each.float() for each in sums]).sum() if sums else None
