"""DIST: correlation of the probabilities, within each item and within each class."""

import warnings

import torch
from torch import Tensor

from hf_distill.losses.distribution.kl import Temperature, log_probs, times_t_squared
from hf_distill.losses.numerics import check_pair, unit_vectors

__all__ = ["dist"]


def dist(
    student: Tensor,
    teacher: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: Temperature = 1.0,
    *,
    eps: float = 1e-8,
    mask: Tensor | None = None,
    t_squared: bool = True,
) -> Tensor:
    """T² · [β (1 - ρ_b) + γ/C Σ_c (N r_c ½ (ẑ_s,bc - ẑ_t,bc)² + 1 - r_c)] for item b of N.

    p = softmax(logits / T); ρ_b is Pearson's correlation of p_s,b and p_t,b over the classes; ẑ_·c
    are the N probabilities of class c, centred and of length 1, and r_c = k / (k + eps) with k the
    product of their two lengths. Since ½ ‖ẑ_s,c - ẑ_t,c‖² = 1 - ρ_c, the mean over the items is the
    original's β (1 - mean_b ρ_b) + γ (1 - mean_c ρ_c). The second part compares the items of a
    batch with each other: it is **not** the mean over the parts of a split batch.

    As in the original, eps takes correlations of classes of very low probability (and ρ_b alike)
    towards 0, so that two nearly equal vectors are at up to eps / k; ``eps=0`` is the paper's. What
    is equal has the value 0 whatever eps, and so have two constants. The correlation of a constant
    (such as a class all items have alike) with anything else is 0.

    Args:
        student: logits (..., C); all leading dimensions are items.
        teacher: logits (..., C).
        beta: β, the weight of the correlation within items. With two classes it is always ±1.
        gamma: γ, the weight of the correlation within classes.
        temperature: T > 0, one number or one per item.
        eps: added to the product of the two lengths in a correlation.
        mask: (...) bool or int, 1 = an item that counts; the others have the value 0.
        t_squared: multiply by T².

    Returns: (...), >= 0. One item alone has no correlation within classes: 0, and a UserWarning.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0; beta >
    0 with C <= 2.
    Source: Huang et al. 2022, arXiv:2205.10536.

    >>> student = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> dist(student, torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 1.0, 0.0]]))
    tensor([2.7251, 3.0349, 0.9677])
    """
    check_pair("dist", student, teacher)
    classes = student.shape[-1]
    if beta > 0 and classes <= 2:
        raise ValueError(
            f"dist: expected three classes or more with beta > 0, got {classes}; the correlation "
            "of two probabilities is always 1 or -1, so its gradient is 0 and nothing would be "
            "learned: set beta=0 (correlation within classes only), or use forward_kl"
        )
    real = _real(student, mask)
    if gamma > 0 and real.numel() == 1:
        warnings.warn(
            "dist: the correlation within classes compares the items of a batch, and this batch "
            "has one: it is 0 here. Use a larger batch per device, and dataloader_drop_last=True.",
            stacklevel=2,
        )
    student, teacher = (x.masked_fill(~real.unsqueeze(-1), 0.0) for x in (student, teacher))
    log_s, log_t = log_probs("dist", student, teacher, temperature)
    p_s, p_t = log_s.exp(), log_t.exp()
    values = beta * _within_items(p_s, p_t, eps) + gamma * _within_classes(p_s, p_t, real, eps)
    return times_t_squared(values.masked_fill(~real, 0.0), temperature, t_squared)


def _real(student: Tensor, mask: Tensor | None) -> Tensor:
    """Mask (...) of the counted items."""
    items = student.shape[:-1]
    if mask is None:
        return torch.ones(items, dtype=torch.bool, device=student.device)
    if mask.shape != items:
        raise ValueError(
            f"dist: expected a mask of shape {tuple(items)}, one number per item, got "
            f"{tuple(mask.shape)}; give 1 for the items that count"
        )
    return mask.bool()


def _within_items(p_s: Tensor, p_t: Tensor, eps: float) -> Tensor:
    """1 - ρ over the last dimension."""
    squares, ratio = _compared(
        p_s - p_s.mean(-1, keepdim=True), p_t - p_t.mean(-1, keepdim=True), p_s, p_t, eps
    )
    return ratio * 0.5 * squares.sum(-1) + (1 - ratio)


def _within_classes(p_s: Tensor, p_t: Tensor, real: Tensor, eps: float) -> Tensor:
    """Each item's share (...) of 1 - ρ over the real items, times their number; mean over C."""
    kept = real.reshape(-1).to(p_s.dtype)
    number = kept.sum().clamp(min=1.0)
    columns_s, columns_t = (p.reshape(-1, p.shape[-1]).T * kept for p in (p_s, p_t))
    centred_s, centred_t = (
        (p - p.sum(-1, keepdim=True) / number) * kept for p in (columns_s, columns_t)
    )
    squares, ratio = _compared(centred_s, centred_t, columns_s, columns_t, eps)
    shares = number * 0.5 * (ratio.unsqueeze(-1) * squares).mean(0) + (1 - ratio).mean()
    return shares.reshape(real.shape)


def _compared(
    centred_s: Tensor, centred_t: Tensor, p_s: Tensor, p_t: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(ẑ_s - ẑ_t)² (..., N), and k / (k + eps) (...), 1 where both are equal or constant.

    A vector counts as constant where centring leaves only rounding.
    """
    (unit_s, length_s), (unit_t, length_t) = (
        _direction(centred, p) for centred, p in ((centred_s, p_s), (centred_t, p_t))
    )
    same = ((length_s == 0) & (length_t == 0)) | (unit_s == unit_t).all(-1)
    product = length_s * length_t
    ratio = product / (product + eps).masked_fill(product == 0, 1.0)
    return (unit_s - unit_t).square(), ratio.masked_fill(same, 1.0)


def _direction(centred: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The centred vectors at length 1, and their lengths; both 0 where the vector is constant."""
    noise = 8 * torch.finfo(vectors.dtype).eps * torch.linalg.vector_norm(vectors.detach(), dim=-1)
    bound = noise.clamp(min=1e-12).unsqueeze(-1)
    unit, constant = unit_vectors(centred, bound)
    return unit, torch.linalg.vector_norm(centred, dim=-1).masked_fill(constant, 0.0)
