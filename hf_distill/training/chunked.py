"""The objective from a few items at a time: the logits of a whole batch never exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_distill.losses.fused import LazyLogits, linear_loss
from hf_distill.models.signals import BatchItems, Signal, SparseProbs, Unit
from hf_distill.objectives.base.objective import Context, Term, WeightedSum
from hf_distill.training.reduction import reduce

Reduced = tuple[list[Term], Tensor, dict[str, Tensor], dict[str, Tensor]]
"""The terms (their values are sums), the loss, the components and their sums, see `reduce`."""
Observer = Callable[[Signal, Signal | None, BatchItems], None]


@dataclass(frozen=True)
class StepInputs:
    """Outputs of both models for a micro-batch, with lazy logits of the student."""

    student: Signal
    teacher: Signal | None
    items: BatchItems
    context: Context


def reduce_chunked(
    goal: WeightedSum,
    said: StepInputs,
    counts: Mapping[Unit, Tensor],
    scale: float = 1.0,
    watch: Observer | None = None,
    parts: int = 1,
) -> Reduced:
    """Like `reduce` of all terms, with objectives on logits computed in chunks.

    All parts of the objective that read logits must be ``is_itemwise``; `watch` is called with
    every piece and its logits.
    """
    names, items = goal.is_itemwise, said.items
    whole = goal.terms(
        said.student, said.teacher, items, said.context, lambda name: name not in names
    )
    linear = said.student.lazy_logits
    assert linear is not None
    counted = items.masks["items"]
    counted = counted | items.masks.get("labels", counted)
    index = counted.flatten().nonzero().squeeze(-1)  # waits for the device, once
    chosen = CountedItems(said, index)
    found: dict[str, Term] = {}
    components: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}

    def loss(student: Tensor, teacher: Tensor | None, rows: slice) -> Tensor:
        ours, theirs, own = chosen.piece(student, teacher, rows)
        if watch is not None:
            with torch.no_grad():
                watch(ours, theirs, own)
        terms = goal.terms(ours, theirs, own, said.context, lambda name: name in names)
        value, means, totals = reduce(terms, counts, scale, parts)
        for term in terms:
            name = term.name
            components[name] = components.get(name, 0.0) + means[name]
            sums[name] = sums.get(name, 0.0) + totals[name]
            found[name] = dataclasses.replace(term, values=sums[name], mask=None)
        return value

    total = linear_loss(linear.items(index), chosen.lazy_logits, loss)
    if not whole:
        return list(found.values()), total, components, sums
    value, means, totals = reduce(whole, counts, scale, parts)
    return [*found.values(), *whole], total + value, {**components, **means}, {**sums, **totals}


class CountedItems:
    """The items of a batch that count, in one row."""

    def __init__(self, said: StepInputs, index: Tensor):
        self.said, self.index = said, index
        theirs = None if said.teacher is None else said.teacher.lazy_logits
        self.lazy_logits: LazyLogits | None = None if theirs is None else theirs.items(index)

    def piece(
        self, student: Tensor, teacher: Tensor | None, rows: slice
    ) -> tuple[Signal, Signal | None, BatchItems]:
        """Both signals and the items of some rows."""
        items, theirs, index = self.said.items, self.said.teacher, self.index[rows]
        masks = {
            n: items.masks[n].flatten()[index] for n in ("items", "labels") if n in items.masks
        }
        labels, weights = (
            None if values is None else values.flatten()[index]
            for values in (items.labels, items.weights)
        )
        if theirs is not None:
            theirs = _flat(theirs, index) if teacher is None else Signal(teacher, theirs.kind)
        return Signal(student, self.said.student.kind), theirs, BatchItems(masks, labels, weights)


def _flat(signal: Signal, index: Tensor) -> Signal:
    """Logits, or lazy logits, of some items as one sequence."""
    sparse = signal.sparse
    return Signal(
        None if signal.logits is None else signal.logits.flatten(0, -2)[index],
        signal.kind,
        sparse=None if sparse is None else _sparse(sparse, index),
        members={name: _flat(member, index) for name, member in signal.members.items()},
    )


def _sparse(sparse: SparseProbs, index: Tensor) -> SparseProbs:
    return dataclasses.replace(
        sparse,
        ids=sparse.ids.flatten(0, -2)[index],
        log_probs=sparse.log_probs.flatten(0, -2)[index],
        log_rest=sparse.log_rest.flatten()[index],
    )
