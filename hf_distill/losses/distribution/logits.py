"""Distances of the logits themselves, and of standardised logits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.numerics import (
    Temperature,
    check_temperature,
    kl,
    over_temperature,
    scaled_logits,
    times_t_squared,
)

__all__ = ["logit_mse", "logit_standardized_kl"]


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ_c (s_c - t_c)², on the logits themselves.

    There is no temperature: T² · ((s - t) / T)² is the same for every T. Sources that also divide
    by C, like ``MSELoss``, give our value / C; TextBrewer's ``kd_mse_loss`` at temperature T gives
    our value / (C T²). Unlike the divergences it also aligns the constant that softmax ignores.

    For regression, half of it is the KL divergence, in either direction, of normal distributions of
    variance 1 around the outputs; with a variance σ², divide by 2 σ².

    Args:
        student: logits (..., C).
        teacher: logits (..., C).

    Returns:
        (...), at least float32, in squared logits.

    Raises:
        ValueError: the shapes differ or have no class dimension.

    Reference: Ba and Caruana, 2013, "Do Deep Nets Really Need to be Deep?", arXiv:1312.6184.

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

    Args:
        student: logits (..., C) with C > 2.
        teacher: logits (..., C).
        temperature: T > 0, the base temperature. A tensor has one per item.
        t_squared: multiply by T².

    Returns:
        (...), at least float32, >= 0 up to rounding.

    Raises:
        ValueError: the shapes differ or have no class dimension; temperature is not > 0; C <= 2,
            where z is always (±0.7, ∓0.7) and the gradient 0.

    Reference: Sun, Ren, Li, Wang and Cao, 2024, "Logit Standardization in Knowledge Distillation",
        arXiv:2403.01427.

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
