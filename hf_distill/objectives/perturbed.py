"""Objectives with the student on a perturbed batch: any other one, and smoothness."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hf_distill.models.batches import Batch
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.adversaries import ANY_LOGITS, PGD, VirtualAdversary, ask_teacher
from hf_distill.objectives.base.models_in_step import ModelsInStep
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex
from hf_distill.objectives.distributions import ForwardKL
from hf_distill.objectives.input_perturbations import (
    Gaussian,
    InputPerturbation,
    PerturbedColumns,
    SecondDropout,
    TokenNoise,
    Uniform,
)
from hf_distill.objectives.nested import Nested, describe_nested, one_objective, set_attributes
from hf_distill.utils.suggest import one_of

INPUT_PERTURBATIONS: dict[str, type[InputPerturbation]] = {
    kind.name: kind
    for family in (
        (PGD, VirtualAdversary),
        (Gaussian, Uniform, TokenNoise, PerturbedColumns, SecondDropout),
    )
    for kind in family
}
"""Name in a recipe -> class."""


@dataclass(frozen=True)
class OnPerturbed(Nested):
    """An objective with the student on a perturbed batch.

    ``OnPerturbed(HardLabels(), PGD(8 / 255))`` is adversarial training; with ``ForwardKL()`` it is
    ARD; with ``Gaussian`` or ``PerturbedColumns`` the student has to match the teacher's output for
    the plain input in spite of the noise. Parts of a sum with the same ``by`` share one perturbed
    batch, and one answer of the student to it. In training the answer is one in training mode:
    dropout is on, and a batch normalisation takes the statistics of the perturbed batch into its
    means too.

    Args:
        objective: Any one objective (weights and sums go outside).
        by: The perturbation; or its form in a recipe, ``{name: pgd, epsilon: 0.03}``.
        teacher: The teacher's input: the ``clean`` batch or the ``perturbed`` one.

    Raises:
        ValueError: something else than one objective, an unknown perturbation or word, a teacher
            for an objective that needs none.
    """

    objective: Objective
    by: Mapping[str, Any] | InputPerturbation
    teacher: str = "clean"
    name: ClassVar[str] = "on_perturbed"

    def __post_init__(self) -> None:
        part, by = one_objective(self.objective, "OnPerturbed"), perturbation_from(self.by)
        one_of("a teacher that sees the batch", self.teacher, ("clean", "perturbed"))
        if self.teacher == "perturbed" and not part.needs:
            raise ValueError(
                f"{type(part).__name__} asks no teacher: leave teacher='perturbed' out."
            )
        is_ard = by.name == "pgd" and by.needs_labels and bool(part.needs)
        self.adopt(
            by.name,
            bibtex("goldblum2020adversarially") if is_ard else by.citation,
            by=by,
            needs=part.needs | by.needs,
            needs_labels=part.needs_labels or by.needs_labels,
        )

    @property
    def student_needs(self) -> Needs:
        """No outputs on the clean batch, unless learned parts are sized by its hidden states."""
        return inside(super().student_needs)

    @property
    def columns(self) -> frozenset[str]:
        return super().columns | perturbation_from(self.by).columns

    def check(self, kind: str, classes: int | None = None) -> None:
        super().check(kind, classes)
        perturbation_from(self.by).check(kind, classes)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        by, part = perturbation_from(self.by), self.objective
        pair, batch = shown(by, teacher, items, context, str(self))
        ours = answer(pair, by, batch, part.student_needs)
        theirs = teacher
        if self.teacher == "perturbed":
            key = ("teacher", id(batch), part.needs)
            theirs = pair.once(key, lambda: ask_teacher(pair, batch, part.needs, str(self)))
        inner = replace(context, pair=replace(pair, batch=batch, memory={}))
        return self.renamed(part.terms(ours, theirs, items, inner))

    def __str__(self) -> str:
        seen = ", teacher='perturbed'" if self.teacher == "perturbed" else ""
        return f"OnPerturbed({self.objective}, {self.by}{seen})"


@dataclass(frozen=True)
class Smoothness(Objective):
    """KL(S(x) || S(x')) between the student's outputs on the batch and on a perturbed one.

    With ``PGD(…, maximise="itself")`` it is the regulariser of TRADES (arXiv 1901.08573), with
    `VirtualAdversary` and ``detach`` that of VAT (1704.03976), with ``PGD(…, steps=1,
    start="gaussian", maximise="itself")`` and ``symmetric`` half of SMART's (1911.03437), with
    ``SecondDropout()`` and ``symmetric`` R-Drop's (2106.14448). Needs neither teacher nor labels.

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
    student_needs: ClassVar[Needs] = ANY_LOGITS

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
        other = answer(pair, by, batch, ANY_LOGITS)
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


def perturbation_from(by: Any) -> InputPerturbation:
    """Make a perturbation, given directly or as in a recipe: ``{name: pgd, epsilon: 0.03}``.

    Raises:
        ValueError: an unknown name or setting (the nearest is named), or a bad value.
    """
    if isinstance(by, InputPerturbation):
        return by
    if not isinstance(by, Mapping):
        raise ValueError(
            f"Expected a perturbation, as PGD(8 / 255), or a mapping with its name, got {by!r}."
        )
    settings = dict(by)
    name = settings.pop("name", None)
    one_of("the name of a perturbation", name, tuple(INPUT_PERTURBATIONS))
    kind = INPUT_PERTURBATIONS[str(name)]
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in settings.items():
        one_of(f"a setting of {name}", key, tuple(fields))
        if isinstance(value, str) and fields[key].type in ("float", "float | None"):
            settings[key] = float(value)  # YAML reads 1e-4 as a string
    return kind(**settings)


def inside(needs: Needs) -> Needs:
    """Needs beyond the logits, by which learned parts are sized."""
    more = needs.hidden_states or needs.attentions or needs.qkv or needs.modules
    return needs if more else Needs()


def pair_of(context: Context, who: str) -> ModelsInStep:
    """Both models.

    Raises:
        ValueError: no second forward of the student is possible here.
    """
    if context.pair is None:
        raise ValueError(
            f"{who} shows the student other inputs than the batch, or reads the batch's columns, "
            "and this trainer does not hand them on. Use DistillationTrainer."
        )
    return context.pair


def shown(
    by: InputPerturbation, teacher: Signal | None, items: BatchItems, context: Context, who: str
) -> tuple[ModelsInStep, Batch]:
    """Both models and the perturbed batch, which the objectives of a sum share."""
    pair = pair_of(context, who)
    key = (by, id(teacher) if by.needs else None)
    return pair, pair.once(key, lambda: by.batch(pair, teacher, items, context))


def answer(pair: ModelsInStep, by: InputPerturbation, batch: Batch, needs: Needs) -> Signal:
    """The student's signal on a perturbed batch, computed once for all objectives that request
    it."""
    return pair.once((by, id(batch), needs), lambda: pair.show(batch, needs))
