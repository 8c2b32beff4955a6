"""Agreement with the teacher and calibration, as functions on tensors.

They never look at a value on the host and leave dividing to the end, so that results can be summed
over batches and processes. Kullback-Leibler divergences are in :mod:`hf_distill.losses`.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_distill.losses import total_variation
from hf_distill.utils.directions import higher_is_better


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Top-1 agreement: [argmax_c s_c = argmax_c t_c]; among equal logits the first class counts.

    Logits ``(..., C)`` of one shape -> ``(...)``, float32: 1 where they agree, 0 where they do not.

    Reference: Stanton et al., 2021, "Does Knowledge Distillation Really Work?", arXiv:2106.05945.

    >>> agreement(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([[9.0, 0.0], [1.0, 0.0]]))
    tensor([1., 0.])
    """
    _check_same_shape(student_logits, teacher_logits)
    return (student_logits.argmax(-1) == teacher_logits.argmax(-1)).float()


def acceptance(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The chance that the teacher accepts the student's draft of one token: sum_v min(p_v, q_v).

    p and q are the probabilities of teacher and student at the temperature (above 0) at which both
    sample; logits ``(..., V)`` -> ``(...)``, at least float32, in [0, 1]. It is 1 minus their total
    variation distance, whichever of the two drafts. For greedy decoding see :func:`agreement`.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.

    Reference: Leviathan, Kalman and Matias, 2022, "Fast Inference from Transformers via Speculative
    Decoding", arXiv:2211.17192 (definition 3.1 and theorem 3.5).

    >>> acceptance(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([0.6192])
    """
    distance = total_variation(student_logits, teacher_logits, temperature, t_squared=False)
    return (1 - distance).clamp(min=0)


def decision_agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The share of independent yes/no decisions on which student and teacher agree.

    1/C sum_c [(s_c > 0) = (t_c > 0)], for multi-label heads: a logit above 0 is a yes. Logits
    ``(..., C)`` of one shape -> ``(...)``, float32 in [0, 1].

    >>> decision_agreement(torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 3.0]]))
    tensor([0.5000])
    """
    _check_same_shape(student_logits, teacher_logits)
    return ((student_logits > 0) == (teacher_logits > 0)).float().mean(-1)


def calibration_sums(logits: Tensor, labels: Tensor, mask: Tensor, bins: int = 15) -> Tensor:
    """Sums from which :func:`calibration_error` is computed; add them over batches and processes.

    The confidence of an item is its largest softmax probability. Bin b of B holds the items with
    confidence in ((b - 1)/B, b/B].

    Args:
        logits: ``(..., C)``.
        labels: ``(...)``, class ids; anything (-100) where ``mask`` is 0.
        mask: ``(...)``, 1 or True for the items that count; the others may even be NaN.
        bins: number B of bins of equal width.

    Returns:
        ``(3, B)``: number of items, sum of confidences, number of correct items; float64, on MPS
        float32 (which stops counting at 2**24 items).

    Raises:
        ValueError: shapes that do not fit, or ``bins`` below 1.

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 9.0]])
    >>> calibration_sums(logits, torch.tensor([0, -100]), torch.tensor([1, 0]), bins=2)
    tensor([[1.0000, 0.0000],
            [0.5000, 0.0000],
            [1.0000, 0.0000]], dtype=torch.float64)
    """
    items = logits.shape[:-1]
    if labels.shape != items or mask.shape != items:
        raise ValueError(
            f"calibration_sums needs one label and one mask value per item: logits of shape "
            f"{tuple(logits.shape)} want {tuple(items)}, but labels are {tuple(labels.shape)} and "
            f"the mask is {tuple(mask.shape)}. Flatten or reshape them alike."
        )
    if bins < 1:
        raise ValueError(f"calibration_sums needs at least 1 bin, got bins={bins}.")
    logits = logits.reshape(-1, logits.shape[-1])
    top, chosen = logits.max(-1, keepdim=True)
    # exp(top - top) / sum exp(l - top): never above 1. Half precision is promoted on the way.
    top = top.to(torch.promote_types(top.dtype, torch.float32))
    confidence = 1 / (logits - top).exp_().sum(-1)
    correct = chosen.squeeze(-1) == labels.flatten()
    return confidence_sums(confidence, correct, mask, bins)


def confidence_sums(confidence: Tensor, correct: Tensor, mask: Tensor, bins: int = 15) -> Tensor:
    """:func:`calibration_sums` from ``confidence`` ``(...)`` and bool ``correct`` ``(...)``."""
    dtype = counting_dtype(confidence.device)
    counts = mask.flatten().bool()
    confidence = torch.where(counts, confidence.flatten(), 0.0).to(dtype)
    correct = counts & correct.flatten()
    # The inner edges; bucketize gives the i with edge[i - 1] < confidence <= edge[i].
    edges = torch.arange(1, bins, device=confidence.device, dtype=dtype) / bins
    sums = torch.stack([counts.to(dtype), confidence, correct.to(dtype)], dim=1)
    index = torch.bucketize(confidence, edges)
    return sums.new_zeros(bins, 3).index_add_(0, index, sums).T.contiguous()


def counting_dtype(device: torch.device) -> torch.dtype:
    """Accumulator dtype: float64, or float32 on MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def calibration_error(sums: Tensor) -> Tensor:
    """Expected calibration error: ECE = sum_b n_b / n |acc_b - conf_b|, a scalar in [0, 1].

    ``sums`` ``(3, B)`` are those of :func:`calibration_sums`; without items it is 0. The error of a
    perfectly calibrated model is above 0 when items are few (about 0.03 for 1000 binary items in 15
    bins): compare models on the same items only.

    Reference: Guo et al., 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.

    >>> calibration_error(torch.tensor([[0.0, 2.0], [0.0, 1.8], [0.0, 1.0]]))
    tensor(0.4000)
    """
    count, confidence, correct = sums
    # n_b |acc_b - conf_b| is |correct_b - sum of confidences_b|: no division by an empty bin.
    return (correct - confidence).abs().sum() / count.sum().clamp(min=1)


def retention(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, float]:
    """The share of the teacher's result that the student keeps, ``student / teacher``; 1: as good.

    Of metrics by name on the same data, those count that are real numbers of both, of which more is
    known to be better (see `directions`), and of which the teacher's is positive and finite.

    >>> retention({"accuracy": 0.9, "loss": 0.4}, {"accuracy": 1.0, "loss": 0.2})
    {'retention_accuracy': 0.9}
    """
    found = {}
    for name in teacher:
        ours, theirs = number(student.get(name)), number(teacher[name])
        if ours is None or theirs is None or not higher_is_better(name):
            continue
        if 0 < theirs < math.inf:
            found[f"retention_{name}"] = ours / theirs
    return found


def number(value: Any) -> float | None:
    """A real number, of Python, numpy or torch, as a float; None if it is anything else."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return float(value) if real else None


def _check_same_shape(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"Student and teacher must give logits of one shape, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}. Compare them on the same items, with classes in one order."
        )
