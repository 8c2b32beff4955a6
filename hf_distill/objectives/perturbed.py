"""Objectives with the student on a perturbed batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from hf_distill.models.batches import Batch
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.adversaries import PGD, VirtualAdversary, ask_teacher
from hf_distill.objectives.base.models_in_step import ModelsInStep
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex
from hf_distill.objectives.input_perturbations import (
    Gaussian,
    InputPerturbation,
    PerturbedColumns,
    SecondDropout,
    TokenNoise,
    Uniform,
    one_of,
)

INPUT_PERTURBATIONS: dict[str, type[InputPerturbation]] = {
    kind.name: kind
    for kind in (
        PGD,
        VirtualAdversary,
        Gaussian,
        Uniform,
        TokenNoise,
        PerturbedColumns,
        SecondDropout,
    )
}
"""Name in a recipe -> class."""

ARD = bibtex(
    "goldblum2020adversarially",
    "Adversarially Robust Distillation",
    "Goldblum, Micah and Fowl, Liam and Feizi, Soheil and Goldstein, Tom",
    2020,
    "1905.09747",
)


@dataclass(frozen=True)
class OnPerturbed(Objective):
    """An objective with the student on a perturbed batch.

    ``OnPerturbed(HardLabels(), PGD(8 / 255))`` is adversarial training; with ``ForwardKL()`` it is
    ARD; with ``Gaussian`` or ``PerturbedColumns`` the
    student has to match the teacher's output for the plain input in spite of the noise.
    Parts of a sum with the same ``by`` share one perturbed batch, and one
    answer of the student to it. In training the answer is one in training mode: dropout is on, and
    a batch normalisation takes the statistics of the perturbed batch into its means too.

    Args:
        objective: Any one objective (weights and sums go outside).
        by: The perturbation; or its form in a recipe, ``{name: pgd, epsilon: 0.03}``.
        teacher: The teacher's input: the ``clean`` batch or the ``perturbed`` one.

    Raises:
        ValueError: something else than one objective, an unknown perturbation or word, a teacher
            for an objective that needs none.
    """

    objective: Mapping[str, Any] | Objective
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
        cited = ARD if by.name == "pgd" and by.needs_labels and part.needs else by.citation
        own: dict[str, Any] = {
            "by": by,
            "name": f"{part.name}_{by.name}",
            "needs": part.needs | by.needs,
            "compares_examples": part.compares_examples,
            "needs_labels": part.needs_labels or by.needs_labels,
            "needs_initial": part.needs_initial,
            "citation": "\n\n".join(filter(None, (part.citation, cited))),
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def student_needs(self) -> Needs:
        """No outputs on the clean batch, unless learned parts are sized by its hidden states."""
        return inside(self.part.student_needs)

    @property
    def part(self) -> Objective:
        return one_objective(self.objective, "OnPerturbed")

    @property
    def columns(self) -> frozenset[str]:
        return self.part.columns | perturbation_from(self.by).columns

    def check(self, kind: str, classes: int | None = None) -> None:
        self.part.check(kind, classes)
        perturbation_from(self.by).check(kind, classes)

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        return self.part.build(student, teacher)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        """The terms of the objective on the perturbed batch, under this one's name."""
        by, part = perturbation_from(self.by), self.part
        pair, batch = shown(by, teacher, items, context, str(self))
        ours = answer(pair, by, batch, part.student_needs)
        theirs = teacher
        if self.teacher == "perturbed":
            key = ("teacher", id(batch), part.needs)
            theirs = pair.once(key, lambda: ask_teacher(pair, batch, part.needs, str(self)))
        inner = replace(context, pair=replace(pair, batch=batch, memory={}))
        found = part.terms(ours, theirs, items, inner)
        return [renamed(term, part.name, self.name) for term in found]

    def describe(self) -> dict[str, Any]:
        return describe_nested(self, self.part, self.by)

    def __str__(self) -> str:
        seen = ", teacher='perturbed'" if self.teacher == "perturbed" else ""
        return f"OnPerturbed({self.objective}, {self.by}{seen})"


def one_objective(objective: Any, who: str) -> Objective:
    """Check that this is one objective: weights and sums go outside."""
    if not isinstance(objective, Objective):
        raise ValueError(
            f"Expected one objective for {who}, got {objective}. Weights and sums go outside: "
            f"0.5 * {who}(…) + {who}(…)."
        )
    return objective


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


def renamed(term: Term, old: str, new: str) -> Term:
    """The term under the name of the outer objective."""
    return replace(term, name=new + term.name.removeprefix(old))


def describe_nested(whole: Objective, part: Objective | None, by: Any) -> dict[str, Any]:
    """Name, settings and citation of an objective around another one."""
    settings: dict[str, Any] = {
        f.name: getattr(whole, f.name)
        for f in dataclasses.fields(whole)
        if f.name not in ("objective", "by")
    }
    if by is not None:
        settings["by"] = {"name": by.name, **dataclasses.asdict(by)}
    if part is not None:
        own = part.describe()
        settings["objective"] = {key: own[key] for key in ("name", "settings") if key in own}
    found = {"name": whole.name, "settings": settings}
    return {**found, "citation": whole.citation} if whole.citation else found
