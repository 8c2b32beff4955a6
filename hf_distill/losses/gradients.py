"""Distances between the gradients of student and teacher with respect to their input.

A model's output is projected to one number per example, v·logits, so that one backward gives the
gradient of all examples: make ``v`` with :func:`projection` (the same for both models), the
gradients with :func:`input_gradient`, and compare them with :func:`jacobian`. The student's
gradient needs ``create_graph=True``, and its attention an implementation that can be differentiated
twice (``attn_implementation="eager"``). Values are computed in float32 at least.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.numerics import check_pair, compute_dtype, promoted, unit_vectors

__all__ = ["input_gradient", "jacobian", "projection", "saliency"]

# Below this length a gradient has no direction; the bound of torch's normalize. Input gradients
# are much smaller than hidden states: 1e-9 is common for confident predictions.
_ZERO_NORM = 1e-12


def jacobian(
    student: Tensor, teacher: Tensor, normalize: bool = True, mask: Tensor | None = None
) -> Tensor:
    """1/N Σ_n (ĝ_s - ĝ_t)²_n over the N elements of an example, ĝ = g / ‖g‖ (one norm per example).

    KD-Zoo's Sobolev loss is the mean over the batch of our value. Normalised, it compares
    directions only: it is 2 (1 - cos) / N, at most 4 / N, so it shrinks with the size of the input
    and its weight is large. Without ``normalize`` it is the mean square of g_s - g_t, as in the
    paper up to 1 / N. A gradient of zero (norm up to 1e-12) has direction 0: with another one the
    value is 1 / N, and its own gradient is 0.

    Returns: (B,) of input gradients (B, ...), >= 0. For gradients (B, T, ...) a mask (B, T), 1 =
    real, excludes padding, also from N.
    Raises: ValueError: the shapes differ, or the mask does not fit.
    Source: Czarnecki et al. 2017, arXiv:1706.04859; Srinivas and Fleuret 2018, arXiv:1803.00443.

    >>> jacobian(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 2.0], [0.0, 1.0]]))
    tensor([1., 0.])
    """
    check_pair(
        "jacobian",
        student,
        teacher,
        "gradients",
        "(B, ...)",
        "differentiate both by the same input, or compare saliency() where the embeddings differ",
        min_ndim=2,
    )
    student, teacher = promoted(student, teacher)
    size: float | Tensor = max(math.prod(student.shape[1:]), 1)
    if mask is not None:
        if mask.shape != student.shape[:2]:
            raise ValueError(
                f"jacobian: expected a mask {tuple(student.shape[:2])} for gradients "
                f"{tuple(student.shape)}, got {tuple(mask.shape)}; give the attention mask of "
                "these positions, or leave it out for inputs without padding"
            )
        real = mask.bool()
        size = size / real.shape[1] * real.sum(-1).clamp(min=1)
        padded = ~real.reshape(*real.shape, *[1] * (student.ndim - 2))
        student, teacher = student.masked_fill(padded, 0.0), teacher.masked_fill(padded, 0.0)
    student, teacher = student.flatten(1), teacher.flatten(1)
    if normalize:
        student, teacher = (unit_vectors(x, _ZERO_NORM)[0] for x in (student, teacher))
    return F.mse_loss(student, teacher, reduction="none").sum(-1) / size


def input_gradient(
    logits: Tensor, inputs: Tensor, direction: Tensor, create_graph: bool = True
) -> Tensor:
    """∂(Σ v·logits) / ∂inputs: row b is the gradient of example b's projected output. One backward.

    It holds as long as no output depends on another example's input (no batch norm in training).

    Args:
        logits: (..., C), one or more rows per example, computed from ``inputs``.
        inputs: (B, ...), floating point, with ``requires_grad_()`` set before the forward pass.
        direction: v, of the shape of the logits; or class labels (...), integers: each row's
            gradient is that of its label's logit, and rows of -100 are left out.
        create_graph: the gradient can be differentiated in turn, as the student's must. False (for
            a teacher) frees the graph: nothing can be differentiated through it afterwards.

    Returns: (B, ...): the shape and dtype of ``inputs``.
    Raises: ValueError: the direction does not fit the logits; inputs or logits carry no gradient;
    the logits do not depend on the inputs.

    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    >>> input_gradient(x**2, x, torch.tensor([0, 1]), create_graph=False)
    tensor([[2., 0.],
            [0., 8.]])
    """
    if direction.shape != logits.shape:
        direction = projection(logits, "label", direction)
    if not inputs.requires_grad or not logits.requires_grad:
        raise ValueError(
            "input_gradient: expected inputs and logits that carry a gradient, got requires_grad="
            f"{inputs.requires_grad} and {logits.requires_grad}; call inputs.requires_grad_() "
            "before the forward pass (for text on inputs_embeds) and run it without no_grad"
        )
    dtype = compute_dtype(logits)
    projected = (logits.to(dtype) * direction.to(dtype)).sum()
    (gradient,) = torch.autograd.grad(
        projected, inputs, create_graph=create_graph, allow_unused=True
    )
    if gradient is None:
        raise ValueError(
            "input_gradient: expected logits that were computed from these inputs, got logits that "
            "do not depend on them; pass the tensor that went into the model, not a copy of it"
        )
    return gradient


def projection(
    logits: Tensor,
    kind: Literal["label", "rademacher", "unit"],
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Directions v of the shape of the logits, for :func:`input_gradient`, alike for both models.

    The expected square of a random projection's gradient is that of the whole Jacobian: Σ_c over
    all outputs for ``rademacher``, the mean 1/C Σ_c for ``unit``.

    Args:
        logits: (..., C); only shape, dtype and device count.
        kind: ``label``: one-hot rows. ``rademacher``: independent signs. ``unit``: uniform on the
            unit sphere.
        labels: for ``label``: (...) integers; -100 gives a row of zeros.
        generator: of the random kinds, on the device of the logits.

    Returns: (..., C), without gradient, at least float32.
    Raises: ValueError: an unknown kind; labels that are missing or do not fit.
    Source: Czarnecki et al. 2017, arXiv:1706.04859, section on stochastic approximations.

    >>> projection(torch.zeros(3, 2), "label", torch.tensor([1, 0, -100]))
    tensor([[0., 1.],
            [1., 0.],
            [0., 0.]])
    """
    dtype = compute_dtype(logits)
    if kind == "label":
        if labels is None or labels.shape != logits.shape[:-1] or labels.is_floating_point():
            got = None if labels is None else f"{labels.dtype} of {tuple(labels.shape)}"
            raise ValueError(
                f"projection: expected integer labels {tuple(logits.shape[:-1])} for logits "
                f"{tuple(logits.shape)}, got {got}; give one class per row, or directions of the "
                "shape of the logits"
            )
        known = labels != -100
        rows = torch.zeros(logits.shape, dtype=dtype, device=logits.device)
        index = labels.long().masked_fill(~known, 0).unsqueeze(-1)
        return rows.scatter(-1, index, known.unsqueeze(-1).to(dtype))
    if kind not in ("rademacher", "unit"):
        raise ValueError(
            f"projection: expected kind 'label', 'rademacher' or 'unit', got {kind!r}; 'label' "
            "follows the class of the label, the others cover the whole Jacobian"
        )
    vectors = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    if kind == "rademacher":
        return vectors.bernoulli_(0.5, generator=generator) * 2 - 1
    return unit_vectors(vectors.normal_(generator=generator), _ZERO_NORM)[0]


def saliency(gradient: Tensor) -> Tensor:
    """‖g_t‖ = sqrt(Σ_h g_th²), the length of the input gradient at each position.

    Compares models whose embeddings have other widths: ``jacobian(saliency(s), saliency(t))``. The
    gradient at a length of 0 is 0.

    Returns: (B, T) of (B, T, H), or (...) of (..., H); >= 0.
    Raises: ValueError: there is no dimension to sum over.
    Source: Simonyan et al. 2013, arXiv:1312.6034.

    >>> saliency(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]))
    tensor([[5., 0.]])
    """
    if gradient.ndim == 0:
        raise ValueError(
            "saliency: expected a gradient (B, T, H), got a scalar; give the input gradient with "
            "its feature dimension last"
        )
    return torch.linalg.vector_norm(gradient.to(compute_dtype(gradient)), dim=-1)
