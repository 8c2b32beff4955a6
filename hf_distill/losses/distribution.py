"""Distances between the output distributions of student and teacher.

Each function takes logits ``(student, teacher)`` of one shape ``(..., C)`` and returns ``(...)``:
one value per item, summed over the C classes. Nothing is masked or averaged here, and nothing is
detached: a teacher that must not learn comes in without gradient.

Values are in nats. They are computed in log space, in float32 at least (float16 and bfloat16 are
upcast, float64 stays), so saturated logits give finite values and gradients, and a class that each
side masks with the ``torch.finfo(dtype).min`` of its own dtype contributes exactly 0.

The divergences carry Hinton's T², which keeps the size of their gradient about the same for every
temperature. Sources that leave it out (TRL, TextBrewer, DSKD) give our value / T².
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(p_t ‖ p_s) = T² Σ_c p_t (log p_t - log p_s), with p = softmax(logits / T).

    Mode covering: the student pays wherever the teacher has mass. ``KLDivLoss("batchmean")`` on
    two-dimensional input is the mean over items of our value / T²; with ``reduction="mean"`` it
    also divides by C.

    Args:
        student: logits (..., C).
        teacher: logits (..., C).
        temperature: T > 0; above 1 it softens both distributions.

    Returns:
        (...), at least float32, >= 0 up to rounding.

    Raises:
        ValueError: the shapes differ or have no class dimension; temperature is not > 0.

    Reference: Hinton, Vinyals and Dean, 2015, "Distilling the Knowledge in a Neural Network",
        arXiv:1503.02531.

    >>> forward_kl(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    tensor([0.3278, 0.0000])
    """
    log_s, log_t = _log_probs("forward_kl", student, teacher, temperature)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1) * temperature**2


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(p_s ‖ p_t) = T² Σ_c p_s (log p_s - log p_t), with p = softmax(logits / T).

    Mode seeking: the student pays for mass where the teacher has little.

    Args:
        student: logits (..., C).
        teacher: logits (..., C).
        temperature: T > 0; above 1 it softens both distributions.

    Returns:
        (...), at least float32, >= 0 up to rounding.

    Raises:
        ValueError: the shapes differ or have no class dimension; temperature is not > 0.

    Reference: Gu, Dong, Wei and Huang, 2023, "MiniLLM: Knowledge Distillation of Large Language
        Models", arXiv:2306.08543.

    >>> reverse_kl(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    tensor([0.4338, 0.0000])
    """
    log_s, log_t = _log_probs("reverse_kl", student, teacher, temperature)
    return F.kl_div(log_t, log_s, reduction="none", log_target=True).sum(-1) * temperature**2


def jensen_shannon(
    student: Tensor, teacher: Tensor, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """T² · [β KL(p_t ‖ m) + (1 - β) KL(p_s ‖ m)], m = (1 - β) p_s + β p_t, p = softmax(logits / T).

    Between the ends this is at most T² · (-β log β - (1 - β) log(1 - β)), thus T² log 2 at β = 0.5.
    As in TRL's ``generalized_jsd_loss``, ``beta=0`` is exactly :func:`forward_kl` and ``beta=1``
    exactly :func:`reverse_kl`. These are not the limits of the formula, which goes to 0 there (like
    β KL(p_t ‖ p_s) at β -> 0), so the scale jumps at both ends.

    Args:
        student: logits (..., C).
        teacher: logits (..., C).
        beta: β in [0, 1], the teacher's share of the mixture.
        temperature: T > 0; above 1 it softens both distributions.

    Returns:
        (...), at least float32, >= 0 up to rounding.

    Raises:
        ValueError: the shapes differ or have no class dimension; temperature is not > 0; beta is
            outside [0, 1].

    Reference: Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist and Bachem, 2023, "On-Policy
        Distillation of Language Models: Learning from Self-Generated Mistakes", arXiv:2306.13649.

    >>> jensen_shannon(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), beta=0.5)
    tensor([0.0895])
    """
    if not 0 <= beta <= 1:
        raise ValueError(
            f"beta must be in [0, 1], got {beta!r}; 0 is the forward KL, 1 the reverse KL, "
            "0.5 the symmetric Jensen-Shannon divergence"
        )
    if beta == 0:
        return forward_kl(student, teacher, temperature)
    if beta == 1:
        return reverse_kl(student, teacher, temperature)
    log_s, log_t = _log_probs("jensen_shannon", student, teacher, temperature)
    log_m = torch.logaddexp(log_s + math.log1p(-beta), log_t + math.log(beta))
    from_teacher = F.kl_div(log_m, log_t, reduction="none", log_target=True)
    from_student = F.kl_div(log_m, log_s, reduction="none", log_target=True)
    per_class = torch.lerp(from_student, from_teacher, beta)
    # Where both agree, the term and its gradient are 0, but log_m is off by one rounding.
    return per_class.masked_fill(log_s == log_t, 0.0).sum(-1) * temperature**2


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ_c (s_c - t_c)², on the logits themselves.

    There is no temperature: T² · ((s - t) / T)² is the same for every T. Sources that also divide
    by C, like ``MSELoss``, give our value / C; TextBrewer's ``kd_mse_loss`` at temperature T gives
    our value / (C T²). Unlike the divergences it also aligns the constant that softmax ignores.

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
    student, teacher, dtype = _checked("logit_mse", student, teacher)
    return F.mse_loss(student.to(dtype), teacher.to(dtype), reduction="none").sum(-1)


def _checked(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both logits, cut at one common minimum, and the dtype to compute in."""
    if student.shape != teacher.shape or student.ndim == 0:
        raise ValueError(
            f"{name}: expected student and teacher logits of one shape (..., C), got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}; give both the same items and the "
            "same classes in the same order (pad or cut the larger vocabulary)"
        )
    # Masked with finfo.min of two dtypes, a class would differ by up to 1e38, and its gradient
    # (0 times that, times T²) would be NaN.
    lowest_s, lowest_t = torch.finfo(student.dtype).min, torch.finfo(teacher.dtype).min
    if lowest_s < lowest_t:
        student = student.clamp(min=lowest_t)
    elif lowest_t < lowest_s:
        teacher = teacher.clamp(min=lowest_s)
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student, teacher, dtype


def _log_probs(
    name: str, student: Tensor, teacher: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / T) of both, checked."""
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature must be > 0, got {temperature!r}; 1 leaves the distributions as they "
            "are, 2 to 4 is usual, and it must be finite"
        )
    student, teacher, dtype = _checked(name, student, teacher)
    return _log_softmax(student, temperature, dtype), _log_softmax(teacher, temperature, dtype)


def _log_softmax(logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    if temperature != 1:
        logits = logits.to(dtype) / temperature
    if temperature < 1:
        # The division takes finfo.min to -inf, and -inf - -inf is NaN.
        logits = logits.clamp(min=torch.finfo(dtype).min)
    return F.log_softmax(logits, dim=-1, dtype=dtype)
