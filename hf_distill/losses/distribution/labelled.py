"""Divergences that treat the class of the label and the other classes apart."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.distribution.kl import (
    Temperature,
    cross_entropy,
    kl,
    log_probs,
    scaled_logits,
    times_t_squared,
)

__all__ = ["decoupled_kd", "nkd"]

IGNORED = -100


def decoupled_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: Temperature = 4.0,
    *,
    t_squared: bool = True,
) -> Tensor:
    """T² · [α KL(b_t ‖ b_s) + β KL(p̂_t ‖ p̂_s)], b = (p_y, 1 - p_y), p̂ = p given that it is not y.

    p = softmax(logits / T) and y is the label. With β = 1 - p_t,y and α = 1 it would be the forward
    KL. Computed in log space: mdistiller's ``dkd_loss``, of which our mean over items is the value,
    is infinite for a student that is sure. With two classes the second part is 0. The authors
    choose β per pair of models, from 0.5 (ImageNet) to 8.

    Returns: (...) of logits (..., C), integer labels (...), of which -100 gives 0, and T > 0, one
    number or one per item; >= 0 up to rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0; labels
    are of another shape or not integers.
    Source: Zhao et al. 2022, arXiv:2203.08679.

    >>> logits = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    >>> decoupled_kd(*logits, torch.tensor([0]), alpha=1.0, beta=2.0, temperature=1.0)
    tensor([0.9940])
    """
    student, teacher = scaled_logits("decoupled_kd", student, teacher, temperature)
    index, ignored = _checked_labels("decoupled_kd", student, labels)
    (binary_s, rest_s), (binary_t, rest_t) = (_decoupled(x, index) for x in (student, teacher))
    values = alpha * kl(binary_t, binary_s) + beta * kl(rest_t, rest_s)
    return times_t_squared(values.masked_fill(ignored, 0.0), temperature, t_squared)


def nkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    gamma: float = 1.5,
    temperature: Temperature = 1.0,
    *,
    t_squared: bool = True,
) -> Tensor:
    """-p_t,y log p_s,y - γ T² Σ_{c≠y} p̂_t,c log p̂_s,c, with p̂ = p given that it is not y, at T.

    y is the label; the first part is at temperature 1, the second normalised among the other
    classes. Both are cross-entropies: the value is not 0 at equality, and the first part is lowest
    at p_s,y = 1, not at the teacher. The authors' code is the mean over items of our value.

    Returns: (...) of logits (..., C), integer labels (...), of which -100 gives 0, and T > 0, one
    number or one per item; >= 0.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0; labels
    are of another shape or not integers.
    Source: Yang et al. 2023, arXiv:2303.13005.

    >>> nkd(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))
    tensor([2.4409])
    """
    log_s, log_t = log_probs("nkd", student, teacher)
    index, ignored = _checked_labels("nkd", log_s, labels)
    target = -(log_t.gather(-1, index).exp() * log_s.gather(-1, index)).squeeze(-1)
    rest_s, rest_t = (
        F.log_softmax(_without(x, index), -1)
        for x in scaled_logits("nkd", student, teacher, temperature)
    )
    others = times_t_squared(cross_entropy(rest_t, rest_s), temperature, t_squared)
    return (target + gamma * others).masked_fill(ignored, 0.0)


def _decoupled(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """log (p_y, 1 - p_y) (..., 2), and log p̂ (..., C), lowest at y, of logits (..., C)."""
    others = _without(logits, index)
    both = torch.cat([logits.gather(-1, index), others.logsumexp(-1, keepdim=True)], dim=-1)
    return F.log_softmax(both, -1), F.log_softmax(others, -1)


def _without(logits: Tensor, index: Tensor) -> Tensor:
    """The logits, with the class at the index masked: its probability is exactly 0."""
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, True)
    return logits.masked_fill(chosen, torch.finfo(logits.dtype).min)


def _checked_labels(name: str, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The labels as an index (..., 1), 0 where there is none, and where there is none (...)."""
    if labels.shape != logits.shape[:-1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"{name}: expected labels of shape {tuple(logits.shape[:-1])}, one class (an integer) "
            f"per item, got {tuple(labels.shape)} of {labels.dtype}; take the argmax of mixed or "
            "smoothed labels, and give items without a label -100"
        )
    ignored = labels == IGNORED
    return labels.long().masked_fill(ignored, 0).unsqueeze(-1), ignored
