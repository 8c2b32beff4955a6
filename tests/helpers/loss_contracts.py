"""One row per loss function: what it computes, and which contracts it keeps.

A new loss is one `Loss` in the `ROWS` of a `*_rows.py` in this folder, with its brute force
written as the paper has it. `test_contracts.py` holds every row to every contract.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

HALVES = [torch.float16, torch.bfloat16]
DTYPES = [torch.float64, torch.float32, *HALVES]


@dataclass(frozen=True)
class Loss:
    """One loss with its settings.

    A `rows_*.py` may also define:

    - `ORIGINALS: dict[str, Callable[[Tensor, dict, dict[str, Tensor]], Tensor]]`: name of the
      original's function in the reference index -> how (our values, case parameters, case arrays)
      become the original's scalar;
    - `PARAMETERS: dict[str, Callable[[dict, dict[str, Tensor]], dict]]`: target in the reference
      index -> how (case parameters, case arrays) become our keyword arguments. Without an entry,
      they are the parameters and arrays that the function has an argument for.
    """

    function: Callable[..., Tensor]
    brute: Callable[..., Tensor]
    """The keywords of the function; loops over Python floats; returns float64 values."""
    inputs: Callable[[int], dict[str, Tensor]]
    """seed -> small float64 keyword arguments, among them student and teacher."""
    settings: tuple[dict[str, Any], ...] = ({},)
    target: str = ""
    """In the reference index; "" where it has none."""
    takes_logits: bool = False
    """Logits of +-1e4 and classes masked with finfo.min occur: finite, and worth nothing."""
    zero_at_equality: bool = True
    non_negative: bool = True
    decomposable: bool = True
    """The values of a batch (dimension 0) are those of its parts, concatenated."""
    order_invariant: bool = True
    """Permuting dimension 0 of every input permutes the values."""
    smooth: bool = True
    """Finite differences exist at the inputs."""
    phantoms: bool = True
    """With takes_logits: classes masked with finfo.min change nothing (False: they have to be cut
    off before, as they change a mean or a standard deviation over the classes)."""
    broadcasts: bool = False
    """student and teacher may differ in shape."""

    @property
    def name(self) -> str:
        return self.function.__name__


def pair(*shape: int, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Random float64 student and teacher of one shape."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        scale * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student, teacher


def normal(*shape: int, scale: float = 2.0) -> Callable[[int], dict[str, Tensor]]:
    """`inputs` of a row whose function takes student and teacher only."""

    def inputs(seed: int) -> dict[str, Tensor]:
        student, teacher = pair(*shape, seed=seed, scale=scale)
        return {"student": student, "teacher": teacher}

    return inputs


def by_vector(one: Callable[..., float]) -> Callable[..., Tensor]:
    """The brute force over tensors (..., C) from that of one item (lists of C floats)."""

    def brute(student: Tensor, teacher: Tensor, **settings: Any) -> Tensor:
        width = student.shape[-1]
        rows = zip(
            student.double().reshape(-1, width).tolist(),
            teacher.double().reshape(-1, width).tolist(),
            strict=True,
        )
        values = [one(s, t, **settings) for s, t in rows]
        return torch.tensor(values, dtype=torch.float64).reshape(student.shape[:-1])

    return brute


def kept(arrays: dict[str, Tensor], values: Tensor) -> Tensor:
    """Which of our values the original counts: `labels != -100`, `mask == 1`, otherwise all."""
    if "labels" in arrays and arrays["labels"].shape == values.shape:
        return arrays["labels"] != -100
    if "mask" in arrays and arrays["mask"].shape == values.shape:
        return arrays["mask"] == 1
    return torch.ones(values.shape, dtype=torch.bool)


def original(
    scale: Callable[[dict[str, Any], dict[str, Tensor]], float] = lambda p, a: 1.0,
    mean: bool = True,
) -> Callable[[Tensor, dict[str, Any], dict[str, Tensor]], Tensor]:
    """An entry of `ORIGINALS`: the mean (or sum) over the kept items of our values, times scale."""

    def scalar(values: Tensor, parameters: dict[str, Any], arrays: dict[str, Tensor]) -> Tensor:
        chosen = values[kept(arrays, values)]
        return (chosen.mean() if mean else chosen.sum()) * scale(parameters, arrays)

    return scalar


def settings_names(settings: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in settings.items())


def variants(rows: Sequence[Loss]) -> list[Any]:
    """(loss, settings) of every row, as pytest parameters with names."""
    import pytest

    return [
        pytest.param(row, settings, id="-".join(filter(None, [row.name, settings_names(settings)])))
        for row in rows
        for settings in row.settings
    ]


def floating(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The inputs with what is floating point in another dtype."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def value_and_grad(
    function: Callable[..., Tensor], student: Tensor, **others: Any
) -> tuple[Tensor, Tensor]:
    """The values, and the gradient of their sum with respect to the student."""
    student = student.detach().clone().requires_grad_()
    values = function(student=student, **others)
    if not values.requires_grad:  # such as label_agreement
        return values, torch.zeros_like(student)
    (grad,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), grad


def bound(loss: Loss, settings: dict[str, Any]) -> Callable[..., Tensor]:
    return partial(loss.function, **settings)
