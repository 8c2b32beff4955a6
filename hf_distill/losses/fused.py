"""Losses from hidden states and output layers, without [N, V] logits of either model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_distill.losses.numerics import no_autocast

__all__ = ["LazyLogits", "Loss", "linear_loss"]

Loss = Callable[[Tensor, Tensor | None, slice], Tensor]
"""``(student (n, C), teacher (n, C) or None, which items) -> ()``: a weighted sum over these items
of losses that are itemwise."""
Within = Callable[[Callable[[], Tensor]], Tensor]

BUDGET = {"cpu": 64 * 2**20}
"""Bytes of logits of both models that are held at a time, by type of device."""
OTHERWISE = 512 * 2**20
BLOCK = {"cpu": 2**19}
"""Number of logits per block of the losses, small enough for a processor's cache."""
LARGE = 2**25


@dataclass(frozen=True)
class LazyLogits:
    """Logits that are not computed: cap · tanh(scale · (Σ_i hidden_i weight_iᵀ + bias) / cap).

    Attributes:
        hidden: One or more ``(..., H_i)``; a second one is that of a low-rank adapter.
        weight: As many ``(V, H_i)``.
        bias: ``(V,)``, if there is one.
        scale: A factor (Cohere's ``logit_scale``, the inverse of Granite's ``logits_scaling``).
        softcap: The logits stay within ± this (Gemma 2); None: no cap.
        classes: Only the first of the V are meant: the others are padding of the vocabulary.
        within: Calls something where the weight is there (DeepSpeed's ZeRO-3 empties it but for
            its module's forward; then ``classes`` is set); None: it is there always.
    """

    hidden: tuple[Tensor, ...]
    weight: tuple[Tensor, ...]
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    classes: int | None = None
    within: Within | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the logits, ``(..., C)``."""
        return (*self.hidden[0].shape[:-1], self.classes or self.weight[0].shape[0])

    def items(self, index: Tensor | slice) -> LazyLogits:
        """The logits of some items, flattened: ``(n, C)``."""
        flat = (hidden.flatten(0, -2) for hidden in self.hidden)
        return dataclasses.replace(self, hidden=tuple(hidden[index] for hidden in flat))

    def logits(self) -> Tensor:
        """All logits, ``(..., C)``, for tests and fallbacks."""

        def product() -> Tensor:
            hidden, weight = self._operands()
            raw = hidden[0] @ weight[0].t()
            for more, low in zip(hidden[1:], weight[1:], strict=True):
                raw = raw + more @ low.t()
            return self.finished(raw)

        return _with_weights((self,), product)

    def finished(self, raw: Tensor) -> Tensor:
        """The logits of products ``(..., C)``."""
        if self.bias is not None:
            raw = raw + self.bias[: raw.shape[-1]].to(raw.dtype)
        if self.scale != 1:
            raw = raw * self.scale
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)

    def detach(self) -> LazyLogits:
        """The same, cut off from the graph."""
        hidden = tuple(hidden.detach() for hidden in self.hidden)
        if self.within is not None:  # the weight is filled later: keep the same tensor
            return dataclasses.replace(self, hidden=hidden)
        return dataclasses.replace(
            self,
            hidden=hidden,
            weight=tuple(weight.detach() for weight in self.weight),
            bias=None if self.bias is None else self.bias.detach(),
        )

    def _operands(self) -> tuple[list[Tensor], list[Tensor]]:
        """Hidden states and weights in the dtype of the products, as autocast would have it."""
        dtype = _dtype_of(self.weight[0])
        weight = [w[: self.classes].to(dtype) for w in self.weight]
        return [hidden.to(dtype) for hidden in self.hidden], weight


def linear_loss(
    student: LazyLogits, teacher: LazyLogits | None, loss: Loss, budget: int | None = None
) -> Tensor:
    """A loss of two models' logits, with its gradients, from a few items at a time.

    The gradients are computed in the forward pass, so that nothing is projected again: a step costs
    four products of the head's size (both projections; the gradients of the student's hidden states
    and weight), three where the student's head is frozen, two without gradients. They add up in
    float32 at least.

    Args:
        student: Logits of N items, ``(N, H)``; gradients flow to all of its tensors that require
            one.
        teacher: Logits of the same items, without gradient; None: the loss needs none.
        loss: Called on consecutive blocks of items, with gradients on. The result may be multiplied
            by one number, and not otherwise changed.
        budget: Bytes of logits to hold at a time; the default depends on the device.

    Returns: the sum of the losses, ``()``; a zero with a graph where there is no item.
    Raises: ValueError: student and teacher differ in items or classes.

    >>> hidden, weight = torch.eye(2, requires_grad=True), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> ours = LazyLogits((hidden,), (weight,))
    >>> linear_loss(ours, None, lambda z, _, rows: z.logsumexp(-1).sum())
    tensor(3.4402, grad_fn=<_LinearLossBackward>)
    """
    if teacher is not None and student.shape != teacher.shape:
        raise ValueError(
            f"Expected student and teacher of the same items and classes (N, C), got "
            f"{student.shape} and {teacher.shape}; cut both vocabularies to what they share."
        )
    tensors = [*student.hidden, *student.weight]
    tensors += [] if student.bias is None else [student.bias]

    def run() -> Tensor:
        total: Tensor = _LinearLoss.apply(student, teacher, loss, budget, *tensors)
        return total

    return _with_weights((student, teacher), run)


def _with_weights(models: Iterable[LazyLogits | None], run: Callable[[], Tensor]) -> Tensor:
    """Run with the gathered weights of all these."""
    for model in models:
        if model is not None and model.within is not None:
            run = functools.partial(model.within, run)
    return run()


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: LazyLogits,
        teacher: LazyLogits | None,
        loss: Loss,
        budget: int | None,
        *tensors: Tensor,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[4:]
        hidden, weight = student._operands()
        theirs = None if teacher is None else teacher._operands()
        gradients = _Gradients(student, hidden, weight, wanted)
        total = hidden[0].new_zeros((), dtype=_wide(hidden[0].dtype))
        with no_autocast(hidden[0]):
            for rows in _chunks(student, teacher, budget):
                raw = _product(hidden, weight, rows)
                other = None if theirs is None else _product(*theirs, rows)
                for part in _blocks(rows, raw):
                    inner = slice(part.start - rows.start, part.stop - rows.start)
                    target = (
                        None if other is None or teacher is None else teacher.finished(other[inner])
                    )
                    total += _lossed(student, raw[inner], target, loss, part, any(wanted))
                if any(wanted):
                    gradients.add(raw, rows)
        ctx.gradients = [*gradients.hidden, *gradients.weight, gradients.bias][: len(tensors)]
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        found, ctx.gradients = ctx.gradients, None
        if found is None:
            raise RuntimeError("Trying to go backward through a linear loss a second time.")
        scaled = [
            None if gradient is None else gradient.mul_(scale.to(gradient.dtype)).to(dtype)
            for gradient, dtype in zip(found, ctx.dtypes, strict=True)
        ]
        return (None, None, None, None, *scaled)


def _lossed(
    student: LazyLogits, raw: Tensor, target: Tensor | None, loss: Loss, part: slice, graded: bool
) -> Tensor:
    """The loss of a block; the products are replaced by the gradient with respect to them."""
    if not graded:
        return loss(student.finished(raw), target, part)
    with torch.enable_grad():
        leaf = raw.detach().requires_grad_()
        value = loss(student.finished(leaf), target, part)
        if not value.requires_grad:
            raw.zero_()
            return value
        (gradient,) = torch.autograd.grad(value, leaf)
    raw.copy_(gradient)
    return value.detach()


class _Gradients:
    """The gradients of a head's operands, added up over chunks of items."""

    def __init__(
        self,
        student: LazyLogits,
        hidden: list[Tensor],
        weight: list[Tensor],
        wanted: Sequence[bool],
    ):
        self.classes = weight[0].shape[0]
        self.operands = [(hidden[i], weight[i]) for i in range(len(hidden))]
        count = len(hidden)
        self.hidden = [
            torch.empty_like(h) if want else None
            for h, want in zip(hidden, wanted[:count], strict=True)
        ]
        self.weight = [
            torch.zeros_like(full, dtype=_wide(w.dtype)) if want else None
            for w, full, want in zip(weight, student.weight, wanted[count : 2 * count], strict=True)
        ]
        self.bias: Tensor | None = None
        if student.bias is not None and wanted[-1]:
            self.bias = torch.zeros_like(student.bias, dtype=_wide(student.bias.dtype))

    def add(self, gradient: Tensor, rows: slice) -> None:
        """Add what the gradient of the products ``(n, C)`` gives."""
        for (hidden, weight), own, total in zip(
            self.operands, self.hidden, self.weight, strict=True
        ):
            if own is not None:
                torch.mm(gradient, weight, out=own[rows])
            if total is not None:
                _accumulate(total[: self.classes], gradient.t(), hidden[rows])
        if self.bias is not None:
            self.bias[: self.classes] += gradient.sum(0, dtype=self.bias.dtype)


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in the dtype of the total: in half precision, rounding the product of
    every chunk would be worse than rounding once."""
    if total.dtype != left.dtype and total.is_cuda:
        total += torch.mm(left, right, out_dtype=total.dtype)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def _product(hidden: Sequence[Tensor], weight: Sequence[Tensor], rows: slice) -> Tensor:
    raw = hidden[0][rows] @ weight[0].t()
    for more, low in zip(hidden[1:], weight[1:], strict=True):
        raw.addmm_(more[rows], low.t())
    return raw


def _chunks(student: LazyLogits, teacher: LazyLogits | None, budget: int | None) -> Iterator[slice]:
    """The items whose logits are held together."""
    count, classes = student.hidden[0].shape[0], student.shape[-1]
    device = student.hidden[0].device.type
    bytes_each = sum(
        classes * _dtype_of(model.weight[0]).itemsize for model in (student, teacher) if model
    )
    held = BUDGET.get(device, OTHERWISE) if budget is None else budget
    step = max(1, held // bytes_each)
    step = max(1, -(-count // max(1, -(-count // step))))  # chunks of one size
    yield from (slice(start, min(start + step, count)) for start in range(0, max(1, count), step))


def _blocks(rows: slice, raw: Tensor) -> Iterator[slice]:
    """The items of a chunk that a loss looks at together."""
    step = max(1, BLOCK.get(raw.device.type, LARGE) // raw.shape[-1])
    stop = max(rows.stop, rows.start + 1)  # one block, even of nothing
    yield from (
        slice(start, min(start + step, rows.stop)) for start in range(rows.start, stop, step)
    )


def _dtype_of(weight: Tensor) -> torch.dtype:
    """Dtype of products with a weight."""
    device = weight.device.type
    if weight.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return weight.dtype
    return torch.get_autocast_dtype(device)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
