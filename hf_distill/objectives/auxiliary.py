"""Objectives on further heads of the student."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.base.nested import Nested
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex


@dataclass(frozen=True)
class AuxiliaryHead(Nested):
    """An objective on the logits of one head of the student, in place of its output.

    For students with several heads on one body. DeiT outputs the mean of two heads, which its hard
    distillation trains separately (Touvron et al. 2020, arXiv 2012.12877): one on the labels, one
    on the teacher's decisions::

        0.5 * AuxiliaryHead("cls_classifier", HardLabels())
        + 0.5 * AuxiliaryHead("distillation_classifier", HardTeacherLabels())

    Args:
        path: The module that gives the logits, as ``named_modules`` calls it; they have the shape
            of the student's logits.
        objective: Any one objective on logits (weights and sums go outside).

    Raises:
        ValueError: something else than one objective; logits of another shape, when built.
    """

    path: str
    objective: Objective
    name: ClassVar[str] = "auxiliary_head"

    def __post_init__(self) -> None:
        self.adopt(self.path.replace(".", "_"), bibtex("touvron2021training"))

    @property
    def student_needs(self) -> Needs:
        return super().student_needs | Needs(logits=True, modules=frozenset({self.path}))

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        return self.objective.build(self._of(student), teacher)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        return self.renamed(self.objective.terms(self._of(student), teacher, items, context))

    def __str__(self) -> str:
        return f"AuxiliaryHead({self.path!r}, {self.objective})"

    def _of(self, student: Signal) -> Signal:
        logits, answer = student.modules[self.path], student.logits
        if answer is None or logits.shape != answer.shape:
            expected = None if answer is None else tuple(answer.shape)
            raise ValueError(
                f"Expected logits {expected} from {self.path!r}, as {student.who} answers with, "
                f"got {tuple(logits.shape)}. Name the module that gives the logits of a head: its "
                "last linear layer."
            )
        return replace(student, logits=logits, label_logits=None, lazy_logits=None, traced=None)
