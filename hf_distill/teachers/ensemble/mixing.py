"""Averages of several teachers' distributions: pure functions, with the classes last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_distill.losses.numerics import compute_dtype
from hf_distill.models.signals import BatchItems, Signal, SparseProbs
from hf_distill.teachers.ensemble.tail_mass import ClassUnion, class_union, spread_tail


def softened_log_probs(logits: Tensor, kind: str, temperature: float) -> Tensor:
    """Log-probabilities at a temperature T > 0 of logits ``(..., C)``, in float32 at least.

    Returns:
        ``(..., C)``, log softmax(logits / T); for ``sigmoid`` ``(..., C, 2)``, the logs of
        sigmoid(logits / T) and of what it leaves to 1, for every class.
    """
    softened = logits.to(compute_dtype(logits)) / temperature
    if kind == "sigmoid":
        softened = torch.stack([softened, torch.zeros_like(softened)], dim=-1)
    return softened.log_softmax(-1)


def entropy(log_probs: Tensor, kind: str, others: Tensor | None = None) -> Tensor:
    """-sum p log p in nats, ``(...)``; for ``sigmoid`` summed over the classes.

    ``log_probs`` are from `softened_log_probs`; or, with ``others``, ``(..., S + 1)``: the last one
    is the mass of as many classes, ``(...)``, that share it equally.
    """
    each = log_probs
    if others is not None:
        last = log_probs[..., -1] - others.clamp(min=1).log()
        each = torch.cat([log_probs[..., :-1], last[..., None]], -1)
    terms = torch.where(log_probs > -torch.inf, log_probs.exp() * each, 0.0)  # 0 log 0 = 0
    return -terms.sum((-2, -1) if kind == "sigmoid" else -1)


def label_likelihood(log_probs: Tensor, kind: str, labels: Tensor, mask: Tensor) -> Tensor:
    """The log-likelihood of the labels, ``(...)``; 0 for items that ``mask`` marks as without one.

    ``log_probs`` are from `softened_log_probs`; for ``regression`` the outputs themselves, as means
    of normal distributions of variance 1 (up to its constant). ``labels`` have the shape of the
    items; ``(..., C)`` for multi-label and regression heads, where NaN (and, multi-label, below 0)
    marks a missing one.
    """
    if kind in ("softmax", "ctc"):
        index = labels.masked_fill(~mask, 0)[..., None]
        values = log_probs.gather(-1, index).squeeze(-1)
    elif kind == "sigmoid":
        labels = labels[..., None] if labels.dim() < log_probs.dim() - 1 else labels
        missing = torch.isnan(labels) | (labels < 0)
        right = labels.masked_fill(missing, 0.0).to(log_probs.dtype)
        both = right * log_probs[..., 0] + (1 - right) * log_probs[..., 1]
        values = both.masked_fill(missing, 0.0).sum(-1)
    else:
        error = log_probs - labels.to(log_probs.dtype).view(log_probs.shape)
        values = -0.5 * error.nan_to_num(0.0).square().sum(-1)
    return torch.where(mask, values, 0.0)


class RunningMean:
    """Weighted mean sum_i softmax(scores)_i x_i, computed incrementally; with ``logs`` the x are
    given as logs, and so is their mean."""

    def __init__(self, logs: bool):
        self.logs = logs
        self.value: Tensor | None = None
        self._total: Tensor | None = None

    def add(self, value: Tensor, score: Tensor) -> None:
        """Add a value ``(..., C)`` or ``(..., C, 2)`` with the log of its weight, up to a constant
        that all share: a number, or ``(...)``."""
        if self.value is None or self._total is None:
            self.value, self._total = value, score
            return
        total = torch.logaddexp(self._total, score)
        before, share = (
            s.view(*s.shape, *[1] * (value.dim() - s.dim())) if s.dim() else s
            for s in (self._total - total, score - total)
        )
        if self.logs:
            self.value = torch.logaddexp(self.value + before, value + share)
        else:
            self.value = self.value * before.exp() + value * share.exp()
        self._total = total


@dataclass(frozen=True)
class MemberProbs:
    """Probabilities of one member, on classes common to all members.

    Attributes:
        name: The member.
        kind: Form of its logits, see `Signal`.
        temperature: T of the probabilities.
        log_probs: ``(..., C)``, see `softened_log_probs`; ``(..., S + 1)`` on a union of classes;
            the outputs themselves for ``regression``.
        logits: Its logits, if there are any.
        joined: The union of classes, if no member has all.
        unsampled: False for samples.
    """

    name: str
    kind: str
    temperature: float
    log_probs: Tensor
    logits: Tensor | None = None
    joined: ClassUnion | None = None
    unsampled: bool = True

    def values(self, average: str) -> Tensor:
        """Values to average; logits are clipped at a quarter of the lowest number."""
        if average == "probabilities" or self.kind == "regression":
            return self.log_probs
        if self.joined is not None:
            others = self.log_probs[..., -1] - self.joined.others.clamp(min=1).log()
            values = torch.cat([self.log_probs[..., :-1], others[..., None]], -1)
        elif self.logits is None:
            values = self.log_probs * self.temperature
        else:
            values = self.logits.to(compute_dtype(self.logits))
        return values.clamp(min=torch.finfo(values.dtype).min / 4)

    def entropy(self) -> Tensor:
        """Entropy ``(...)`` in nats."""
        others = None if self.joined is None else self.joined.others
        return entropy(self.log_probs, self.kind, others)

    def likelihood(self, items: BatchItems) -> Tensor:
        """The log-likelihood of the labels, ``(...)`` and above -1e4; 0 where there is none."""
        mask = items.masks.get("labels")
        if items.labels is None or mask is None:
            return torch.zeros((), dtype=self.log_probs.dtype)
        labels, log_probs = items.labels, self.log_probs
        if self.kind == "softmax":
            labels = items.class_ids("A weight by the likelihood of the label")
        if self.joined is not None:
            labels, listed = self.joined.slots(labels)
            shared = torch.where(listed, 0.0, self.joined.others.clamp(min=1).log())
            found = label_likelihood(log_probs, self.kind, labels, mask) - shared
            found = torch.where(mask, found, 0.0)
        else:
            found = label_likelihood(log_probs, self.kind, labels, mask)
        return found.clamp(min=-1e4)  # members that all give probability 0 get equal weights


def member_probs(
    signals: Iterable[tuple[str, Signal]], temperature: float, partial: bool
) -> Iterator[MemberProbs]:
    """Convert the members' signals, in the order of classes of the first, to the same classes, one
    after another; those of some classes alone (if ``partial``) come last. ValueError for a member
    of another kind or shape, or at another temperature.
    """
    reference, known = RunningMean(logs=True), None
    waiting: dict[str, SparseProbs] = {}
    for name, signal in signals:
        if signal.sparse is not None and partial:
            waiting[name] = signal.sparse
            shape = (*signal.sparse.ids.shape[:-1], signal.sparse.classes)
            if signal.sparse.temperature != temperature:
                raise ValueError(
                    f"Expected the probabilities of the member {name!r} at the ensemble's "
                    f"temperature {temperature:g}, got them at {signal.sparse.temperature:g}. "
                    f"Those of some classes alone cannot be softened later: "
                    f"Ensemble(…, temperature={signal.sparse.temperature:g})."
                )
        elif signal.logits is None:
            raise ValueError(f"Expected logits of the member {name!r}, which gave none.")
        else:
            shape = tuple(signal.logits.shape)
        known = (name, signal.kind, shape) if known is None else known
        if known[1:] != (signal.kind, shape):
            raise ValueError(
                f"Expected all members of an ensemble to say the same kind of thing, got "
                f"{known[1]} {known[2]} of {known[0]!r} and {signal.kind} {shape} of {name!r}."
            )
        if name not in waiting:
            probs = _dense(name, signal.logits, signal.kind, temperature)
            if partial:
                reference.add(probs.log_probs, torch.zeros((), dtype=torch.float64))
            yield probs
    if waiting:
        kind = "softmax" if known is None else known[1]
        yield from _sparse(waiting, kind, temperature, reference.value)


def _dense(name: str, logits: Any, kind: str, temperature: float) -> MemberProbs:
    if kind == "regression":
        values = logits.to(compute_dtype(logits))
    else:
        values = softened_log_probs(logits, kind, temperature)
    return MemberProbs(name, kind, temperature, values, logits)


def _sparse(
    waiting: dict[str, SparseProbs], kind: str, temperature: float, reference: Any
) -> Iterator[MemberProbs]:
    joined = class_union(list(waiting.values())) if reference is None else None
    for index, (name, sparse) in enumerate(waiting.items()):
        own = spread_tail(sparse, reference) if joined is None else joined.members[index]
        yield MemberProbs(name, kind, temperature, own, None, joined, sparse.unsampled)


def mean_of(
    members: Iterable[MemberProbs], average: str, score: Callable[[MemberProbs], Tensor]
) -> Signal:
    """Weighted mean of the outputs of the `member_probs`: logits, which at the members' temperature
    have the mean of their probabilities; sparse probabilities if no member has all classes, or some
    are samples (then not exact). ``score`` is the log of a member's weight, up to a constant: a
    number, or one per item.
    """
    mean: RunningMean | None = None
    last, exact = None, True
    for probs in members:
        if mean is None:
            mean = RunningMean(average == "probabilities" and probs.kind != "regression")
        mean.add(probs.values(average), score(probs))
        last, exact = probs, exact and probs.unsampled
    if mean is None or mean.value is None or last is None:
        return Signal()
    if last.joined is not None:
        return Signal(kind=last.kind, sparse=_joined(mean.value, last, last.joined, average, exact))
    if not exact:  # an estimate: neither to be softened later nor to be taken for probabilities
        return Signal(kind=last.kind, sparse=_listed(mean.value, last.temperature))
    if not mean.logs:
        return Signal(mean.value, last.kind)
    sigmoid = last.kind == "sigmoid"
    odds = mean.value[..., 0] - mean.value[..., 1] if sigmoid else mean.value
    return Signal(odds * last.temperature, last.kind)


def _listed(mean: Tensor, temperature: float) -> SparseProbs:
    ids = torch.arange(mean.shape[-1], device=mean.device).expand(mean.shape)
    rest = torch.full_like(mean[..., 0], -torch.inf)
    return SparseProbs(ids, mean, rest, mean.shape[-1], temperature, unsampled=False)


def _joined(
    mean: Tensor, probs: MemberProbs, joined: ClassUnion, average: str, exact: bool
) -> SparseProbs:
    if average == "logits":
        rest = mean[..., -1] + joined.others.log()
        listed = mean[..., :-1].masked_fill(~joined.used, -torch.inf)
        mean = torch.cat([listed, rest[..., None]], -1).log_softmax(-1)
    listed, rest = mean[..., :-1], mean[..., -1]
    return SparseProbs(joined.ids, listed, rest, joined.classes, probs.temperature, exact)
