"""Division of sums by counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_distill.models.signals import Unit
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
        return Counts({unit: count.to(_exact(count)) / parts for unit, count in self.items()})


def reduce(
    terms: Sequence[Term], counts: Mapping[Unit, Tensor], scale: float = 1.0, parts: int = 1
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Mask, sum and divide: the only place that does.

    Args:
        terms: The terms of one micro-batch.
        counts: How many of each unit the whole window holds, over all ranks where the gradient is
            averaged over ranks; or a mean over its micro-batches, where the loss is one.
        scale: The number of processes when ``counts`` are global, since gradients are averaged.
        parts: The number of micro-batches of which ``counts`` are the mean, whose losses will be
            averaged; components are added up.

    Returns:
        The loss, each component (its sum over the count of the window, unweighted, detached) and
        each component's sum (detached).
    """
    loss: Tensor | None = None
    components, sums = {}, {}
    for term in terms:
        total = _total(term)
        mean = total / _divisor(counts[term.unit], total)
        components[term.name], sums[term.name] = mean.detach() / parts, total.detach()
        part = mean * (term.weight * scale)
        loss = part if loss is None else loss + part
    if loss is None:
        raise ValueError("Expected an objective with at least one term, got none.")
    return loss, components, sums


def gradient_norms(
    terms: Sequence[Term], counts: Mapping[Unit, Tensor], parameters: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The norm of the gradient of each component with respect to some parameters, unweighted.

    Args:
        terms: The terms of one micro-batch.
        counts: The counts that divide them.
        parameters: The trainable parameters.
    """
    norms = {}
    for term in terms:
        total = _total(term)
        mean = total / _divisor(counts[term.unit], total)
        if not mean.requires_grad:
            continue
        with torch.autocast(mean.device.type, enabled=False):  # a backward runs outside of it
            gradients = torch.autograd.grad(mean, parameters, retain_graph=True, allow_unused=True)
        squares = [g.float().square().sum() for g in gradients if g is not None]
        norms[f"grad_norm_{term.name}"] = torch.stack(squares).sum().sqrt()
    return norms


def _exact(count: Tensor) -> torch.dtype:
    return torch.float32 if count.device.type == "mps" else torch.float64


def _total(term: Term) -> Tensor:
    values = term.values if term.mask is None else torch.where(term.mask, term.values, 0.0)
    return values.sum()


def _divisor(count: Tensor, total: Tensor) -> Tensor:
    """The divisor of a sum: 1 where there is nothing to count. Its dtype is none of the sum."""
    count = torch.where(count > 0, count, 1)
    return count.to(total.dtype) if count.is_floating_point() else count
