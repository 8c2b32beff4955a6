"""Smoothness: the student's output under small perturbations of its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.base.nested import describe_nested, set_attributes
from hf_distill.objectives.base.objective import Context, Objective, Term
from hf_distill.objectives.distributions import ForwardKL
from hf_distill.objectives.input_perturbations import InputPerturbation
from hf_distill.objectives.perturbed import answer, perturbation_from, shown

LOGITS = Needs(logits=True)


@dataclass(frozen=True)
class Smoothness(Objective):
    """KL(S(x) || S(x')) between the student's outputs on the batch and on a perturbed one.

    With ``PGD(…, maximise="itself")`` it is the regulariser of TRADES (Zhang et al. 2019,
    arXiv 1901.08573), with `Virtual` and ``detach`` that of VAT (Miyato et al. 2018, 1704.03976),
    with ``PGD(…, steps=1, start="gaussian", maximise="itself")`` and ``symmetric`` half of SMART's
    (Jiang et al. 2020, 1911.03437), with ``Again()`` and ``symmetric`` R-Drop's (Liang et al.
    2021, 2106.14448). Needs neither teacher nor labels.

    Args:
        by: The perturbation; or its form in a recipe.
        temperature: Of both distributions; the value is multiplied by its square.
        symmetric: The mean of KL(S(x) || S(x')) and KL(S(x') || S(x)).
        detach: S(x) is a target: the gradient goes through S(x') alone (and through each of them
            as the second argument, if symmetric).
    """

    by: Mapping[str, Any] | InputPerturbation
    temperature: float = 1.0
    symmetric: bool = False
    detach: bool = False
    name: ClassVar[str] = "smoothness"
    student_needs: ClassVar[Needs] = LOGITS

    def __post_init__(self) -> None:
        by = perturbation_from(self.by)
        ForwardKL(self.temperature)
        set_attributes(
            self,
            by=by,
            name=f"smoothness_{by.name}",
            needs=by.needs,
            needs_labels=by.needs_labels,
            citation=by.citation,
        )

    @property
    def columns(self) -> frozenset[str]:
        return perturbation_from(self.by).columns

    def check(self, kind: str, classes: int | None = None) -> None:
        ForwardKL().check(kind, classes)
        perturbation_from(self.by).check(kind, classes)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        by = perturbation_from(self.by)
        pair, batch = shown(by, teacher, items, context, str(self))
        other = answer(pair, by, batch, LOGITS)
        kl = ForwardKL(self.temperature)

        def divergence(ours: Signal, target: Signal) -> Term:
            target = target.detach() if self.detach else target
            (term,) = kl.terms(ours, target, items, context)
            return replace(term, name=self.name)

        term = divergence(other, student)
        if self.symmetric:
            back = divergence(student, other)
            term = replace(term, values=(term.values + back.values) / 2)
        return [term]

    def describe(self) -> dict[str, Any]:
        return describe_nested(self)
