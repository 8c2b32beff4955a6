"""Losses with an information-theoretic reading: a learned Gaussian, and a contrast in the batch.

Neither is 0 at equality.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.distribution.kl import Temperature, check_temperature, over_temperature
from hf_distill.losses.features.checks import examples, nothing, require
from hf_distill.losses.numerics import check_pair, no_autocast, promoted, unit_vectors


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


def info_nce(student: Tensor, teacher: Tensor, temperature: Temperature = 0.07) -> Tensor:
    """-log softmax_j(cos(s_i, t_j) / T) at j = i: the anchor's own teacher among the batch's.

    Contrastive, in place of CRD, which draws some 16384 negatives per example from a memory of the
    whole data set, separates them with a binary classifier after learned projections of both, and
    adds a second term with student and teacher exchanged (call this one both ways for that). The
    batch's other teachers need neither memory nor indices, but are fewer; log B is what guessing
    costs. T divides cosines, it does not soften an output: there is no T², and the gradient grows
    with 1 / T. Not 0 at equality, as the others in the batch are similar too. Equal examples count
    as each other's negatives. Zero vectors have cosine 0 with all, and gradient 0.

    Not decomposable over batches; a batch of one gives 0 and a warning.

    Returns: (B,) of embeddings (B, ...), flattened, and T > 0, one number or one per anchor; in
    nats, >= 0.
    Raises: ValueError: the shapes differ (project the student to the teacher's width); temperature
    is not > 0.
    Source: van den Oord et al. 2018, arXiv:1807.03748; for distillation: Tian et al. 2019,
    arXiv:1910.10699.

    >>> t = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> info_nce(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), t, temperature=1.0)
    tensor([0.3133, 0.6931])
    """
    fits = student.shape == teacher.shape and student.ndim > 1
    remedy = "give both the same examples, and project the student to the teacher's width"
    require(fits, "info_nce", student, teacher, "embeddings of one shape (B, ...)", remedy)
    check_temperature(temperature, student.shape[:1])
    student, teacher = examples("info_nce", student, teacher)
    if len(student) < 2:
        return nothing(student, teacher)
    (unit_s, _), (unit_t, _) = unit_vectors(student), unit_vectors(teacher)
    with no_autocast(student):
        cosines = unit_s @ unit_t.transpose(0, 1)
    scaled = over_temperature(cosines, temperature, cosines.dtype)
    return -torch.diagonal(F.log_softmax(scaled, dim=-1))
