"""Distances between hidden states, one vector per token, patch, frame or example."""

import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.features.checks import require
from hf_distill.losses.numerics import check_pair, promoted, unit_vectors

_REMEDY = (
    "give both the same items, and if the widths differ project the student to the teacher's width"
)


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """1/H · Σ_h (s_h - t_h)², the mean over the H features.

    The scale of TextBrewer's ``hid_mse_loss``, TinyBERT and ``MSELoss``. The squared distance of a
    paper that sums over features is our value · H; FitNets' ½‖s - t‖² is our value · H / 2.

    Returns: (...) of hidden states (..., H), in squared units of the features.
    Raises: ValueError: the shapes differ (project the student to the teacher's width) or have no
    feature dimension.
    Source: Romero et al. 2014, arXiv:1412.6550; on transformers: Jiao et al. 2019,
    arXiv:1909.10351.

    >>> hidden_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor([2.])
    """
    check_pair("hidden_mse", student, teacher, "hidden states", "(..., H)", _REMEDY)
    student, teacher = promoted(student, teacher)
    return F.mse_loss(student, teacher, reduction="none").mean(-1)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(s, t) = 1 - s·t / (‖s‖ ‖t‖), over the H features.

    Computed as ½‖s/‖s‖ - t/‖t‖‖², which is the same and exactly 0 at equality. The cosine of a zero
    vector (norm up to 1e-8) with any other is taken as 0, so the value is 1 and its gradient 0; two
    zero vectors are equal, so the value is 0. DistilBERT's and TextBrewer's ``cos_loss`` is the
    mean over real tokens of our value.

    Returns: (...) of hidden states (..., H), in [0, 2].
    Raises: ValueError: the shapes differ (project the student to the teacher's width) or have no
    feature dimension.
    Source: Sanh et al. 2019, "DistilBERT", arXiv:1910.01108.

    >>> cosine(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    tensor([1., 0.])
    """
    check_pair("cosine", student, teacher, "hidden states", "(..., H)", _REMEDY)
    student, teacher = promoted(student, teacher)
    unit_s, zero_s = unit_vectors(student)
    unit_t, zero_t = unit_vectors(teacher)
    squared = F.mse_loss(unit_s, unit_t, reduction="none").sum(-1)
    return 0.5 * (squared + (zero_s != zero_t))  # a lone zero vector leaves ½ of the 1 missing


def pkd(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ_h (s_h / ‖s‖ - t_h / ‖t‖)², of the state at position 0 (the [CLS] token).

    That is 2 (1 - cos). TextBrewer's ``pkd_loss`` is the mean over examples of our value. The
    authors' code takes the mean over the H features (and layers): it is our value / H, so that
    their weights (β of 10 to 1000) are to be divided by H here. A zero vector (norm up to 1e-8)
    stays zero: the value is 1 (0 if both are zero), the gradient 0. With padding on the left,
    position 0 is padding: give (B, H) of the position that stands for the sequence.

    Returns: (B,) of hidden states (B, T, H) or (B, H), in [0, 4].
    Raises: ValueError: batch or width differ, or the shapes are others than these.
    Source: Sun et al. 2019, arXiv:1908.09355.

    >>> pkd(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[6.0, 8.0], [0.0, 2.0]]))
    tensor([0., 2.])
    """
    first_s, first_t = (x[:, 0] if x.ndim == 3 else x for x in (student, teacher))
    fits = first_s.ndim == 2 and first_s.shape == first_t.shape
    require(fits, "pkd", student, teacher, "states of one shape (B, H) or (B, T, H)", _REMEDY)
    first_s, first_t = promoted(first_s, first_t)
    (unit_s, _), (unit_t, _) = unit_vectors(first_s), unit_vectors(first_t)
    return F.mse_loss(unit_s, unit_t, reduction="none").sum(-1)
