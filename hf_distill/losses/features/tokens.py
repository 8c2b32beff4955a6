"""Distances between Gram matrices: of the features over positions, or of the tokens over features.

``mask`` (B, T) marks the real tokens with 1. Padded tokens are left out, and nothing that stands in
them has an effect.
"""

import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.features.checks import check_mask, require
from hf_distill.losses.numerics import no_autocast, promoted


def fsp(
    student: Tensor,
    teacher: Tensor,
    student_other: Tensor,
    teacher_other: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """1/(H H') Σ_hh' (F_hh'^s - F_hh'^t)², F = 1/N Σ_n x_n y_nᵀ of two layers x, y at N positions.

    The flow from one layer to another. TextBrewer's ``fsp_loss`` over tokens and RepDistiller's
    ``FSP`` over maps are the mean over examples of our value. Of a model's two maps the larger is
    averaged down to the smaller, as in RepDistiller (the paper takes the maximum). The maps of
    student and teacher may differ in size, but not in width.

    Args:
        student: states (B, T, H), or maps (B, C, h, w), of one layer.
        teacher: the same of the teacher.
        student_other: states (B, T, H') or maps (B, C', h', w') of another layer.
        teacher_other: the same of the teacher.
        mask: (B, T), 1 = real; None = all. Not for maps.

    Returns: (B,), in features to the fourth power; 0 for an example without a real token.
    Raises: ValueError: shapes or mask do not fit.
    Source: Yim et al. 2017, CVPR; on transformers: TextBrewer, Yang et al. 2020, arXiv:2002.12620.

    >>> x, y = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[1.0], [0.0]]])
    >>> fsp(x, x, x, y)  # (5/2 - 1/2)²
    tensor([4.])
    """
    if student.ndim == 4:  # B and C of all, h and w of none
        kept = slice(0, 2)
        fits = mask is None and student_other.shape[:1] == student.shape[:1]
    else:
        kept = slice(0, None)
        fits = student.ndim == 3 and student_other.shape[:2] == student.shape[:2]
    for ours, theirs in ((student, teacher), (student_other, teacher_other)):
        fits = fits and ours.ndim == theirs.ndim == student.ndim
        fits = fits and ours.shape[kept] == theirs.shape[kept]
    others = f"{tuple(student_other.shape)} and {tuple(teacher_other.shape)}"
    require(
        fits,
        "fsp",
        student,
        teacher,
        "of one shape (B, T, H), or maps (B, C, any h, any w) and no mask",
        "give both the same positions, and if the widths differ project the student to the "
        f"teacher's; the other layers have {others}",
    )
    if student.ndim == 3:
        check_mask("fsp", mask, tuple(student.shape[:2]))
    student, teacher, student_other, teacher_other = promoted(
        student, teacher, student_other, teacher_other
    )
    ours, theirs = _flow(student, student_other, mask), _flow(teacher, teacher_other, mask)
    return (ours - theirs).square().mean((1, 2))


def mmd(
    student: Tensor,
    teacher: Tensor,
    student_other: Tensor | None = None,
    teacher_other: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """1/T Σ_j (G_ij^s - G_ij^t)² for each token i, G = x yᵀ / H, over the T real tokens j.

    How the tokens relate, for models of any widths. The mean over the tokens of a sequence is
    TextBrewer's ``mmd_loss`` for it. Over sequences of unequal lengths TextBrewer counts each token
    by the length of its sequence (Σ_b length_b Σ_i value_bi / Σ_b length_b²); the mean over tokens
    does not. It is a variant of neuron selectivity transfer (see :func:`nst`), of tokens in place
    of channels.

    Args:
        student: states (B, T, H).
        teacher: states (B, T, H').
        student_other: y, states (B, T, H) of another layer; None = x.
        teacher_other: y, states (B, T, H') of another layer; None = x.
        mask: (B, T), 1 = real; None = all.

    Returns: (B, T), in features to the fourth power; 0 for padded tokens.
    Raises: ValueError: shapes or mask do not fit.
    Source: TextBrewer, Yang et al. 2020, arXiv:2002.12620.

    >>> mmd(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]))
    tensor([[0.5000, 5.0000]])
    """
    student_other = student if student_other is None else student_other
    teacher_other = teacher if teacher_other is None else teacher_other
    fits = student.ndim == teacher.ndim == 3 and student.shape[:2] == teacher.shape[:2]
    others = f"{tuple(student_other.shape)} and {tuple(teacher_other.shape)}"
    require(
        fits and student_other.shape == student.shape and teacher_other.shape == teacher.shape,
        "mmd",
        student,
        teacher,
        "states of one shape (B, T, any H), and others like them",
        f"give both the same tokens; the others have {others}",
    )
    check_mask("mmd", mask, tuple(student.shape[:2]))
    student, teacher, student_other, teacher_other = (
        _real(x, mask) for x in promoted(student, teacher, student_other, teacher_other)
    )
    with no_autocast(student):
        ours = student @ student_other.transpose(1, 2) / student.shape[-1]
        theirs = teacher @ teacher_other.transpose(1, 2) / teacher.shape[-1]
    squared = (ours - theirs).square()  # 0 wherever one of the tokens is padded
    return squared.sum(-1) / _count(squared, mask).unsqueeze(-1)


def _flow(first: Tensor, second: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, H'): x_n y_nᵀ averaged over the real positions."""
    if first.ndim == 4:
        height, width = (min(first.shape[d], second.shape[d]) for d in (2, 3))
        first, second = (F.adaptive_avg_pool2d(x, (height, width)) for x in (first, second))
        first, second = (x.flatten(2).transpose(1, 2) for x in (first, second))
    first, second = _real(first, mask), _real(second, mask)
    with no_autocast(first):
        return first.transpose(1, 2) @ second / _count(first, mask).unsqueeze(-1).unsqueeze(-1)


def _real(states: Tensor, mask: Tensor | None) -> Tensor:
    """Padded tokens set to 0: NaN there would come back in a product with 0."""
    return states if mask is None else states.masked_fill(~mask.bool().unsqueeze(-1), 0.0)


def _count(states: Tensor, mask: Tensor | None) -> Tensor:
    """(B,) or (1,): the number of real positions, at least 1."""
    if mask is None:
        return states.new_full((1,), float(states.shape[1]))
    return mask.bool().sum(-1).clamp(min=1).to(states.dtype)
