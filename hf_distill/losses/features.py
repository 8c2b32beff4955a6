"""Distances between hidden states of student and teacher.

Each function takes hidden states ``(student, teacher)`` of one shape ``(..., H)`` and returns
``(...)``: one value per item (per token, patch or frame). Nothing is masked or averaged over items
here, and nothing is detached. Where the widths differ, project the student first. Values are
computed in float32 at least (float16 and bfloat16 are upcast, float64 stays).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# A vector this short has no direction; same bound as torch's cosine_similarity.
_ZERO_NORM = 1e-8


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """1/H · Σ_h (s_h - t_h)², the mean over the H features.

    The scale of TextBrewer's ``hid_mse_loss``, TinyBERT and ``MSELoss``. The squared distance of a
    paper that sums over features is our value · H; FitNets' ½‖s - t‖² is our value · H / 2.

    Args:
        student: hidden states (..., H), projected to the teacher's width.
        teacher: hidden states (..., H).

    Returns:
        (...), at least float32, in squared units of the features.

    Raises:
        ValueError: the shapes differ or have no feature dimension.

    Reference: Romero, Ballas, Kahou, Chassang, Gatta and Bengio, 2014, "FitNets: Hints for Thin
        Deep Nets", arXiv:1412.6550; on transformers: Jiao, Yin, Shang, Jiang, Chen, Li, Wang and
        Liu, 2019, "TinyBERT: Distilling BERT for Natural Language Understanding",
        arXiv:1909.10351.

    >>> hidden_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor([2.])
    """
    dtype = _compute_dtype("hidden_mse", student, teacher)
    return F.mse_loss(student.to(dtype), teacher.to(dtype), reduction="none").mean(-1)


def hidden_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(s, t) = 1 - s·t / (‖s‖ ‖t‖), over the H features.

    Computed as ½‖s/‖s‖ - t/‖t‖‖², which is the same and exactly 0 at equality. The cosine of a zero
    vector (norm up to 1e-8) with any other is taken as 0, so the value is 1 and its gradient 0; two
    zero vectors are equal, so the value is 0.

    Args:
        student: hidden states (..., H), projected to the teacher's width.
        teacher: hidden states (..., H).

    Returns:
        (...), at least float32, in [0, 2].

    Raises:
        ValueError: the shapes differ or have no feature dimension.

    Reference: Sanh, Debut, Chaumond and Wolf, 2019, "DistilBERT, a distilled version of BERT:
        smaller, faster, cheaper and lighter", arXiv:1910.01108.

    >>> hidden_cosine(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0]]))
    tensor([1., 0.])
    """
    dtype = _compute_dtype("hidden_cosine", student, teacher)
    unit_s, zero_s = _direction(student.to(dtype))
    unit_t, zero_t = _direction(teacher.to(dtype))
    squared = F.mse_loss(unit_s, unit_t, reduction="none").sum(-1)
    return 0.5 * (squared + (zero_s != zero_t))  # a lone zero vector leaves ½ of the 1 missing


def _direction(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (..., H) at unit length, and which (...) are zero; those give 0 with gradient 0."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    zero = norm <= _ZERO_NORM
    # Dividing by the bound alone would give a zero vector a gradient of 1e8, infinite in float16.
    unit = (vectors / norm.masked_fill(zero, 1.0)).masked_fill(zero, 0.0)
    return unit, zero.squeeze(-1)


def _compute_dtype(name: str, student: Tensor, teacher: Tensor) -> torch.dtype:
    """The common dtype of the two, float32 at least; raises unless both are (..., H)."""
    if student.shape != teacher.shape or student.ndim == 0:
        raise ValueError(
            f"{name}: expected student and teacher hidden states of one shape (..., H), got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}; give both the same items, and if "
            "the widths differ project the student to the teacher's width"
        )
    return torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
