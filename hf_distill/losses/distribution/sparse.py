"""Forward KL over the teacher's most likely classes and one bucket for the rest."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_distill.losses.distribution.kl import (
    Temperature,
    check_temperature,
    kl,
    log_probs,
    over_temperature,
    times_t_squared,
)
from hf_distill.losses.numerics import compute_dtype

__all__ = ["top_k_kl"]


def top_k_kl(
    student: Tensor,
    teacher: Tensor,
    k: int = 8,
    temperature: Temperature = 1.0,
    *,
    t_squared: bool = True,
) -> Tensor:
    """T² · [Σ_{c in top k} p_t (log p_t - log p_s) + r_t (log r_t - log r_s)], r = 1 - Σ_top p.

    Forward KL over the teacher's k most likely classes and one bucket with the mass r of all
    others; p = softmax(logits / T). Never above :func:`forward_kl`, and equal to it from k = C - 1
    on. Without the bucket the student could lower it by putting all its mass on the k classes.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; >= 0 up to rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0; k < 1.
    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, on a coarser set of classes.

    >>> student, teacher = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    >>> top_k_kl(student, teacher, k=1), top_k_kl(student, teacher, k=2)
    (tensor([0.2291]), tensor([0.2662]))
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k!r}; it is the number of classes compared")
    _, log_t = log_probs("top_k_kl", student, teacher, temperature)
    log_top, indices = log_t.topk(min(k, log_t.shape[-1]), dim=-1)
    theirs, _ = coarsened(teacher, log_top, indices, log_top[..., 0], temperature)
    ours, _ = coarsened(student, log_top, indices, theirs[..., -1], temperature)
    compared = min(ours.shape[-1], student.shape[-1])  # no bucket where it has no class
    values = kl(theirs[..., :compared], ours[..., :compared])
    return times_t_squared(values, temperature, t_squared)


def coarsened(
    student: Tensor,
    teacher_log_probs: Tensor,
    indices: Tensor,
    log_rest: Tensor | None = None,
    temperature: Temperature = 1.0,
) -> tuple[Tensor, Tensor]:
    """Both log-probabilities on k classes and one bucket for all others.

    Any divergence of the two is a lower bound of that on all classes (data processing inequality),
    and equal to it where nothing of either is in the bucket. Without ``log_rest`` the teacher has
    nothing in the bucket, and the student's is 1 - its k classes: exact to the rounding of 1, which
    is enough for what takes the teacher's probabilities as weights.

    Args:
        student: logits (..., C).
        teacher_log_probs: (..., k) of softmax(logits / T); -inf marks an unused slot.
        indices: (..., k) integers, the classes these belong to, each once.
        log_rest: (...), the log of the teacher's mass on all other classes; -inf: none.
        temperature: T > 0, of the student here.

    Returns:
        Two tensors (..., k + 1), the student's and the teacher's; never below finfo.min.

    >>> ours, theirs = coarsened(
    ...     torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.5]]).log(), torch.tensor([[1]]),
    ...     torch.tensor([0.5]).log())
    >>> ours.exp(), theirs.exp()
    (tensor([[0.2447, 0.7553]]), tensor([[0.5000, 0.5000]]))
    """
    check_temperature(temperature, student.shape[:-1])
    dtype = compute_dtype(student, teacher_log_probs)
    lowest = torch.finfo(dtype).min
    z = over_temperature(student, temperature, dtype).to(dtype)
    used = teacher_log_probs > -torch.inf
    best = indices.gather(-1, teacher_log_probs.argmax(-1, keepdim=True))
    top, rest = _Coarsening.apply(z, torch.where(used, indices, best))
    top = top.masked_fill(~used, lowest)
    bucket = torch.full_like(rest, lowest) if log_rest is None else log_rest.to(dtype)
    ours = torch.cat([top, rest.unsqueeze(-1)], dim=-1)
    theirs = torch.cat([teacher_log_probs.to(dtype), bucket.unsqueeze(-1)], dim=-1)
    return ours.clamp(min=lowest), theirs.clamp(min=lowest)


class _Coarsening(torch.autograd.Function):
    """log softmax(z) of some classes, and the log of the total mass of all others.

    Three passes over the classes forward and one backward, as many as a cross-entropy has. The mass
    of the others is summed, not computed as 1 minus the rest, and is at least the smallest positive
    number: below it a student gets no gradient towards the others, but still one away from classes
    with too much mass.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        top = z.amax(-1, keepdim=True)
        masses = (z - top).exp_()
        total = masses.sum(-1, keepdim=True)
        chosen = masses.gather(-1, indices)
        masses.scatter_(-1, indices, 0.0)
        others = masses.sum(-1, keepdim=True).clamp_(min=torch.finfo(z.dtype).tiny)
        ctx.save_for_backward(indices, masses, chosen, others, total)
        log_total = top + total.log()
        return z.gather(-1, indices) - log_total, (others.log() - total.log()).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top: Tensor, rest: Tensor) -> tuple[Tensor, None]:
        indices, masses, chosen, others, total = ctx.saved_tensors
        rest = rest.unsqueeze(-1)
        both = (top.sum(-1, keepdim=True) + rest) / total
        gradient = masses * (rest / others - both)
        gradient.scatter_(-1, indices, -chosen * both)  # once, where several slots name one class
        return gradient.scatter_add_(-1, indices, top), None
