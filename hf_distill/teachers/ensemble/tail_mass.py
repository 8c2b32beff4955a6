"""Distributions of which some classes are known, and of the others only their mass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_distill.losses.numerics import compute_dtype
from hf_distill.models.signals import SparseProbs


def spread_tail(sparse: SparseProbs, reference: Tensor) -> Tensor:
    """Log-probabilities ``(..., C)`` with the tail mass of sparse ones spread over all other
    classes, in proportion to a reference ``(..., C)``, log q: p(c) = rest * q(c) / q(all others).
    -inf without mass, as for all classes that were not sampled."""
    dtype = compute_dtype(sparse.log_probs, reference)
    reference = reference.to(dtype)
    used = sparse.log_probs > -torch.inf
    # unused slots write into one class more, which is then dropped
    ids = sparse.ids.masked_fill(~used, sparse.classes)
    wide = (*reference.shape[:-1], sparse.classes + 1)
    own = reference.new_full(wide, -torch.inf).scatter(-1, ids, sparse.log_probs.to(dtype))
    own = own[..., :-1]
    listed = own > -torch.inf
    outside = reference.masked_fill(listed, -torch.inf)
    mass = outside.logsumexp(-1)
    # without reference mass there: evenly
    even = torch.where(listed, -torch.inf, 0.0).to(dtype)
    outside = torch.where(mass[..., None] > -torch.inf, outside, even)
    share = sparse.log_rest.to(dtype) - outside.logsumexp(-1).clamp(min=torch.finfo(dtype).min)
    return torch.where(listed, own, outside + share[..., None])


@dataclass(frozen=True)
class ClassUnion:
    """Several sparse distributions on the classes that any of them lists, and all others.

    Attributes:
        ids: ``(..., S)``, each class once per item; 0 in unused slots.
        used: ``(..., S)``, false for slots without a class.
        others: ``(...)``, how many classes there are besides, in floating point.
        classes: How many there are in all.
        members: ``(..., S + 1)`` each: the log-probabilities of these classes, -inf in unused
            slots, and last the log of the mass of the others.
    """

    ids: Tensor
    used: Tensor
    others: Tensor
    classes: int
    members: tuple[Tensor, ...]

    def slots(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The slot of each label, the last one for those not listed; and which are listed."""
        found = (self.ids == labels[..., None]) & self.used
        slot = found.to(torch.uint8).argmax(-1)
        return torch.where(found.any(-1), slot, self.ids.shape[-1]), found.any(-1)


def class_union(members: Sequence[SparseProbs]) -> ClassUnion:
    """Bring sparse distributions of the same items onto one list of classes; their k may differ. A
    member's rest is spread evenly over the classes that it does not list itself."""
    classes = members[0].classes
    marked = [m.ids.masked_fill(m.log_probs == -torch.inf, classes) for m in members]
    ids = torch.cat(marked, -1).sort(-1).values
    used = ids < classes
    used[..., 1:] &= ids[..., 1:] != ids[..., :-1]
    ids = ids.masked_fill(~used, classes)
    others = (classes - used.sum(-1)).to(members[0].log_rest.dtype)
    found = []
    for member, own in zip(members, marked, strict=True):
        own, order = own.sort(-1)
        log_probs = member.log_probs.gather(-1, order)
        slot = torch.searchsorted(own, ids).clamp(max=own.shape[-1] - 1)
        here = (own.gather(-1, slot) == ids) & used
        unlisted = classes - (own < classes).sum(-1)
        each = member.log_rest - unlisted.clamp(min=1).log()
        values = torch.where(here, log_probs.gather(-1, slot), each[..., None])
        rest = each + others.log()
        found.append(torch.cat([values.masked_fill(~used, -torch.inf), rest[..., None]], -1))
    return ClassUnion(ids.masked_fill(~used, 0), used, others, classes, tuple(found))


def stacked_rows(parts: Sequence[tuple[Tensor, SparseProbs]], axis: int = 0) -> SparseProbs:
    """Join sparse distributions of parts of a batch, given with their row indices ``(b,)``: all
    indices together are 0 … B-1, each once. ``axis`` is the dimension of the rows."""
    width = max(sparse.ids.shape[-1] for _, sparse in parts)
    order = torch.cat([rows for rows, _ in parts]).argsort()

    def whole(tensors: Sequence[Tensor], fill: float) -> Tensor:
        padded = [F.pad(t, (0, width - t.shape[-1]), value=fill) for t in tensors]
        return torch.cat(padded, axis).index_select(axis, order)

    rests = torch.cat([sparse.log_rest for _, sparse in parts], axis)
    return replace(
        parts[0][1],
        ids=whole([sparse.ids for _, sparse in parts], 0),
        log_probs=whole([sparse.log_probs for _, sparse in parts], -torch.inf),
        log_rest=rests.index_select(axis, order),
        unsampled=all(sparse.unsampled for _, sparse in parts),
    )
