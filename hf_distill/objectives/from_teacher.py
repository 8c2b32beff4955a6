"""One member of an ensemble as the teacher of an objective."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_distill.models.signals import MEMBER_NAME, BatchItems, Needs, Signal, of_member
from hf_distill.objectives.base.objective import Context, Objective, Term

SAME = ("compares_examples", "needs_labels", "needs_initial", "citation")
"""Attributes taken over from its objective."""


@dataclass(frozen=True)
class FromTeacher(Objective):
    """An objective between the student and one member of an `Ensemble`, with its own projections.

    ``0.5 * From("large", HiddenStates()) + 0.5 * From("small", HiddenStates("last"))`` gives the
    student one head (projection) per teacher. It is logged as ``hidden_states_large``.

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
                f"sums go outside: 0.5 * From({self.teacher!r}, …) + From(…)."
            )
        if not self.objective.needs:
            raise ValueError(
                f"{type(self.objective).__name__} asks nothing of a teacher. Use it as it is, "
                f"without From({self.teacher!r}, …)."
            )
        if getattr(self.objective, "teacher", "clean") == "perturbed":
            raise ValueError(
                "Expected an objective whose teacher sees the batch itself, got one that asks it "
                "about a perturbed one, which would ask the whole ensemble. Put the member inside: "
                f"OnPerturbed(From({self.teacher!r}, …), …, teacher='perturbed')."
            )
        own: dict[str, Any] = {  # what others have as a class
            "name": f"{self.objective.name}_{self.teacher}",
            "needs": of_member(self.teacher, self.objective.needs),
            **{name: getattr(self.objective, name) for name in SAME},
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def student_needs(self) -> Needs:
        return self.objective.student_needs

    @property
    def is_itemwise(self) -> bool:
        return self.objective.is_itemwise

    @property
    def columns(self) -> frozenset[str]:
        return self.objective.columns

    def check(self, kind: str, classes: int | None = None) -> None:
        self.objective.check(kind, classes)

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        return self.objective.build(student, self._member(teacher))

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        """The terms of the objective against the member, under this one's name."""
        found = self.objective.terms(student, self._member(teacher), items, context)
        own = self.objective.name
        return [
            dataclasses.replace(term, name=self.name + term.name.removeprefix(own))
            for term in found
        ]

    def describe(self) -> dict[str, Any]:
        return {**self.objective.describe(), "name": self.name, "teacher": self.teacher}

    def __str__(self) -> str:
        return f"From({self.teacher!r}, {self.objective})"

    def _member(self, teacher: Signal | None) -> Signal:
        members = {} if teacher is None else teacher.members
        if self.teacher not in members:
            raise ValueError(
                f"Expected an ensemble with a member {self.teacher!r}, got a teacher with "
                f"{sorted(members) or 'none'}. Pass teacher_model=Ensemble({{{self.teacher!r}: …}})"
                " (one that routes has no members to learn from one by one)."
            )
        return members[self.teacher]
