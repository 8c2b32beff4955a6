"""Objectives for data whose labels are partly wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from hf_distill.models.signals import LOGITS, BatchItems, Needs, Signal
from hf_distill.objectives.adversarial import label_probability
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex
from hf_distill.objectives.labels import HardLabels


class LabelProbability(Objective):
    """Base of label losses that read the probability of one class."""

    needs_labels: ClassVar[bool] = True
    student_needs: ClassVar[Needs] = Needs(logits=True)

    @property
    def is_itemwise(self) -> bool:
        return True

    def check(self, kind: str, classes: int | None = None) -> None:
        if kind != "softmax":
            other = "HiddenStates" if kind == "none" else "HardLabels"
            raise ValueError(
                f"{type(self).__name__} reads the probability of one class, and this is a {kind} "
                f"head. Use {other}."
            )


@dataclass(frozen=True)
class TrustedLabels(LabelProbability):
    """Label loss weighted by the teacher's probability of the label: p_T(y)^power CE(S(x), y).

    A label with teacher probability 0 has weight 0. The values are divided by the number of labels,
    not by the sum of the weights, so that the split does not matter. (A teacher trained to
    convergence on the same wrong labels has fitted all of them: stop its training early.)

    Args:
        power: 0: all labels count.
        label_smoothing: As in `HardLabels`.
    """

    power: float = 1.0
    label_smoothing: float | None = None
    name: ClassVar[str] = "trusted_labels"
    needs: ClassVar[Needs] = LOGITS

    def __post_init__(self) -> None:
        if not self.power >= 0:
            raise ValueError(f"Expected a power of at least 0, got {self.power}.")
        HardLabels(self.label_smoothing)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        if teacher is None:
            raise ValueError("TrustedLabels asks the teacher, and there is none.")
        (term,) = HardLabels(self.label_smoothing).terms(student, None, items, context)
        trust = label_probability(teacher, items).to(term.values.dtype) ** self.power
        return [replace(term, name=self.name, values=trust * term.values)]


@dataclass(frozen=True)
class GeneralizedCrossEntropy(LabelProbability):
    """(1 - p_S(y)^q) / q, between cross-entropy (q = 0) and the absolute error 1 - p (q = 1).

    Large q forgives labels that the student cannot fit (Zhang & Sabuncu 2018, arXiv 1805.07836).

    Args:
        q: From 0 to 1.
    """

    q: float = 0.7
    name: ClassVar[str] = "generalized_cross_entropy"
    citation: ClassVar[str] = bibtex("zhang2018generalized")

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise ValueError(f"Expected q from 0 to 1, got {self.q}.")

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        items.class_ids(type(self).__name__)
        (term,) = HardLabels().terms(student, None, items, context)
        return [replace(term, name=self.name, values=_box_cox(term.values, self.q))]


def _box_cox(loss: Tensor, q: float) -> Tensor:
    """(1 - p^q) / q of -log p; 0 gives -log p itself."""
    return -torch.expm1(-q * loss) / q if q > 0 else loss
