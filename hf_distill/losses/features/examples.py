"""Distances between the relations of the examples of a batch, one value per anchor example.

They are so normalised that the mean over anchors is the original's value. They depend on which
examples share the batch, so another split of the data gives another value. A batch of one has no
relations: the value is 0, with a warning.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.distribution.kl import Temperature, check_temperature, over_temperature
from hf_distill.losses.features.checks import check_form, check_mask, examples, nothing, require
from hf_distill.losses.numerics import no_autocast, unit_vectors


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """1/B Σ_j p_ij^t log((p_ij^t + ε) / (p_ij^s + ε)), p_ij ∝ (1 + cos(x_i, x_j)) / 2 over j.

    KL(p_i^t ‖ p_i^s) / B up to ε, for each anchor i; in the cosine, ‖x‖ + ε stands for ‖x‖. The
    authors' code and RepDistiller's ``PKT`` (whose weight is 30000) are the mean over anchors of
    our value, thus over B² entries, the anchor itself among them. The paper sums over all pairs:
    our mean · B². Zero vectors have cosine 0 with all, and gradient 0. The value is exactly 0 at
    equality, and below 0 by no more than about ε; the gradient at equality is about ε, not 0.

    Returns: (B,) of (B, ...), flattened, whose widths may differ; in nats / B.
    Raises: ValueError: the numbers of examples differ; eps is not > 0.
    Source: Passalis and Tefas 2018, arXiv:1803.10837.

    >>> pkt(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([0.0294, 0.0294])
    """
    if not 0 < eps < math.inf:
        raise ValueError(f"pkt: expected eps > 0, got {eps!r}; 1e-7 is the authors'")
    student, teacher = examples("pkt", student, teacher)
    if len(student) < 2:
        return nothing(student, teacher)
    ours, theirs = _affinities(student, eps), _affinities(teacher, eps)
    return (theirs * ((theirs + eps) / (ours + eps)).log()).mean(-1)


def correlation_congruence(
    student: Tensor,
    teacher: Tensor,
    form: Literal["code", "paper"] = "code",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """B/(B-1) Σ_d |δ_id| |δ_(i+1)d|, δ = s - t, for each anchor i but the last, which gives 0.

    The code that the author gave to RepDistiller (``Correlation``): the mean over anchors of our
    value is its mean over the B - 1 pairs of neighbours in the batch. It depends on the order of
    the examples, and is 0 wherever every other example is matched.

    ``form="paper"`` is 1/B Σ_j (κ(s_i, s_j) - κ(t_i, t_j))², whose mean over anchors is the paper's
    1/B² ‖·‖², with the Gaussian kernel of vectors at L2 norm 1, exp(-γ ‖x - y‖²), in its Taylor
    series up to the order P: κ = e^(-2γ) Σ_{p≤P} (2γ)^p / p! (x·y)^p. It does not depend on the
    order of the examples, and the widths may differ. Zero vectors have x·y = 0 and gradient 0.

    Returns: (B,) of (B, ...), flattened, >= 0; in squared units of the features, in the paper's
    form in none.
    Raises: ValueError: the shapes differ (in the paper's form: the numbers of examples); form is
    unknown; gamma is not > 0 or order not >= 1.
    Source: Peng et al. 2019, arXiv:1904.01802.

    >>> s, t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    >>> correlation_congruence(s, t), correlation_congruence(s, t, form="paper")
    (tensor([4., 0.]), tensor([0.1266, 0.1266]))
    """
    name = "correlation_congruence"
    check_form(name, form)
    if not 0 < gamma < math.inf or order < 1:
        raise ValueError(
            f"{name}: expected gamma > 0 and order >= 1, got {gamma!r} and {order!r}; 0.4 and 2 "
            "are usual"
        )
    if form == "code":
        fits = student.shape == teacher.shape and student.ndim > 1
        remedy = "project the student to the teacher's width, or use form='paper'"
        require(fits, name, student, teacher, "vectors of one shape (B, ...)", remedy)
    student, teacher = examples(name, student, teacher)
    size = len(student)
    if size < 2:
        return nothing(student, teacher)
    if form == "paper":
        ours, theirs = (_gaussian_kernel(x, gamma, order) for x in (student, teacher))
        return (ours - theirs).square().mean(-1)
    sizes = (student - teacher).abs()
    neighbours = (sizes[:-1] * sizes[1:]).sum(-1) * (size / (size - 1))
    return torch.cat([neighbours, neighbours.new_zeros(1)])


def cka(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """B/2 Σ_j (K_ij / ‖K‖ - L_ij / ‖L‖)², K = S Sᵀ and L = T Tᵀ of the centred features.

    The mean over the B anchors is 1 - CKA = 1 - ⟨K, L⟩ / (‖K‖ ‖L‖), the linear centred kernel
    alignment, which no rotation or scaling of the features changes. Features that are the same for
    all examples (up to rounding) have an undefined CKA, taken as 0: the value is 1 and the gradient
    from them 0; if both are, the value is 0. With many more features than examples the CKA of a
    batch is near 1 whatever the features: use large batches.

    Returns: (B,) of (B, ...), flattened, whose widths may differ; >= 0. B is the number of examples
    with mask (B,) 1; the others give 0.
    Raises: ValueError: the numbers of examples differ; the mask does not fit.
    Source: Kornblith et al. 2019, arXiv:1905.00414.

    >>> s, t = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0, 0], [3, 0], [0, 3]])
    >>> cka(s, t)  # on average 1 - CKA = 0.5257
    tensor([0.3757, 0.7000, 0.5013])
    """
    student, teacher = examples("cka", student, teacher)
    check_mask("cka", mask, (len(student),))
    if len(student) < 2:
        return nothing(student, teacher)
    real = None if mask is None else mask.bool().unsqueeze(-1)
    count = torch.full_like(student[:1, :1], len(student)) if real is None else real.sum(0)
    count = count.to(student.dtype).clamp(min=1.0)
    (ours, constant_s), (theirs, constant_t) = (
        _centred_gram(x, real, count) for x in (student, teacher)
    )
    # Two constants are equal; one leaves ½ of the 1 missing.
    values = 0.5 * (count.squeeze() * (ours - theirs).square().sum(-1) + (constant_s != constant_t))
    return values if mask is None else values.masked_fill(~mask.bool(), 0.0)


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


def _affinities(vectors: Tensor, eps: float) -> Tensor:
    """(B, B): the cosines of the examples as probabilities over each row."""
    unit, _ = unit_vectors(vectors)
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    unit = unit * (norm / (norm + eps))
    with no_autocast(vectors):
        similarities = (unit @ unit.transpose(0, 1) + 1) / 2
    similarities = similarities.clamp(min=0.0)  # opposites are below 0 by a rounding
    return similarities / similarities.sum(-1, keepdim=True)


def _gaussian_kernel(vectors: Tensor, gamma: float, order: int) -> Tensor:
    """(B, B): exp(-γ ‖x - y‖²) of unit vectors, as a polynomial of the cosine."""
    unit, _ = unit_vectors(vectors)
    with no_autocast(vectors):
        cosines = unit @ unit.transpose(0, 1)
    kernel = torch.zeros_like(cosines)
    for power in range(order, -1, -1):
        kernel = kernel * cosines + (2 * gamma) ** power / math.factorial(power)
    return math.exp(-2 * gamma) * kernel


def _centred_gram(vectors: Tensor, real: Tensor | None, count: Tensor) -> tuple[Tensor, Tensor]:
    """(B, B) Gram matrix of the centred vectors at Frobenius norm 1, and whether they are constant.

    What is constant up to rounding gives zeros, with gradient 0.
    """
    if real is not None:
        vectors = vectors.masked_fill(~real, 0.0)
    centred = vectors - vectors.sum(0, keepdim=True) / count
    if real is not None:
        centred = centred.masked_fill(~real, 0.0)
    rounding = 4 * torch.finfo(vectors.dtype).eps * vectors.detach().norm()
    scaled, constant = unit_vectors(centred.flatten(), rounding.clamp(min=1e-8))
    scaled = scaled.view_as(vectors)
    with no_autocast(vectors):
        products = scaled @ scaled.transpose(0, 1)
    return unit_vectors(products.flatten())[0].view_as(products), constant
