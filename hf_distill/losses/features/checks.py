"""Checks that the feature losses share. Nothing here waits for the device."""

import warnings

from torch import Tensor

from hf_distill.losses.numerics import promoted


def require(
    fits: bool, name: str, student: Tensor, teacher: Tensor, expected: str, remedy: str
) -> None:
    """Refuse a student and a teacher whose shapes do not fit."""
    if not fits:
        raise ValueError(
            f"{name}: expected student and teacher {expected}, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}; {remedy}"
        )


def check_form(name: str, form: str) -> None:
    """Refuse anything but the two forms that a loss comes in."""
    if form not in ("code", "paper"):
        raise ValueError(
            f"{name}: expected form 'code' or 'paper', got {form!r}; 'code' is what the published "
            "loss weights are for"
        )


def check_mask(name: str, mask: Tensor | None, shape: tuple[int, ...]) -> None:
    """Refuse a mask of another shape than the items."""
    if mask is not None and tuple(mask.shape) != shape:
        raise ValueError(
            f"{name}: expected a mask {shape}, got {tuple(mask.shape)}; give 1 for each real item "
            "and 0 for padding"
        )


def examples(name: str, student: Tensor, teacher: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Both as (B, D) and (B, D') of one dtype; warns where there is nothing to relate."""
    require(
        student.ndim > 1 and teacher.ndim > 1 and len(student) == len(teacher),
        name,
        student,
        teacher,
        "vectors (B, ...) of one batch",
        "give both the same examples, one vector or map each",
    )
    if len(student) < least:
        warnings.warn(
            f"{name} relates the examples of a batch and needs at least {least}, got "
            f"{len(student)}: its value is 0 and teaches nothing. Use a larger per-device batch, "
            "and dataloader_drop_last=True against a small last one.",
            stacklevel=3,
        )
    student, teacher = promoted(student.flatten(1), teacher.flatten(1))
    return student, teacher


def nothing(student: Tensor, teacher: Tensor) -> Tensor:
    """Zeros (B,), with gradient 0 for student and teacher (B, D), whatever they hold."""
    return student[:, :0].sum(-1) + teacher[:, :0].sum(-1)
