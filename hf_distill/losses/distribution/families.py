"""Families of divergences between the forward and the reverse KL, and total variation."""

import math

import torch
from torch import Tensor

from hf_distill.losses.distribution.kl import (
    Temperature,
    forward_kl,
    kl,
    log_probs,
    reverse_kl,
    times_t_squared,
)

__all__ = ["adaptive_kl", "alpha_beta", "renyi", "total_variation"]

# Below this, alpha or beta counts as 0: in float32 the difference would be noise.
_NO_POWER = 1e-4


def adaptive_kl(
    student: Tensor,
    teacher: Tensor,
    head: float = 0.5,
    temperature: Temperature = 1.0,
    *,
    t_squared: bool = True,
) -> Tensor:
    """T² · [w KL(p_t ‖ p_s) + (1 - w) KL(p_s ‖ p_t)], w = Σ_head |p_t - p_s| / Σ |p_t - p_s|.

    The more the two differ on the head, the teacher's most likely classes, the more the forward KL
    counts; p = softmax(logits / T). The head is the smallest set of classes that leaves less than
    ``1 - head`` of the teacher's mass to the others (DSKD's ``adaptive_kl_alpha`` is this 1 -
    ``head``). The paper's smallest set with at least ``head`` of the mass is the same except where
    a set has exactly ``head``. As in both, no gradient goes through w. DSKD leaves T² out.
    ``head=1`` is :func:`forward_kl`.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; >= 0 up to rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0; head
    is outside [0, 1].
    Source: Wu et al. 2024, arXiv:2404.02657.

    >>> adaptive_kl(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[2.0, 0.0, 0.0]]))
    tensor([0.8098])
    """
    if not 0 <= head <= 1:
        raise ValueError(
            f"head must be in [0, 1], got {head!r}; it is the teacher's mass that makes the head "
            "of its distribution, 0.5 in the paper"
        )
    log_s, log_t = log_probs("adaptive_kl", student, teacher, temperature)
    with torch.no_grad():
        likelihood, order = log_t.exp().sort(-1)
        gap = (likelihood - log_s.exp().gather(-1, order)).abs()
        tail = likelihood.cumsum(-1) < 1 - head
        total = gap.sum(-1)
        in_head = gap.masked_fill(tail, 0.0).sum(-1)
        weight = in_head / total.masked_fill(total == 0, 1.0)
    # Not lerp, which autocast and half precision treat differently.
    values = weight * kl(log_t, log_s) + (1 - weight) * kl(log_s, log_t)
    return times_t_squared(values, temperature, t_squared)


def total_variation(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, *, t_squared: bool = True
) -> Tensor:
    """T² · ½ Σ_c |p_t - p_s|, with p = softmax(logits / T).

    Without T² the largest difference in the probability of any event, in [0, 1]. Being of first
    order in p_t - p_s, its gradient falls like 1 / T, that of the KL divergences like 1 / T²: with
    T² it grows like T.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; in [0, T²].
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0.
    Source: Wen et al. 2023, arXiv:2307.15190.

    >>> total_variation(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([0.3808])
    """
    log_s, log_t = log_probs("total_variation", student, teacher, temperature)
    values = 0.5 * (log_t.exp() - log_s.exp()).abs().sum(-1)
    return times_t_squared(values, temperature, t_squared)


