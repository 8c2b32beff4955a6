"""Objectives on further heads of the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex
from hf_distill.objectives.perturbed import describe_nested, one_objective, renamed


@dataclass(frozen=True)
class AuxiliaryHead(Objective):
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
    objective: Mapping[str, Any] | Objective
    name: ClassVar[str] = "auxiliary_head"

    def __post_init__(self) -> None:
        part = one_objective(self.objective, "AuxiliaryHead")
        cited = (part.citation, DEIT)
        own: dict[str, Any] = {
            "name": f"{part.name}_{self.path.replace('.', '_')}",
            "needs": part.needs,
            "compares_examples": part.compares_examples,
            "needs_labels": part.needs_labels,
            "needs_initial": part.needs_initial,
            "citation": "\n\n".join(filter(None, cited)),
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def part(self) -> Objective:
        return one_objective(self.objective, "AuxiliaryHead")

    @property
    def student_needs(self) -> Needs:
        return self.part.student_needs | Needs(logits=True, modules=frozenset({self.path}))

    @property
    def columns(self) -> frozenset[str]:
        return self.part.columns

    def check(self, kind: str, classes: int | None = None) -> None:
        self.part.check(kind, classes)

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        return self.part.build(self._of(student), teacher)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        """The terms of the objective on this head's logits, under this one's name."""
        found = self.part.terms(self._of(student), teacher, items, context)
        return [renamed(term, self.part.name, self.name) for term in found]

    def describe(self) -> dict[str, Any]:
        return describe_nested(self, self.part, None)

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


DEIT = bibtex(
    "touvron2020training",
    "Training Data-Efficient Image Transformers and Distillation through Attention",
    "Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and Sablayrolles, "
    "Alexandre and Jegou, Herve",
    2020,
    "2012.12877",
)
