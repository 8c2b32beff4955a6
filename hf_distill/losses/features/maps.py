"""Distances between feature maps (B, C, *positions): one value per example.

A map's positions are pixels, patches or frames; nothing is masked here, so sequences with padding
are compared by the losses over states and tokens.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.features.checks import check_form, require
from hf_distill.losses.numerics import check_pair, no_autocast, promoted, unit_vectors

# Features this small are a dead map; same bound as for zero vectors.
_ZERO = 1e-8
_MAPS = "(B, C, *positions)"
_REMEDY = (
    "project the student to the teacher's channels, and pool the larger map to the positions of "
    "the smaller"
)


def hint_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over channels and positions of (s - t)².

    RepDistiller's ``HintLoss`` is the mean over examples of our value. The paper's ½‖s - t‖² is our
    value · C · positions / 2.

    Returns: (B,) of maps (B, C, *positions), in squared units of the features.
    Raises: ValueError: the shapes differ (project the student's channels) or have no channels.
    Source: Romero et al. 2014, "FitNets", arXiv:1412.6550.

    >>> hint_mse(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 4.0]]]))
    tensor([2.])
    """
    check_pair("hint_mse", student, teacher, "maps", _MAPS, _REMEDY, min_ndim=2)
    student, teacher = promoted(student, teacher)
    return _mean_square(student - teacher)


def attention_transfer(
    student: Tensor, teacher: Tensor, p: float = 2, form: Literal["code", "paper"] = "code"
) -> Tensor:
    """1/N Σ_n (q_n^s - q_n^t)², q = a / ‖a‖, a_n = 1/C Σ_c |f_cn|^p, at N positions.

    The form of the authors' code and of RepDistiller (``Attention.at_loss``), whose weights (1000)
    are for it. ``form="paper"`` is ‖q^s - q^t‖ (not squared, not averaged; β/2 is left to the
    weight), the square root of N · our default. Whether a is a sum or a mean over the channels
    makes no difference; a larger p looks at the strongest activations only. A map that is zero (up
    to 1e-8) everywhere has q = 0 and gradient 0.

    Returns: (B,) of maps (B, any C, *positions), in [0, 2 / N]; in the paper's form in [0, √2].
    Raises: ValueError: batch or positions differ; p < 1; form is unknown.
    Source: Zagoruyko and Komodakis 2016, arXiv:1612.03928.

    >>> s, t = torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]])
    >>> attention_transfer(s, t), attention_transfer(s, t, form="paper")
    (tensor([0.0862]), tensor([0.4152]))
    """
    check_form("attention_transfer", form)
    if not 1 <= p < math.inf:
        raise ValueError(f"attention_transfer: expected p >= 1, got {p!r}; 2 is usual")
    _check_positions("attention_transfer", student, teacher)
    student, teacher = promoted(student, teacher)
    difference = _energies(student, p) - _energies(teacher, p)
    if form == "paper":
        return torch.linalg.vector_norm(difference, dim=-1)
    return difference.square().mean(-1)


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """E k(t, t') + E k(s, s') - 2 E k(s, t), k(a, b) = (a·b)², of channels a, b at L2 norm 1.

    The squared maximum mean discrepancy of the two sets of channels, each a vector over the
    positions, with the polynomial kernel of degree 2; the means are over all pairs of channels of
    an example. RepDistiller's ``NSTLoss`` is the mean over examples of our value. Dead channels
    (norm up to 1e-8) are 0, with gradient 0.

    Computed as ‖1/C Σ_c s_c s_cᵀ - 1/C' Σ_c t_c t_cᵀ‖², which is the same but never below 0 and
    exactly 0 at equality; where there are more positions than channels, from products of channels.

    Returns: (B,) of maps (B, any C, *positions), in [0, 2].
    Raises: ValueError: batch or positions differ.
    Source: Huang and Wang 2017, arXiv:1707.01219.

    >>> nst(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]]))
    tensor([0.5000])
    """
    _check_positions("nst", student, teacher)
    student, teacher = promoted(student, teacher)
    channels = max(student.shape[1], teacher.shape[1])
    student, teacher = (
        unit_vectors(x.flatten(2))[0] / math.sqrt(x.shape[1]) for x in (student, teacher)
    )
    with no_autocast(student):
        if student.shape[-1] <= channels:
            moments_s, moments_t = (x.transpose(1, 2) @ x for x in (student, teacher))
            return (moments_s - moments_t).square().sum((1, 2))
        # With u = s + t, v = s - t: sᵀs - tᵀt = ½ (uᵀv + vᵀu).
        student, teacher = (F.pad(x, (0, 0, 0, channels - x.shape[1])) for x in (student, teacher))
        u, v = student + teacher, student - teacher
        uu, vv, uv = (a @ b.transpose(1, 2) for a, b in ((u, u), (v, v), (u, v)))
    return 0.5 * (uu * vv + uv * uv.transpose(1, 2)).sum((1, 2))


