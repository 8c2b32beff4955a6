"""Distances between relations: among the examples of a batch, or among candidates.

The first four compare the examples of a batch with each other. Their values ``(B,)`` are one per
anchor example, so normalised that the mean over anchors is the original's value; they depend on
which examples share the batch, so another split of the data gives another value. Vectors of student
and teacher may differ in size. Nothing is detached; values are computed in float32 at least.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.distribution.kl import (
    Temperature,
    check_temperature,
    kl,
    over_temperature,
    times_t_squared,
)
from hf_distill.losses.features.checks import examples
from hf_distill.losses.numerics import check_pair, no_autocast, promoted, unit_vectors

__all__ = ["in_batch_similarity", "margin_mse", "rkd", "similarity_preserving"]

# Examples that are this near are equal; same bound as for zero vectors.
_ZERO_DISTANCE = 1e-8


def rkd(
    student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """distance_weight · distances + angle_weight · angles, for each anchor i.

    Distances: 1/B Σ_j huber(d_ij^s / mean d^s - d_ij^t / mean d^t), d_ij = ‖x_i - x_j‖, with the
    mean of d over the B (B - 1) pairs of different examples. Angles: 1/B² Σ_jk huber(cos ∠_jik^s -
    cos ∠_jik^t), at each anchor between j and k. huber is the smooth L1 loss with β = 1.

    As in the code of the authors (and RepDistiller, whose weights are the defaults), the means
    count the anchor itself, so the paper's mean over pairs of distances is our value · B / (B - 1),
    and the B² pairs (j, k) include those with the anchor (cosine 0 in both models) and j = k
    (cosine 1). Equal examples have distance and cosine 0 and no gradient. It takes B² · D and B³
    numbers. A batch of one gives 0 and a warning.

    Returns: (B,) of (B, ...), flattened, >= 0.
    Raises: ValueError: the numbers of examples differ.
    Source: Park et al. 2019, arXiv:1904.05068.

    >>> s, t = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0, 0], [3, 0], [0, 3]])
    >>> rkd(s, t)
    tensor([ 7.2330, 14.4925,  3.0963])
    """
    student, teacher = examples("rkd", student, teacher)
    distances, angles = _distances(student, teacher), _angles(student, teacher)
    return distance_weight * distances + angle_weight * angles


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """1/B Σ_j (G_ij^s - G_ij^t)², G = X Xᵀ with rows of L2 norm 1, for each anchor i.

    RepDistiller's ``Similarity``, verified by the author, is the mean over anchors of our value:
    Σ_ij / B². (torchdistill's norm is L1, which is another loss.) An example of zero has a row of
    zeros, and no gradient from it. A batch of one gives 0 and a warning.

    Returns: (B,) of (B, ...), flattened, in [0, 4 / B].
    Raises: ValueError: the numbers of examples differ.
    Source: Tung and Mori 2019, arXiv:1907.09682.

    >>> similarity_preserving(torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [1, 0]]))
    tensor([0.2929, 0.2929])
    """
    student, teacher = examples("similarity_preserving", student, teacher)
    return (_similarities(student) - _similarities(teacher)).square().mean(-1)


def in_batch_similarity(
    student: Tensor, teacher: Tensor, temperature: Temperature = 0.05, t_squared: bool = False
) -> Tensor:
    """KL(q_i^t ‖ q_i^s), q_i = softmax over j≠i of cos(x_i, x_j) / T, for each anchor i.

    CompRess and SEED compare with a queue of past examples, this with the others of the batch.
    Unlike in the other losses T² is left out by default, as in both: T is the scale of the cosines
    (as in contrastive learning), not a softening of logits that the model was trained with, and T²
    of 0.05 would make the loss 400 times smaller. Zero vectors have cosine 0 and gradient 0. A
    batch of one or two gives 0 and a warning: without the anchor too few examples remain for a
    distribution.

    Returns: (B,) of embeddings (B, D) and (B, D') and T > 0, one number or one per anchor; in nats,
    >= 0 up to rounding.
    Raises: ValueError: the numbers of examples differ; temperature is not > 0.
    Source: CompRess, Abbasi Koohpayegani et al. 2020, arXiv:2010.14713; SEED, Fang et al. 2021,
    arXiv:2101.04731.

    >>> s, t = torch.tensor([[1.0, 0], [1, 0], [0, 1]]), torch.tensor([[1.0, 0], [0, 1], [0, 1]])
    >>> in_batch_similarity(s, t, temperature=1.0)
    tensor([0.1201, 0.4621, 0.1109])
    """
    student, teacher = examples("in_batch_similarity", student, teacher, least=3)
    check_temperature(temperature, student.shape[:1])
    log_s, log_t = (_log_neighbours(x, temperature) for x in (student, teacher))
    return times_t_squared(kl(log_t, log_s), temperature, t_squared)


def margin_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """1/(C-1) Σ_{j≥1} ((s_0 - s_j) - (t_0 - t_j))², of C candidates, the first the positive.

    The mean over queries of our value is sentence-transformers' ``MarginMSELoss`` with C - 1
    negatives. A constant added to all scores of a query has no effect, a factor does: a teacher
    whose scores are squashed to [0, 1] gives a weak signal.

    Returns: (...) of scores (..., C), C >= 2, in squared scores.
    Raises: ValueError: the shapes differ; there are fewer than two candidates.
    Source: Hofstätter et al. 2020, arXiv:2010.02666.

    >>> margin_mse(torch.tensor([[5.0, 1.0, 2.0]]), torch.tensor([[9.0, 3.0, 6.0]]))
    tensor([2.])
    """
    remedy = "give both the same queries and the same candidates in the same order"
    check_pair("margin_mse", student, teacher, "scores", "(..., C)", remedy)
    if student.shape[-1] < 2:
        raise ValueError(
            "margin_mse: expected a positive and at least one negative candidate per query, got "
            f"scores {tuple(student.shape)}; put the candidates of a query in the last dimension"
        )
    student, teacher = promoted(student, teacher)
    difference = student - teacher
    return (difference[..., :1] - difference[..., 1:]).square().mean(-1)


def _distances(student: Tensor, teacher: Tensor) -> Tensor:
    scaled_s, scaled_t = (_scaled_distances(x) for x in (student, teacher))
    return F.smooth_l1_loss(scaled_s, scaled_t, reduction="none").mean(-1)


def _scaled_distances(vectors: Tensor) -> Tensor:
    """(B, B) distances, divided by their mean over different examples; gradient 0 where they are 0.

    From differences: |a|² + |b|² - 2ab loses every digit where examples are near.
    """
    with no_autocast(vectors):
        exact = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(vectors, vectors, compute_mode=exact)
    pairs = len(vectors) * (len(vectors) - 1)
    mean = distances.sum() / max(pairs, 1)
    equal = mean <= _ZERO_DISTANCE
    return (distances / mean.masked_fill(equal, 1.0)).masked_fill(equal, 0.0)


def _angles(student: Tensor, teacher: Tensor) -> Tensor:
    cosines_s, cosines_t = (_cosines_at_anchors(x) for x in (student, teacher))
    return F.smooth_l1_loss(cosines_s, cosines_t, reduction="none").mean((-2, -1))


def _cosines_at_anchors(vectors: Tensor) -> Tensor:
    """(B, B, B): at [i, j, k] the cosine of the angle at i between j and k."""
    towards, _ = unit_vectors(vectors.unsqueeze(0) - vectors.unsqueeze(1), _ZERO_DISTANCE)
    with no_autocast(vectors):
        return towards @ towards.transpose(-1, -2)


def _similarities(vectors: Tensor) -> Tensor:
    """(B, B) products of the examples, each row at L2 norm 1."""
    # x_i at length 1 cancels in its row, and keeps it far from under- and overflow.
    unit, _ = unit_vectors(vectors)
    with no_autocast(vectors):
        rows, _ = unit_vectors(unit @ vectors.transpose(-1, -2))
    return rows


def _log_neighbours(vectors: Tensor, temperature: Temperature) -> Tensor:
    """(B, B) log softmax over the other examples of cosine / T; the diagonal has no mass."""
    unit, _ = unit_vectors(vectors)
    with no_autocast(vectors):
        cosines = unit @ unit.transpose(-1, -2)
    scaled = over_temperature(cosines, temperature, cosines.dtype)
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    return F.log_softmax(scaled.masked_fill(itself, torch.finfo(scaled.dtype).min), -1)
