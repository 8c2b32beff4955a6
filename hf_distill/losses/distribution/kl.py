"""Softmax with a temperature, Kullback-Leibler divergences and cross-entropy.

Nothing here waits for the device: checks look at shapes and at Python numbers only.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.numerics import check_pair

__all__ = ["forward_kl", "reverse_kl"]

Temperature = float | Tensor
"""One for all items, or a tensor of one per item (broadcastable to the items' shape)."""


def check_temperature(temperature: Temperature, items: torch.Size | None = None) -> None:
    """Refuse a number that is not > 0 and finite, or a tensor of another shape than the items.

    The values of a tensor are not looked at: that would wait for the device.
    """
    if isinstance(temperature, Tensor):
        try:
            fits = items is None or torch.broadcast_shapes(temperature.shape, items) == items
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"expected one temperature per item, broadcastable to {tuple(items or ())}, got "
                f"shape {tuple(temperature.shape)}; the last dimension of the logits, the classes, "
                "is not among the items"
            )
    elif not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature must be > 0, got {temperature!r}; 1 leaves the distributions as they "
            "are, 2 to 4 is usual, and it must be finite"
        )


def times_t_squared(values: Tensor, temperature: Temperature, t_squared: bool = True) -> Tensor:
    """T² · values, or the values unchanged.

    >>> times_t_squared(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]))
    tensor([9., 2.])
    """
    if not t_squared:
        return values
    if isinstance(temperature, Tensor):
        return values * temperature.to(values.dtype) ** 2
    return values * temperature**2


def common_minimum(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both logits, cut at the higher of the lowest finite numbers of their dtypes.

    Masked with finfo.min of two dtypes, a class would differ by up to 1e38, and its gradient
    (0 times that, times T²) would be NaN.
    """
    lowest_s, lowest_t = torch.finfo(student.dtype).min, torch.finfo(teacher.dtype).min
    if lowest_s < lowest_t:
        student = student.clamp(min=lowest_t)
    elif lowest_t < lowest_s:
        teacher = teacher.clamp(min=lowest_s)
    return student, teacher


def over_temperature(logits: Tensor, temperature: Temperature, dtype: torch.dtype) -> Tensor:
    """logits / T in the dtype, not below its finfo.min; at the number 1 the logits themselves."""
    lowest = torch.finfo(dtype).min
    if isinstance(temperature, Tensor):
        # A quotient's gradient in T is -logits / T², infinite for a class masked with finfo.min; a
        # product's is finite.
        inverse = temperature.to(dtype).reciprocal().unsqueeze(-1)
        return (logits.to(dtype) * inverse).clamp(min=lowest)
    if temperature == 1:
        return logits
    logits = logits.to(dtype) / temperature
    # The division takes finfo.min to -inf, and -inf - -inf is NaN.
    return logits.clamp(min=lowest) if temperature < 1 else logits


def scaled_logits(
    name: str, student: Tensor, teacher: Tensor, temperature: Temperature = 1.0
) -> tuple[Tensor, Tensor]:
    """logits / T of both in one dtype, float32 at least; arguments and errors of `log_probs`."""
    student, teacher, dtype = _scaled(name, student, teacher, temperature)
    return student.to(dtype), teacher.to(dtype)


def log_probs(
    name: str, student: Tensor, teacher: Tensor, temperature: Temperature = 1.0
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / T) of both in one dtype, float32 at least.

    A class that each side masks with the finfo.min of its own dtype has the same (lowest) value in
    both. To be used in log space, or after exp: probabilities are 0 there.

    Returns: two tensors (..., C) of logits (..., C) and T > 0, one number or one per item.
    Raises: ValueError, which begins with the name of the calling function: the shapes differ or
    have no class dimension; temperature is not > 0, or its shape is not that of the items.
    """
    student, teacher, dtype = _scaled(name, student, teacher, temperature)
    return F.log_softmax(student, -1, dtype=dtype), F.log_softmax(teacher, -1, dtype=dtype)


def _scaled(
    name: str, student: Tensor, teacher: Tensor, temperature: Temperature
) -> tuple[Tensor, Tensor, torch.dtype]:
    if student.shape != teacher.shape or not student.ndim:
        check_pair(name, student, teacher)
    check_temperature(temperature, student.shape[:-1])
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    student, teacher = common_minimum(student, teacher)
    return (
        over_temperature(student, temperature, dtype),
        over_temperature(teacher, temperature, dtype),
        dtype,
    )


def zero_where_equal(values: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """The values (...), exactly 0 with gradient 0 where student and teacher (..., C) are equal.

    For divergences, whose value and gradient are 0 there but for rounding.

    >>> zero_where_equal(torch.tensor([1e-8, 2.0]), torch.eye(2), torch.tensor([[1.0, 0], [0, 0]]))
    tensor([0., 2.])
    """
    return values.masked_fill((student == teacher).all(-1), 0.0)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_c p (log p - log q) of log-probabilities (..., C) -> (...).

    >>> kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    tensor([0.1438])
    """
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """-Σ_c p log q of log-probabilities (..., C) -> (...).

    >>> cross_entropy(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    tensor([0.8370])
    """
    p = log_p.exp()
    # The gradient of p at a masked class is 0 times finfo.min times any weight above 1: NaN.
    return -(p * log_q.masked_fill(p == 0, 0.0)).sum(-1)


def forward_kl(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, *, t_squared: bool = True
) -> Tensor:
    """T² · KL(p_t ‖ p_s) = T² Σ_c p_t (log p_t - log p_s), with p = softmax(logits / T).

    Mode covering: the student pays wherever the teacher has mass. ``KLDivLoss("batchmean")`` on
    two-dimensional input is the mean over items of our value / T², on input (B, T, C) its sum over
    T; with ``reduction="mean"`` it also divides by C (as DeiT and TinyBERT do).

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; >= 0 up to rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0.
    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531.

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

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; >= 0 up to rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0.
    Source: Gu et al. 2023, "MiniLLM", arXiv:2306.08543.

    >>> reverse_kl(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    tensor([0.4338, 0.0000])
    """
    log_s, log_t = log_probs("reverse_kl", student, teacher, temperature)
    return times_t_squared(kl(log_s, log_t), temperature, t_squared)
