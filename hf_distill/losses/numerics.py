"""Common parts of the losses: checks, the dtype to compute in, log-probabilities, directions.

Nothing here waits for the device: checks look at shapes and at Python numbers only.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

Temperature = float | Tensor
"""One for all items, or a tensor of one per item (broadcastable to the items' shape)."""
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

    Raises:
        ValueError: they are not.

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


def check_temperature(temperature: Temperature, items: torch.Size | None = None) -> None:
    """Refuse a number that is not > 0 and finite, or a tensor of another shape than the items.

    The values of a tensor are not looked at: that would wait for the device.

    Raises:
        ValueError: see above.
    """
    if isinstance(temperature, Tensor):
        try:
            fits = items is None or torch.broadcast_shapes(temperature.shape, items) == items
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"expected one temperature per item, broadcastable to {tuple(items or ())}, got "
                f"shape {tuple(temperature.shape)}; the last dimension of the logits, the classes, "
                "is not among the items"
            )
    elif not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature must be > 0, got {temperature!r}; 1 leaves the distributions as they "
            "are, 2 to 4 is usual, and it must be finite"
        )


def times_t_squared(values: Tensor, temperature: Temperature, t_squared: bool = True) -> Tensor:
    """T² · values, or the values unchanged.

    >>> times_t_squared(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]))
    tensor([9., 2.])
    """
    if not t_squared:
        return values
    if isinstance(temperature, Tensor):
        return values * temperature.to(values.dtype) ** 2
    return values * temperature**2


def common_minimum(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both logits, cut at the higher of the lowest finite numbers of their dtypes.

    Masked with finfo.min of two dtypes, a class would differ by up to 1e38, and its gradient
    (0 times that, times T²) would be NaN.
    """
    lowest_s, lowest_t = torch.finfo(student.dtype).min, torch.finfo(teacher.dtype).min
    if lowest_s < lowest_t:
        student = student.clamp(min=lowest_t)
    elif lowest_t < lowest_s:
        teacher = teacher.clamp(min=lowest_s)
    return student, teacher


def over_temperature(logits: Tensor, temperature: Temperature, dtype: torch.dtype) -> Tensor:
    """logits / T in the dtype, never below its finfo.min; at the number 1 the logits as they are.

    Args:
        logits: (..., C).
        temperature: A number, or a tensor broadcastable to (...).
        dtype: To compute in.
    """
    lowest = torch.finfo(dtype).min
    if isinstance(temperature, Tensor):
        # A quotient's gradient in T is -logits / T², infinite for a class masked with finfo.min; a
        # product's is finite.
        inverse = temperature.to(dtype).reciprocal().unsqueeze(-1)
        return (logits.to(dtype) * inverse).clamp(min=lowest)
    if temperature == 1:
        return logits
    logits = logits.to(dtype) / temperature
    # The division takes finfo.min to -inf, and -inf - -inf is NaN.
    return logits.clamp(min=lowest) if temperature < 1 else logits


def scaled_logits(
    name: str, student: Tensor, teacher: Tensor, temperature: Temperature = 1.0
) -> tuple[Tensor, Tensor]:
    """logits / T of both in one dtype, float32 at least; arguments and errors of `log_probs`."""
    student, teacher, dtype = _scaled(name, student, teacher, temperature)
    return student.to(dtype), teacher.to(dtype)


def log_probs(
    name: str, student: Tensor, teacher: Tensor, temperature: Temperature = 1.0
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / T) of both in one dtype, float32 at least.

    A class that each side masks with the finfo.min of its own dtype has the same (lowest) value in
    both. To be used in log space, or after exp: probabilities are 0 there.

    Args:
        name: Of the calling function, for the error.
        student: logits (..., C).
        teacher: logits (..., C).
        temperature: A number > 0, or a tensor of one per item.

    Returns:
        Two tensors (..., C).

    Raises:
        ValueError: the shapes differ or have no class dimension; temperature is not > 0, or its
            shape is not that of the items.
    """
    student, teacher, dtype = _scaled(name, student, teacher, temperature)
    return F.log_softmax(student, -1, dtype=dtype), F.log_softmax(teacher, -1, dtype=dtype)


def _scaled(
    name: str, student: Tensor, teacher: Tensor, temperature: Temperature
) -> tuple[Tensor, Tensor, torch.dtype]:
    check_pair(name, student, teacher)
    check_temperature(temperature, student.shape[:-1])
    dtype = compute_dtype(student, teacher)
    student, teacher = common_minimum(student, teacher)
    return (
        over_temperature(student, temperature, dtype),
        over_temperature(teacher, temperature, dtype),
        dtype,
    )


def zero_where_equal(values: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """The values (...), exactly 0 with gradient 0 where student and teacher (..., C) are equal.

    For divergences, whose value and gradient are 0 there but for rounding.

    >>> zero_where_equal(torch.tensor([1e-8, 2.0]), torch.eye(2), torch.tensor([[1.0, 0], [0, 0]]))
    tensor([0., 2.])
    """
    return values.masked_fill((student == teacher).all(-1), 0.0)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_c p (log p - log q) of log-probabilities (..., C) -> (...).

    >>> kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    tensor([0.1438])
    """
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """-Σ_c p log q of log-probabilities (..., C) -> (...).

    >>> cross_entropy(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    tensor([0.8370])
    """
    p = log_p.exp()
    # The gradient of p at a masked class is 0 times finfo.min times any weight above 1: NaN.
    return -(p * log_q.masked_fill(p == 0, 0.0)).sum(-1)


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
