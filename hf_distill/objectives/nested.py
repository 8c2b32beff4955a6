"""Objectives around another one: on a head of the student, from a member of an ensemble."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from hf_distill.models.signals import MEMBER_NAME, BatchItems, Needs, Signal, of_member
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex

ADOPTED = ("needs", "compares_examples", "needs_labels", "needs_initial")


class Nested(Objective):
    """Base of an objective around another one, whose needs and learned parts it has.

    It is no dataclass, so that each subclass puts its field ``objective`` where it belongs.
    """

    objective: Objective

    def adopt(self, suffix: str, cited: str = "", **own: Any) -> None:
        """Set the attributes that other objectives have as a class; the name gets a suffix.

        Raises:
            ValueError: ``objective`` is not one objective.
        """
        part = one_objective(self.objective, type(self).__name__)
        citation = "\n\n".join(filter(None, (part.citation, cited)))
        adopted = {attribute: getattr(part, attribute) for attribute in ADOPTED}
        named = {"name": f"{part.name}_{suffix}", "citation": citation}
        set_attributes(self, **{**named, **adopted, **own})

    @property
    def student_needs(self) -> Needs:
        return self.objective.student_needs

    @property
    def columns(self) -> frozenset[str]:
        return self.objective.columns

    def check(self, kind: str, classes: int | None = None) -> None:
        self.objective.check(kind, classes)

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        return self.objective.build(student, teacher)

    def renamed(self, terms: Iterable[Term]) -> list[Term]:
        """The terms of the inner objective under this one's name."""
        old = self.objective.name
        return [replace(term, name=self.name + term.name.removeprefix(old)) for term in terms]

    def describe(self) -> dict[str, Any]:
        return describe_nested(self)


def set_attributes(instance: Any, **values: Any) -> None:
    """Set attributes of a frozen dataclass."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def one_objective(objective: Any, who: str) -> Objective:
    """Check that this is one objective: weights and sums go outside."""
    if not isinstance(objective, Objective):
        raise ValueError(
            f"Expected one objective for {who}, got {objective}. Weights and sums go outside: "
            f"0.5 * {who}(…) + {who}(…)."
        )
    return objective


def describe_nested(whole: Any) -> dict[str, Any]:
    """Name, settings and citation of an objective with the field ``objective`` or ``by``."""
    settings = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)}
    by, part = settings.pop("by", None), settings.pop("objective", None)
    if by is not None:
        settings["by"] = {"name": by.name, **dataclasses.asdict(by)}
    if part is not None:
        own = part.describe()
        settings["objective"] = {key: own[key] for key in ("name", "settings") if key in own}
    found = {"name": whole.name, "settings": settings}
    return {**found, "citation": whole.citation} if whole.citation else found


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


@dataclass(frozen=True)
class FromTeacher(Nested):
    """An objective between the student and one member of an `Ensemble`, with its own projections.

    ``FromTeacher("large", HiddenStates()) + FromTeacher("small", HiddenStates("last"))`` gives the
    student one projection per teacher. It is logged as ``hidden_states_large``.

    Args:
        teacher: The member's name in the ensemble.
        objective: Any objective that needs a teacher.

    Raises:
        ValueError: an invalid name of a member, something other than an objective, or one that
            needs no teacher.
    """

    teacher: str
    objective: Objective

    def __post_init__(self) -> None:
        if not MEMBER_NAME.fullmatch(self.teacher):
            raise ValueError(
                f"Expected the name of a member of the ensemble (a letter, then letters, digits, "
                f"'-' and '_'), got {self.teacher!r}."
            )
        if not isinstance(self.objective, Objective):
            raise ValueError(
                f"Expected one objective for {self.teacher!r}, got {self.objective}. Weights and "
                f"sums go outside: 0.5 * FromTeacher({self.teacher!r}, …) + FromTeacher(…)."
            )
        if not self.objective.needs:
            raise ValueError(
                f"{type(self.objective).__name__} asks nothing of a teacher. Use it as it is, "
                f"without FromTeacher({self.teacher!r}, …)."
            )
        if getattr(self.objective, "teacher", "clean") == "perturbed":
            raise ValueError(
                "Expected an objective whose teacher sees the batch itself, got one that asks it "
                "about a perturbed one, which would ask the whole ensemble. Put the member inside: "
                f"OnPerturbed(FromTeacher({self.teacher!r}, …), …, teacher='perturbed')."
            )
        self.adopt(self.teacher, needs=of_member(self.teacher, self.objective.needs))

    @property
    def is_itemwise(self) -> bool:
        return self.objective.is_itemwise

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        return self.objective.build(student, self._member(teacher))

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        return self.renamed(self.objective.terms(student, self._member(teacher), items, context))

    def describe(self) -> dict[str, Any]:
        return {**self.objective.describe(), "name": self.name, "teacher": self.teacher}

    def __str__(self) -> str:
        return f"FromTeacher({self.teacher!r}, {self.objective})"

    def _member(self, teacher: Signal | None) -> Signal:
        members = {} if teacher is None else teacher.members
        if self.teacher not in members:
            raise ValueError(
                f"Expected an ensemble with a member {self.teacher!r}, got a teacher with "
                f"{sorted(members) or 'none'}. Pass teacher_model=Ensemble({{{self.teacher!r}: …}})"
                " (one that routes has no members to learn from one by one)."
            )
        return members[self.teacher]