def review_hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ_l w_l MSE(pool_l(s), pool_l(t)) / Σ_l w_l: full size with weight 1, then 4, 2, 1 with ½ w.

    ReviewKD's hierarchical context loss (``hcl_loss`` of mdistiller and of the authors is the mean
    over examples of our value, summed over the layers). pool_l averages to l × l; a level is left
    out, and the weight not halved, unless l < h.

    Returns: (B,) of maps (B, C, h, w), in squared units of the features.
    Raises: ValueError: the shapes differ (project the student's channels) or are not of four
    dimensions.
    Source: Chen et al. 2021, arXiv:2104.09044.

    >>> review_hcl(torch.tensor([[[[1.0, 1.0], [1.0, -3.0]]]]), torch.zeros(1, 1, 2, 2))
    tensor([2.])
    """
    fits = student.shape == teacher.shape and student.ndim == 4
    require(fits, "review_hcl", student, teacher, "maps of one shape (B, C, h, w)", _REMEDY)
    student, teacher = promoted(student, teacher)
    difference = student - teacher  # pooling is linear
    values, weight, total = _mean_square(difference), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            total += weight
            values = values + weight * _mean_square(F.adaptive_avg_pool2d(difference, size))
    return values / total


def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Mean over channels and positions of max(0, m - s)² where t > 0, and of max(0, m + s)² else.

    A hinge on the sign of each neuron: the student is to fire where the teacher does, by the margin
    m, however strongly the teacher fires. So it is not 0 at equality, and the teacher gets no
    gradient. To be taken before the activation function (a teacher after a ReLU gives the same
    signs, a student does not). The paper sums over the neurons: RepDistiller's ``ABLoss`` of one
    layer is the mean over examples of our value · C · positions · 0.003.

    Returns: (B,) of maps (B, C, *positions), >= 0.
    Raises: ValueError: the shapes differ (project the student's channels) or have no channels;
    margin is not > 0.
    Source: Heo et al. 2018, arXiv:1811.03233.

    >>> activation_boundary(torch.tensor([[0.5, 3.0, -0.5]]), torch.tensor([[2.0, 0.1, 1.0]]))
    tensor([0.8333])
    """
    if not 0 < margin < math.inf:
        raise ValueError(f"activation_boundary: expected a margin > 0, got {margin!r}; 1 is usual")
    check_pair("activation_boundary", student, teacher, "maps", _MAPS, _REMEDY, min_ndim=2)
    student, teacher = promoted(student, teacher)
    return _mean_square(F.relu(margin - torch.where(teacher > 0, student, -student)))


def vid(student: Tensor, teacher: Tensor, log_scale: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean over channels c and positions of ½ ((μ_c - t_c)² / σ_c² + log σ_c²).

    σ_c² = softplus(log_scale_c) + ε. The negative log-likelihood (without ½ log 2π) of the
    teacher's features under a Gaussian whose mean μ the student predicts: minimising it over both
    raises a bound of their mutual information. It is ½ log σ² at equality, thus not 0 and below 0
    once σ < 1. RepDistiller's ``VIDLoss`` is the mean over examples of our value, with log_scale =
    log(e^(5 - ε) - 1) (σ² = 5) at the start.

    Returns: (B,) of maps (B, C, *positions), the student's being the prediction μ, and log_scale
    (C,); in nats per feature.
    Raises: ValueError: the shapes differ; log_scale is not (C,); eps is not > 0.
    Source: Ahn et al. 2019, arXiv:1904.05835.

    >>> scale = torch.tensor([1.0]).expm1().log()  # σ² = 1
    >>> vid(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 4.0]]]), scale)
    tensor([1.0000])
    """
    remedy = "predict the teacher's map from the student's, with its channels and positions"
    check_pair("vid", student, teacher, "maps", "(B, C, *positions)", remedy, min_ndim=2)
    if log_scale.shape != student.shape[1:2]:
        raise ValueError(
            f"vid: expected a log_scale {tuple(student.shape[1:2])}, got {tuple(log_scale.shape)}; "
            "give one per channel of the teacher"
        )
    if not 0 < eps < math.inf:
        raise ValueError(f"vid: expected eps > 0, got {eps!r}; 1e-5 is usual")
    student, teacher, log_scale = promoted(student, teacher, log_scale)
    variance = F.softplus(log_scale) + eps
    variance = variance.unflatten(0, (-1, *[1] * (student.ndim - 2)))
    squared = (student - teacher).square()
    return 0.5 * (squared / variance + variance.log()).flatten(1).mean(-1)


def _check_positions(name: str, student: Tensor, teacher: Tensor) -> None:
    fits = student.ndim > 2 and teacher.ndim > 2
    fits = fits and len(student) == len(teacher) and student.shape[2:] == teacher.shape[2:]
    remedy = "give both the same examples, and pool the larger map to the positions of the smaller"
    require(fits, name, student, teacher, "maps of one shape (B, any C, *positions)", remedy)


def _mean_square(maps: Tensor) -> Tensor:
    return maps.square().flatten(1).mean(-1)


def _energies(maps: Tensor, p: float) -> Tensor:
    """(B, N): mean over the channels of |f|^p, at L2 norm 1."""
    sizes = maps.flatten(2).abs()
    # A constant factor changes nothing in the end, and keeps powers from under- and overflowing.
    peak = sizes.detach().amax((1, 2), keepdim=True)
    dead = peak <= _ZERO
    sizes = (sizes / peak.masked_fill(dead, 1.0)).masked_fill(dead, 0.0)
    return unit_vectors(sizes.pow(p).mean(1))[0]
