"""Sums of divergences: both directions, several peers, from a mixture (finite for any logits)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.distribution.kl import (
    Temperature,
    forward_kl,
    kl,
    log_probs,
    reverse_kl,
    times_t_squared,
    zero_where_equal,
)
from hf_distill.losses.numerics import check_pair

__all__ = ["jeffreys", "jensen_shannon", "mutual", "skew_kl", "skew_reverse_kl"]


def jensen_shannon(
    student: Tensor,
    teacher: Tensor,
    beta: float = 0.5,
    temperature: Temperature = 1.0,
    *,
    t_squared: bool = True,
) -> Tensor:
    """T² · [β KL(p_t ‖ m) + (1 - β) KL(p_s ‖ m)], m = (1 - β) p_s + β p_t, p = softmax(logits / T).

    Between the ends this is at most T² · (-β log β - (1 - β) log(1 - β)), thus T² log 2 at β = 0.5.
    As in TRL's ``generalized_jsd_loss``, ``beta=0`` is exactly :func:`forward_kl` and ``beta=1``
    exactly :func:`reverse_kl`. These are not the limits of the formula, which goes to 0 there (like
    β KL(p_t ‖ p_s) at β -> 0), so the scale jumps at both ends.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; >= 0 up to rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0; beta
    is outside [0, 1].
    Source: Agarwal et al. 2023, arXiv:2306.13649.

    >>> jensen_shannon(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), beta=0.5)
    tensor([0.0895])
    """
    if not 0 <= beta <= 1:
        raise ValueError(
            f"beta must be in [0, 1], got {beta!r}; 0 is the forward KL, 1 the reverse KL, "
            "0.5 the symmetric Jensen-Shannon divergence"
        )
    if beta == 0:
        return forward_kl(student, teacher, temperature, t_squared=t_squared)
    if beta == 1:
        return reverse_kl(student, teacher, temperature, t_squared=t_squared)
    log_s, log_t = log_probs("jensen_shannon", student, teacher, temperature)
    log_m = _log_mixture(log_t, log_s, beta)
    from_teacher = F.kl_div(log_m, log_t, reduction="none", log_target=True)
    from_student = F.kl_div(log_m, log_s, reduction="none", log_target=True)
    per_class = torch.lerp(from_student, from_teacher, beta)
    # Where both agree, the term and its gradient are 0, but log_m is off by one rounding.
    values = per_class.masked_fill(log_s == log_t, 0.0).sum(-1)
    return times_t_squared(values, temperature, t_squared)


def skew_kl(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 0.1,
    temperature: Temperature = 1.0,
    *,
    t_squared: bool = True,
) -> Tensor:
    """T² · KL(p_t ‖ α p_t + (1 - α) p_s), with p = softmax(logits / T).

    At most -T² log α, and its gradient stays bounded where the student has no mass. ``alpha=0`` is
    exactly :func:`forward_kl`. DistiLLM's and DSKD's ``skew_lambda`` is our alpha; both leave T²
    out.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; >= 0 up to rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0; alpha
    is outside [0, 1).
    Source: Ko et al. 2024, "DistiLLM", arXiv:2402.03898.

    >>> skew_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), alpha=0.1)
    tensor([0.2726])
    """
    _check_alpha(alpha)
    if alpha == 0:
        return forward_kl(student, teacher, temperature, t_squared=t_squared)
    log_s, log_t = log_probs("skew_kl", student, teacher, temperature)
    values = zero_where_equal(kl(log_t, _log_mixture(log_t, log_s, alpha)), log_s, log_t)
    return times_t_squared(values, temperature, t_squared)


def skew_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 0.1,
    temperature: Temperature = 1.0,
    *,
    t_squared: bool = True,
) -> Tensor:
    """T² · KL(p_s ‖ α p_s + (1 - α) p_t), with p = softmax(logits / T).

    :func:`skew_kl` with student and teacher exchanged: at most -T² log α. ``alpha=0`` is exactly
    :func:`reverse_kl`.

    Returns, Raises, Source: as :func:`skew_kl`.

    >>> skew_reverse_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), alpha=0.1)
    tensor([0.3173])
    """
    _check_alpha(alpha)
    if alpha == 0:
        return reverse_kl(student, teacher, temperature, t_squared=t_squared)
    log_s, log_t = log_probs("skew_reverse_kl", student, teacher, temperature)
    values = zero_where_equal(kl(log_s, _log_mixture(log_s, log_t, alpha)), log_s, log_t)
    return times_t_squared(values, temperature, t_squared)


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q). In float32 1 - 1e-12 would be 1, and its log1p(-1) infinite."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha < 1:
        raise ValueError(
            f"alpha must be in [0, 1), got {alpha!r}; 0 is the KL divergence itself, 0.1 is usual, "
            "and at 1 the mixture is the distribution compared with it: nothing would be learned"
        )


def jeffreys(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, *, t_squared: bool = True
) -> Tensor:
    """T² · [KL(p_t ‖ p_s) + KL(p_s ‖ p_t)] = T² Σ_c (p_t - p_s) (log p_t - log p_s).

    The sum of :func:`forward_kl` and :func:`reverse_kl`; sources that take their mean give half of
    it.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; >= 0 up to rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0.
    Source: Jeffreys 1946, Proceedings of the Royal Society A 186.

    >>> jeffreys(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    tensor([0.7616, 0.0000])
    """
    log_s, log_t = log_probs("jeffreys", student, teacher, temperature)
    return times_t_squared(kl(log_t, log_s) + kl(log_s, log_t), temperature, t_squared)


def mutual(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, *, t_squared: bool = True
) -> Tensor:
    """T² · 1/K Σ_k KL(p_k ‖ p_s) over K peers: deep mutual learning, where T = 1.

    A peer trains on the same loss with the roles exchanged; as it must not learn to be imitated,
    give its logits without gradient: (..., C) of one peer, or (K, ..., C) of K peers.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; >= 0 up to rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0.
    Source: Zhang et al. 2017, "Deep Mutual Learning", arXiv:1706.00384.

    >>> peers = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]])
    >>> mutual(torch.tensor([[0.0, 0.0]]), peers)
    tensor([0.1639])
    """
    if teacher.ndim != student.ndim + 1:
        log_s, log_t = log_probs("mutual", student, teacher, temperature)
        return times_t_squared(kl(log_t, log_s), temperature, t_squared)
    check_pair(
        "mutual",
        student,
        teacher[0] if len(teacher) else teacher,
        remedy="with one dimension more, the teacher holds K >= 1 peers: (K, ..., C)",
    )
    log_s, log_t = log_probs("mutual", student.expand_as(teacher), teacher, temperature)
    return times_t_squared(kl(log_t, log_s).mean(0), temperature, t_squared)
