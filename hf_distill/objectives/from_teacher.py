"""One member of an ensemble as the teacher of an objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_distill.models.signals import MEMBER_NAME, BatchItems, Signal, of_member
from hf_distill.objectives.base.nested import Nested
from hf_distill.objectives.base.objective import Context, Objective, Term


@dataclass(frozen=True)
class FromTeacher(Nested):
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
