"""Distances of logits (also standardised), of class-wise answers, and soft cross-entropy."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.distribution.kl import (
    Temperature,
    check_temperature,
    cross_entropy,
    kl,
    log_probs,
    over_temperature,
    scaled_logits,
    times_t_squared,
)

__all__ = ["binary_kl", "logit_mse", "logit_standardized_kl", "soft_cross_entropy"]


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ_c (s_c - t_c)², on the logits themselves.

    There is no temperature: T² · ((s - t) / T)² is the same for every T. Sources that also divide
    by C, like ``MSELoss``, give our value / C; TextBrewer's ``kd_mse_loss`` at temperature T gives
    our value / (C T²). Unlike the divergences it also aligns the constant that softmax ignores.

    For regression, half of it is the KL divergence, in either direction, of normal distributions of
    variance 1 around the outputs; with a variance σ², divide by 2 σ².

    Returns: (...) of logits (..., C), in squared logits.
    Raises: ValueError: the shapes differ or have no class dimension.
    Source: Ba and Caruana 2013, arXiv:1312.6184.

    >>> logit_mse(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([5.])
    """
    student, teacher = scaled_logits("logit_mse", student, teacher)
    return F.mse_loss(student, teacher, reduction="none").sum(-1)


def logit_standardized_kl(
    student: Tensor, teacher: Tensor, temperature: Temperature = 2.0, *, t_squared: bool = True
) -> Tensor:
    """T² · KL(p_t ‖ p_s), p = softmax(z / T), z = (x - mean(x)) / (1e-7 + std(x)) over the classes.

    The student may have another scale of logits than the teacher. std divides by C - 1, as in the
    authors' code. Logits that are all equal have no scale: z is 0, and so is its gradient. Logits
    of masked classes (finfo.min) have to be cut off before, as they would dominate mean and std.

    Returns: (...) of logits (..., C), C > 2, and T > 0, one number or one per item; >= 0 up to
    rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0; C <=
    2, where z is always (±0.7, ∓0.7) and the gradient 0.
    Source: Sun et al. 2024, arXiv:2403.01427.

    >>> logit_standardized_kl(torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[0.0, 3.0, 1.0]]))
    tensor([0.6641])
    """
    student, teacher = scaled_logits("logit_standardized_kl", student, teacher)
    if student.shape[-1] <= 2:
        raise ValueError(
            f"logit_standardized_kl: expected three classes or more, got {student.shape[-1]}; two "
            "standardised logits are always 0.7 and -0.7, so the gradient is 0 and nothing would "
            "be learned: use forward_kl"
        )
    check_temperature(temperature, student.shape[:-1])
    log_s, log_t = (
        F.log_softmax(over_temperature(_standardized(x), temperature, x.dtype), -1)
        for x in (student, teacher)
    )
    return times_t_squared(kl(log_t, log_s), temperature, t_squared)


def _standardized(logits: Tensor) -> Tensor:
    """(x - mean) / (1e-7 + std) over the classes; 0, with gradient 0, where all are equal."""
    centred = logits - logits.mean(-1, keepdim=True)
    std = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / (logits.shape[-1] - 1) ** 0.5
    noise = 4 * torch.finfo(logits.dtype).eps * logits.abs().amax(-1, keepdim=True)
    equal = std <= noise
    return (centred / (1e-7 + std.masked_fill(equal, 1.0))).masked_fill(equal, 0.0)


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, *, t_squared: bool = True
) -> Tensor:
    """-T² Σ_c p_t log p_s, with p = softmax(logits / T): forward KL plus T² times p_t's entropy.

    The gradient for the student is that of :func:`forward_kl`; the value is not 0 at equality.
    TextBrewer's ``kd_ce_loss`` at temperature T is the mean over items of our value / T²; TinyBERT
    (at T = 1) that of our value / C.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; >= 0.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0.
    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531.

    >>> soft_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([0.6931])
    """
    log_s, log_t = log_probs("soft_cross_entropy", student, teacher, temperature)
    return times_t_squared(cross_entropy(log_t, log_s), temperature, t_squared)


def binary_kl(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, *, t_squared: bool = True
) -> Tensor:
    """T² Σ_c [q_t log(q_t / q_s) + (1 - q_t) log((1 - q_t) / (1 - q_s))], q = sigmoid(logits / T).

    Forward KL of C independent yes-no answers, for multi-label heads; the other direction is the
    same with student and teacher exchanged. ``BCEWithLogitsLoss`` on the teacher's probabilities,
    which takes the mean, is the mean over items of our value / (C T²) plus the teacher's entropy.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; >= 0 up to rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0.
    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, applied to each class.

    >>> binary_kl(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 1.0]]))
    tensor([0.3278, 0.0000])
    """
    student, teacher = scaled_logits("binary_kl", student, teacher, temperature)
    yes, no = (
        kl(F.logsigmoid(sign * teacher), F.logsigmoid(sign * student)) for sign in (1.0, -1.0)
    )
    return times_t_squared(yes + no, temperature, t_squared)
