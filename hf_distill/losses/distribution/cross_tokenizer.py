"""Distances between distributions over two vocabularies."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.distribution.kl import (
    check_temperature,
    kl,
    over_temperature,
    times_t_squared,
)
from hf_distill.losses.distribution.logits import binary_kl
from hf_distill.losses.numerics import compute_dtype

__all__ = ["merged_kl", "span_kl", "universal_logit_distance"]


def universal_logit_distance(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Σ_i |p_s(i) - p_t(i)|, where p(i) is the i-th largest of softmax(logits / T).

    The Wasserstein distance of order 1 of the two sets of probabilities, the smaller filled up with
    zeros: it compares how sure both are, and not of what.

    Returns: (...) of logits (..., C_s) and (..., C_t), between 0 and 2.
    Raises: ValueError: the shapes differ before the last dimension; temperature is not > 0.
    Source: Boizard et al. 2024, arXiv:2402.12030, for one position.

    >>> universal_logit_distance(torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.2, 0.8]]).log())
    tensor([0.4000])
    """
    ours, theirs = _log_probs("universal_logit_distance", student, teacher, temperature)
    ours, theirs = (x.exp().sort(-1, descending=True).values for x in (ours, theirs))
    wider = max(ours.shape[-1], theirs.shape[-1])
    ours, theirs = (F.pad(x, (0, wider - x.shape[-1])) for x in (ours, theirs))
    return (ours - theirs).abs().sum(-1)


def merged_kl(
    student: Tensor,
    teacher: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    classes: int,
    temperature: float = 1.0,
    *,
    t_squared: bool = True,
) -> Tensor:
    """T² Σ_c P_t(c) log(P_t(c) / P_s(c)), P(c) the sum of softmax(logits / T) over merged classes.

    Args:
        student: logits (..., C_s).
        teacher: logits (..., C_t).
        student_classes: (C_s,) integers: into which class each is merged.
        teacher_classes: (C_t,) the same for the teacher's.
        classes: how many there are after merging; what belongs to none below this is left out, and
            the others have the whole probability.
        temperature: T > 0, of both, before merging.
        t_squared: multiply by T².

    Returns: (...), >= 0 up to rounding.
    Raises: ValueError: the shapes differ before the last dimension; temperature is not > 0.
    Source: Sreenivas et al. 2026, arXiv:2605.21699, whose matrix projects the student's side; here
    both are merged into the tokens that both have.

    >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> merged_kl(student, teacher, torch.tensor([0, 1, 1]), torch.tensor([0, 1]), 2).abs()
    tensor([0.])
    """
    ours, theirs = _log_probs("merged_kl", student, teacher, temperature)
    ours = _merged(ours, student_classes, classes)
    theirs = _merged(theirs, teacher_classes, classes)
    return times_t_squared(kl(theirs, ours), temperature, t_squared)


def span_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """p_t log(p_t / p_s) + (1 - p_t) log((1 - p_t) / (1 - p_s)): KL of this text, and any other.

    A lower bound of the KL between all that either may write instead (data processing inequality).

    Returns: (...) of log-probabilities (...) of some texts, >= 0 up to rounding.

    >>> span_kl(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.5, 0.9]).log())
    tensor([0.0000, 0.3681])
    """
    dtype = compute_dtype(student, teacher)
    sure = -torch.finfo(dtype).eps  # a probability of 1 has an infinite logit
    logits = [x.to(dtype).clamp(max=sure) for x in (student, teacher)]
    ours, theirs = ((x - (-x.expm1()).log()).unsqueeze(-1) for x in logits)
    return binary_kl(ours, theirs)


def _log_probs(
    name: str, student: Tensor, teacher: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / T) of both models, whose classes differ."""
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"{name}: expected logits (..., C_s) and (..., C_t) of the same items, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}; give both the same positions"
        )
    check_temperature(temperature)
    dtype = compute_dtype(student, teacher)
    ours, theirs = (over_temperature(x, temperature, dtype) for x in (student, teacher))
    return F.log_softmax(ours, -1, dtype=dtype), F.log_softmax(theirs, -1, dtype=dtype)


def _merged(log_probs: Tensor, classes: Tensor, count: int) -> Tensor:
    """The log of the sums of probabilities ``(..., C)`` over each class ``(..., count)``, which are
    then brought to 1 again."""
    top = log_probs.detach().amax(-1, keepdim=True)
    masses = log_probs.new_zeros(*log_probs.shape[:-1], count + 1)
    masses = masses.index_add(-1, classes.clamp(max=count), (log_probs - top).exp())
    return masses[..., :count].clamp(min=torch.finfo(masses.dtype).tiny).log().log_softmax(-1)


def summed_over_spans(values: Tensor, spans: Tensor, positions: int) -> Tensor:
    """Sum values ``(B, U)`` by the span indices ``(B, U)``, to ``(B, positions)``."""
    places = spans.masked_fill(spans < 0, positions)
    found = values.new_zeros(len(values), positions + 1)
    return found.scatter_add(1, places, values)[:, :positions]
