"""Kullback-Leibler divergences and cross-entropy."""

import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.numerics import (
    Temperature,
    check_pair,
    cross_entropy,
    kl,
    log_probs,
    scaled_logits,
    times_t_squared,
)

__all__ = ["binary_kl", "forward_kl", "jeffreys", "mutual", "reverse_kl", "soft_cross_entropy"]


def forward_kl(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, *, t_squared: bool = True
) -> Tensor:
    """T² · KL(p_t ‖ p_s) = T² Σ_c p_t (log p_t - log p_s), with p = softmax(logits / T).

    Mode covering: the student pays wherever the teacher has mass. ``KLDivLoss("batchmean")`` on
    two-dimensional input is the mean over items of our value / T², on input (B, T, C) its sum over
    T; with ``reduction="mean"`` it also divides by C (as DeiT and TinyBERT do).

    Args:
        student: logits (..., C).
        teacher: logits (..., C).
        temperature: T > 0; above 1 it softens both distributions. A tensor has one per item.
        t_squared: multiply by T².

    Returns:
        (...), at least float32, >= 0 up to rounding.

    Raises:
        ValueError: the shapes differ or have no class dimension; temperature is not > 0.

    Reference: Hinton, Vinyals and Dean, 2015, "Distilling the Knowledge in a Neural Network",
        arXiv:1503.02531.

    >>> forward_kl(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    tensor([0.3278, 0.0000])
    """
    log_s, log_t = log_probs("forward_kl", student, teacher, temperature)
    return times_t_squared(kl(log_t, log_s), temperature, t_squared)


def reverse_kl(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, *, t_squared: bool = True
) -> Tensor:
    """T² · KL(p_s ‖ p_t) = T² Σ_c p_s (log p_s - log p_t), with p = softmax(logits / T).

    Mode seeking: the student pays for mass where the teacher has little.

    Args:
        student: logits (..., C).
        teacher: logits (..., C).
        temperature: T > 0; above 1 it softens both distributions. A tensor has one per item.
        t_squared: multiply by T².

    Returns:
        (...), at least float32, >= 0 up to rounding.

    Raises:
        ValueError: the shapes differ or have no class dimension; temperature is not > 0.

    Reference: Gu, Dong, Wei and Huang, 2023, "MiniLLM: Knowledge Distillation of Large Language
        Models", arXiv:2306.08543.

    >>> reverse_kl(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    tensor([0.4338, 0.0000])
    """
    log_s, log_t = log_probs("reverse_kl", student, teacher, temperature)
    return times_t_squared(kl(log_s, log_t), temperature, t_squared)


def jeffreys(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, *, t_squared: bool = True
) -> Tensor:
    """T² · [KL(p_t ‖ p_s) + KL(p_s ‖ p_t)] = T² Σ_c (p_t - p_s) (log p_t - log p_s).

    The sum of :func:`forward_kl` and :func:`reverse_kl`; sources that take their mean give half of
    it.

    Args:
        student: logits (..., C).
        teacher: logits (..., C).
        temperature: T > 0; above 1 it softens both distributions. A tensor has one per item.
        t_squared: multiply by T².

    Returns:
        (...), at least float32, >= 0 up to rounding.

    Raises:
        ValueError: the shapes differ or have no class dimension; temperature is not > 0.

    Reference: Jeffreys, 1946, "An Invariant Form for the Prior Probability in Estimation Problems",
        Proceedings of the Royal Society A 186.

    >>> jeffreys(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    tensor([0.7616, 0.0000])
    """
    log_s, log_t = log_probs("jeffreys", student, teacher, temperature)
    return times_t_squared(kl(log_t, log_s) + kl(log_s, log_t), temperature, t_squared)


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, *, t_squared: bool = True
) -> Tensor:
    """-T² Σ_c p_t log p_s, with p = softmax(logits / T): forward KL plus T² times p_t's entropy.

    The gradient for the student is that of :func:`forward_kl`; the value is not 0 at equality.
    TextBrewer's ``kd_ce_loss`` at temperature T is the mean over items of our value / T²; TinyBERT
    (at T = 1) that of our value / C.

    Args:
        student: logits (..., C).
        teacher: logits (..., C).
        temperature: T > 0; above 1 it softens both distributions. A tensor has one per item.
        t_squared: multiply by T².

    Returns:
        (...), at least float32, >= 0.

    Raises:
        ValueError: the shapes differ or have no class dimension; temperature is not > 0.

    Reference: Hinton, Vinyals and Dean, 2015, "Distilling the Knowledge in a Neural Network",
        arXiv:1503.02531.

    >>> soft_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([0.6931])
    """
    log_s, log_t = log_probs("soft_cross_entropy", student, teacher, temperature)
    return times_t_squared(cross_entropy(log_t, log_s), temperature, t_squared)


def mutual(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, *, t_squared: bool = True
) -> Tensor:
    """T² · 1/K Σ_k KL(p_k ‖ p_s) over K peers: deep mutual learning, where T = 1.

    A peer trains on the same loss with the roles exchanged; as it must not learn to be imitated,
    give its logits without gradient.

    Args:
        student: logits (..., C).
        teacher: logits (..., C) of one peer, or (K, ..., C) of K peers.
        temperature: T > 0; above 1 it softens both distributions. A tensor has one per item.
        t_squared: multiply by T².

    Returns:
        (...), at least float32, >= 0 up to rounding.

    Raises:
        ValueError: the shapes differ or have no class dimension; temperature is not > 0.

    Reference: Zhang, Xiang, Hospedales and Lu, 2017, "Deep Mutual Learning", arXiv:1706.00384.

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


def binary_kl(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, *, t_squared: bool = True
) -> Tensor:
    """T² Σ_c [q_t log(q_t / q_s) + (1 - q_t) log((1 - q_t) / (1 - q_s))], q = sigmoid(logits / T).

    Forward KL of C independent yes-no answers, for multi-label heads; the other direction is the
    same with student and teacher exchanged. ``BCEWithLogitsLoss`` on the teacher's probabilities,
    which takes the mean, is the mean over items of our value / (C T²) plus the teacher's entropy.

    Args:
        student: logits (..., C), one answer per class.
        teacher: logits (..., C).
        temperature: T > 0; above 1 it softens both distributions. A tensor has one per item.
        t_squared: multiply by T².

    Returns:
        (...), at least float32, >= 0 up to rounding.

    Raises:
        ValueError: the shapes differ or have no class dimension; temperature is not > 0.

    Reference: Hinton, Vinyals and Dean, 2015, "Distilling the Knowledge in a Neural Network",
        arXiv:1503.02531, applied to each class.

    >>> binary_kl(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 1.0]]))
    tensor([0.3278, 0.0000])
    """
    student, teacher = scaled_logits("binary_kl", student, teacher, temperature)
    yes, no = (
        kl(F.logsigmoid(sign * teacher), F.logsigmoid(sign * student)) for sign in (1.0, -1.0)
    )
    return times_t_squared(yes + no, temperature, t_squared)
