"""Common parts of the losses: checks, the dtype to compute in, directions.

Nothing here waits for the device: checks look at shapes and at Python numbers only.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_LEAST, _MOST = 1e-18, 1e18
"""Range of temperatures whose square float32 can represent."""


def check_pair(
    name: str,
    student: Tensor,
    teacher: Tensor,
    what: str = "logits",
    shape: str = "(..., C)",
    remedy: str = "give both the same items and the same classes in the same order (pad or cut the "
    "larger vocabulary)",
    min_ndim: int = 1,
) -> None:
    """Refuse a student and a teacher that are not of one shape with at least min_ndim dimensions.

    >>> check_pair("f", torch.zeros(2, 3), torch.zeros(2, 4))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: f: expected student and teacher logits of one shape (..., C), got (2, 3) and (2, ...
    """
    if student.shape != teacher.shape or student.ndim < min_ndim:
        raise ValueError(
            f"{name}: expected student and teacher {what} of one shape {shape}, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}; {remedy}"
        )


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The common dtype of the tensors, float32 at least.

    >>> compute_dtype(torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.bfloat16))
    torch.float32
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def promoted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common dtype, float32 at least."""
    dtype = compute_dtype(*tensors)
    return tuple(tensor.to(dtype) for tensor in tensors)


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context that switches autocast off on the tensor's device.

    Autocast would compute matrix products (and einsum, cdist, bmm) in half precision, whatever the
    dtype of their inputs. Elementwise operations, sums and softmax of float32 it leaves alone.

    >>> with torch.autocast("cpu", dtype=torch.bfloat16):
    ...     with no_autocast(torch.eye(2)):
    ...         print((torch.eye(2) @ torch.eye(2)).dtype)
    torch.float32
    """
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def unit_vectors(vectors: Tensor, bound: float | Tensor = 1e-8) -> tuple[Tensor, Tensor]:
    """Vectors (..., H) at length 1, and which (...) are zero: no longer than the bound.

    Zero vectors stay 0, with gradient 0: dividing them by the bound would give them a gradient of
    1e8, infinite in float16.

    >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    (tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]]), tensor([False,  True]))
    """
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    zero = norm <= bound
    unit = (vectors / norm.masked_fill(zero, 1.0)).masked_fill(zero, 0.0)
    return unit, zero.squeeze(-1)


def above_zero(value: float) -> None:
    """Refuse a temperature that is not above 0, or whose square float32 does not hold: losses are
    multiplied by it."""
    if not 0 < value < math.inf:
        raise ValueError(f"Expected a temperature above 0, got {value}.")
    if not _LEAST <= value <= _MOST:
        raise ValueError(
            f"Expected a temperature between {_LEAST:.1g} and {_MOST:.1g}, got {value}: its "
            "square, which the loss is multiplied by, would be 0 or infinite in float32. 1 leaves "
            "the distributions as they are, 2 to 4 is usual; for the teacher's decisions alone "
            "train on them as labels (HardTeacherLabels)."
        )
