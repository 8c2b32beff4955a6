"""Gradient distillation: input gradients of student and teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_distill.losses.gradients import input_gradient, jacobian, projection, saliency
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex

DIRECTIONS = ("label", "teacher", "random")


@dataclass(frozen=True)
class Jacobian(Objective):
    """Distance of the gradients of both outputs with respect to the input (arXiv 1706.04859).

    The outputs are projected to one number per example, so that each model is differentiated once:
    one more backward pass for each. The input is the image or audio, or the output of the
    embeddings for text; padding does not count. (Batch normalisation in training ties an example's
    output to the inputs of the others, whose gradients are then a part of it.)

    Args:
        direction: Projection of the outputs: the class of the ``label`` (the original), the most
            likely class of the ``teacher``, or a ``random`` vector of signs, drawn anew at each
            step, which covers the whole Jacobian (Srinivas & Fleuret, 1803.00443).
        normalize: Compare directions only: each example's gradient is normalised to length 1.
        saliency: Compare the length of the gradient at each position of a text, for models whose
            embeddings differ.
    """

    direction: str = "label"
    normalize: bool = True
    saliency: bool = False
    name: ClassVar[str] = "jacobian"
    needs: ClassVar[Needs] = Needs(logits=True, inputs=True)
    citation: ClassVar[str] = bibtex("czarnecki2017sobolev")

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"Expected a direction of {list(DIRECTIONS)}, got {self.direction!r}.")

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        return self.direction == "label"

    def check(self, kind: str, classes: int | None = None) -> None:
        if self.direction != "random" and kind not in ("softmax", "ctc"):
            raise ValueError(
                f"A {kind} head has no single class to follow: use Jacobian(direction='random')."
            )
        if self.direction == "label" and kind == "ctc":
            raise ValueError("CTC labels name no frames: use Jacobian(direction='teacher').")

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        if teacher is None or teacher.traced is None or student.traced is None:
            raise ValueError("Expected models that can be differentiated by their input, got none.")
        direction = self._directions(student, teacher, items, context)
        (ours, x), (theirs, y) = student.traced, teacher.traced
        with torch.enable_grad():  # an evaluation turns it off
            gradient = input_gradient(ours, x, direction, create_graph=True)
            target = input_gradient(theirs, y, direction, create_graph=False).detach()
        return [
            Term(
                self.name, self._compare(gradient, target, items), "samples", items.masks["samples"]
            )
        ]

    def _directions(
        self, student: Signal, teacher: Signal, items: BatchItems, context: Context
    ) -> Tensor:
        logits, mask = teacher.traced[0].detach(), items.masks["items"]  # type: ignore[index]
        if self.direction == "random":  # the same for all items, and for any split of them
            generator = torch.Generator().manual_seed(context.progress.step)
            classes = torch.empty(logits.shape[-1], dtype=logits.dtype)
            signs = projection(classes, "rademacher", generator=generator).to(logits.device)
            return signs * mask[..., None]
        if self.direction == "teacher":
            chosen = logits.argmax(-1)
        elif items.labels is not None:
            chosen, mask = items.class_ids(str(self)), items.masks["labels"]
        else:
            raise ValueError(
                "Jacobian(direction='label') needs labels, and this batch has none. Use "
                "direction='teacher'."
            )
        return projection(logits, "label", chosen.masked_fill(~mask, -100))

    def _compare(self, gradient: Tensor, target: Tensor, items: BatchItems) -> Tensor:
        padded = [m for m in items.masks.values() if m.dim() == 2 and m.shape == gradient.shape[:2]]
        mask = padded[0] if padded and gradient.dim() == 3 else None
        if self.saliency:
            gradient, target = saliency(gradient), saliency(target)
        if gradient.shape != target.shape:
            raise ValueError(
                f"Expected input gradients of one shape, got {tuple(gradient.shape)} (student) and "
                f"{tuple(target.shape)} (teacher): the embeddings differ in width. Use "
                "Jacobian(saliency=True)."
            )
        return jacobian(gradient, target, normalize=self.normalize, mask=mask)
