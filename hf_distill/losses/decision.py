"""Distances between the decisions of student and teacher: predicted class and margin.

Each function takes logits ``(student, teacher)`` of one shape ``(..., C)`` and returns ``(...)``:
one value per item, summed over the C classes. The teacher's choice is its most likely class (of
equals, the first). Nothing is detached unless stated. Values are computed in float32 at least.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.distribution.kl import (
    Temperature,
    common_minimum,
    kl,
    log_probs,
    times_t_squared,
)
from hf_distill.losses.numerics import check_pair, promoted

__all__ = ["boundary", "confidence_weighted_kl", "hard_teacher_labels", "label_agreement"]
__all__ += ["margin", "probability_mse"]


def hard_teacher_labels(student: Tensor, teacher: Tensor) -> Tensor:
    """-log p_s[argmax t], the cross-entropy with the teacher's choice as the label.

    DeiT's hard distillation is the mean over items of our value. It is not 0 at equality, but only
    where the student is sure; the teacher gets no gradient, since an argmax has none.

    Returns: (...) of logits (..., C), in nats, >= 0.
    Raises: ValueError: the shapes differ or have no class dimension.
    Source: Touvron et al. 2020, arXiv:2012.12877.

    >>> hard_teacher_labels(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
    tensor([0.6931])
    """
    log_s, _ = log_probs("hard_teacher_labels", student, teacher)
    return -_at(log_s, teacher.argmax(-1))


def confidence_weighted_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: Temperature = 1.0,
    power: float = 1.0,
    t_squared: bool = True,
) -> Tensor:
    """w · T² · KL(p_t ‖ p_s), p = softmax(logits / T), w = (max_c softmax(t)_c)^power at T = 1.

    The student follows the teacher where the teacher is confident. The weight is detached (a
    trained teacher cannot lower the loss by being less confident) and lies in [C^-power, 1]: a
    power of 0 is the plain forward KL.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; in nats, >= 0 up to
    rounding.
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0; power
    is negative.
    Source: the KL divergence is that of Hinton et al. 2015, arXiv:1503.02531; the weight is ours.

    >>> confidence_weighted_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([0.2887])
    """
    if not power >= 0:
        raise ValueError(
            f"power must be >= 0, got {power!r}; 0 weights all items alike, and a negative power "
            "would weight what the teacher is unsure of"
        )
    log_s, log_t = log_probs("confidence_weighted_kl", student, teacher, temperature)
    log_confidence = F.log_softmax(teacher.detach().to(log_t.dtype), dim=-1).amax(-1)
    weighted = kl(log_t, log_s) * (power * log_confidence).exp()
    return times_t_squared(weighted, temperature, t_squared)


def label_agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - p_s[argmax t]: the probability that a draw from the student is not the teacher's choice.

    The expected disagreement, a bounded form of :func:`hard_teacher_labels` that is less upset by
    wrong teachers; where the student is sure of another class its gradient vanishes. It is not 0 at
    equality, but only where the student is sure. The teacher gets no gradient.

    Returns: (...) of logits (..., C), in [0, 1].
    Raises: ValueError: the shapes differ or have no class dimension.
    Source: Ghosh et al. 2017, arXiv:1712.09482 (the mean absolute error with a label is twice
    this).

    >>> label_agreement(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 2.0], [5, 0]]))
    tensor([0.5000, 0.1192])
    """
    log_s, _ = log_probs("label_agreement", student, teacher)
    return -torch.expm1(_at(log_s, teacher.argmax(-1)))


def margin(student: Tensor, teacher: Tensor) -> Tensor:
    """((s_a - s_b) - (t_a - t_b))², a and b the teacher's two most likely classes.

    How far each model is from its decision boundary between the two, in logits. The other classes
    have no part; scale and constant of the logits are the teacher's.

    Returns: (...) of logits (..., C), C >= 2, in squared logits.
    Raises: ValueError: the shapes differ; there are fewer than two classes.
    Source: between passages instead of classes, Hofstätter et al. 2020, arXiv:2010.02666.

    >>> margin(torch.tensor([[1.0, 0.0, 7.0]]), torch.tensor([[3.0, 5.0, 0.0]]))
    tensor([9.])
    """
    student, teacher = _checked("margin", student, teacher)
    if student.shape[-1] < 2:
        raise ValueError(
            f"margin: expected at least 2 classes, got {tuple(student.shape)}; a single logit has "
            "no margin: align it with logit_mse"
        )
    best_t, classes = teacher.topk(2, dim=-1)
    best_s = student.gather(-1, classes)
    return ((best_s - best_t)[..., 0] - (best_s - best_t)[..., 1]).square()


def boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Σ_{c≠y} max(0, min(m, t_y - t_c) - (s_y - s_c))², y = argmax t, m the margin.

    The student has to lie on the teacher's side of each decision boundary, at the margin or at the
    teacher's own distance, where that is less. Thus it is exactly 0 at equality, and wherever the
    student's margin suffices.

    Returns: (...) of logits (..., C), in squared logits.
    Raises: ValueError: the shapes differ or have no class dimension; margin is not > 0.
    Source: with neurons instead of classes, Heo et al. 2018, arXiv:1811.03233.

    >>> boundary(torch.tensor([[0.0, 0.5, 0.0]]), torch.tensor([[4.0, 0.0, 3.5]]))
    tensor([2.5000])
    """
    if not margin > 0:
        raise ValueError(
            f"margin must be > 0, got {margin!r}; it is the distance in logits at which the "
            "student is sure enough, 1 is usual"
        )
    student, teacher = _checked("boundary", student, teacher)
    choice = teacher.argmax(-1, keepdim=True)
    distance_s = student.gather(-1, choice) - student
    distance_t = teacher.gather(-1, choice) - teacher
    return F.relu(distance_t.clamp(max=margin) - distance_s).square().sum(-1)


def probability_mse(
    student: Tensor, teacher: Tensor, temperature: Temperature = 1.0, t_squared: bool = True
) -> Tensor:
    """T² · Σ_c (p_s - p_t)², with p = softmax(logits / T).

    With a label for the teacher it is the Brier score. At most 2 T²: a few items on which the
    models disagree do not outweigh the others, but where the student is sure of another class its
    gradient vanishes. ``MSELoss`` on probabilities is our value / (C T²). On logits it is
    ``logit_mse``.

    Returns: (...) of logits (..., C) and T > 0, one number or one per item; in [0, 2 T²].
    Raises: ValueError: the shapes differ or have no class dimension; temperature is not > 0.
    Source: on logits Ba and Caruana 2013, arXiv:1312.6184.

    >>> probability_mse(torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, 0.0]]))
    tensor([0.4998])
    """
    log_s, log_t = log_probs("probability_mse", student, teacher, temperature)
    squared = (log_s.exp() - log_t.exp()).square().sum(-1)
    return times_t_squared(squared, temperature, t_squared)


def _at(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(-1, classes.unsqueeze(-1)).squeeze(-1)


def _checked(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    """Both logits in one dtype, cut at one common minimum."""
    check_pair(name, student, teacher)
    return promoted(*common_minimum(student, teacher))