def alpha_beta(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 0.2,
    beta: float = 0.7,
    temperature: Temperature = 1.0,
    *,
    t_squared: bool = True,
) -> Tensor:
    """T² · 1/(αβ) Σ_c [α/(α+β) p_t^(α+β) + β/(α+β) p_s^(α+β) - p_t^α p_s^β], p = softmax(logits/T).

    Where α or β is 0 (below 1e-4), its limit: at (1, 0) exactly :func:`forward_kl`, at (0, 1)
    exactly :func:`reverse_kl`; (½, ½) is 2 Σ (√p_t - √p_s)², four times the squared Hellinger
    distance. On the line α + β = 1 it is an α-divergence, from mode covering to mode seeking.
    Negative powers would be infinite at a probability of 0.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; >= 0 up to rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0; alpha
    or beta is negative or infinite, or both are 0.
    Source: Wang et al. 2025, arXiv:2505.04560; after Cichocki, Cruces and Amari 2011, Entropy 13.

    >>> alpha_beta(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), alpha=0.5, beta=0.5)
    tensor([0.3690])
    """
    if not (0 <= alpha < math.inf and 0 <= beta < math.inf and alpha + beta >= _NO_POWER):
        raise ValueError(
            f"alpha and beta must be finite, >= 0 and not both 0, got {alpha!r} and {beta!r}; "
            "(1, 0) is the forward KL, (0, 1) the reverse KL, (0.2, 0.7) usual"
        )
    alpha = 0.0 if alpha < _NO_POWER else alpha
    beta = 0.0 if beta < _NO_POWER else beta
    if (alpha, beta) == (1, 0):
        return forward_kl(student, teacher, temperature, t_squared=t_squared)
    if (alpha, beta) == (0, 1):
        return reverse_kl(student, teacher, temperature, t_squared=t_squared)
    log_s, log_t = log_probs("alpha_beta", student, teacher, temperature)
    gap = log_s - log_t
    below = gap <= 0
    # The term of a class, relative to the larger of its two probabilities: no power overflows.
    per_class = torch.where(
        below,
        _alpha_beta_term(log_t, gap.masked_fill(~below, 0.0), alpha, beta),
        _alpha_beta_term(log_s, (-gap).masked_fill(below, 0.0), beta, alpha),
    )
    return times_t_squared(per_class.sum(-1), temperature, t_squared)


def _alpha_beta_term(log_p: Tensor, gap: Tensor, own: float, other: float) -> Tensor:
    """The term of a class with p^own q^other, log q = log p + gap and gap <= 0.

    That is p^(own+other) [e(own+other) - e(other)] / own with e(x) = (exp(x gap) - 1) / x, which is
    exactly 0 at a gap of 0 and differs from its limits at own = 0 and other = 0 by rounding only.
    """
    both = own + other
    scale = (both * log_p).exp()
    if own == 0:
        power = torch.expm1(other * gap)
        return scale * (other * gap * (power + 1) - power) / other**2
    linear = gap if other == 0 else torch.expm1(other * gap) / other
    return scale * (torch.expm1(both * gap) / both - linear) / own


def renyi(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 0.5,
    temperature: Temperature = 1.0,
    *,
    t_squared: bool = True,
) -> Tensor:
    """T² · 1/(α-1) log Σ_c p_t^α p_s^(1-α), with p = softmax(logits / T).

    ``alpha=1``, the limit, is exactly :func:`forward_kl`; α = ½ is symmetric (twice the
    Bhattacharyya distance). It grows with α, and its gradient at small differences like α.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; >= 0 up to rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0; alpha
    is not > 0 or not finite.
    Source: van Erven and Harremoës 2014, arXiv:1206.2459.

    >>> renyi(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), alpha=0.5)
    tensor([0.1936])
    """
    if not 0 < alpha < math.inf:
        raise ValueError(
            f"alpha must be > 0 and finite, got {alpha!r}; 1 is the forward KL, 0.5 is symmetric"
        )
    if alpha == 1:
        return forward_kl(student, teacher, temperature, t_squared=t_squared)
    log_s, log_t = log_probs("renyi", student, teacher, temperature)
    power = (1 - alpha) * (log_s - log_t)
    exponent = log_t + power
    # The sum minus 1, which keeps its digits (and is exactly 0) where the two are nearly equal, and
    # with alpha near 1. The clamps keep what torch.where leaves out finite.
    p_t = log_t.exp()
    near = p_t * torch.expm1(power.clamp(max=1.0))
    far = exponent.clamp(max=50.0).exp() - p_t
    excess = torch.where(power < 1, near, far).sum(-1)
    small = excess.abs() < 0.5
    logarithm = torch.where(
        small, torch.log1p(excess.masked_fill(~small, 0.0)), exponent.logsumexp(-1)
    )
    return times_t_squared(logarithm / (alpha - 1), temperature, t_squared)
