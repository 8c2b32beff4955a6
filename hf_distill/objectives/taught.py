"""One member of an ensemble as the teacher of an objective."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_distill.signals import Items, Needs, Signal
from hf_distill.terms import Context, Objective, Term

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""What a member may be called: it becomes part of names in logs and of learned parts."""
FLAGS = tuple(f.name for f in dataclasses.fields(Needs) if f.name != "modules")

SAME = ("in_batch", "needs_labels", "needs_initial", "citation")
"""What it has of its objective."""


def of_member(name: str, needs: Needs) -> Needs:
    """What is needed of one member of an ensemble: paths ``name/logits``, ``name/encoder.layer.3``.

    An ensemble provides exactly such paths, so that a member is asked for what an objective needs
    of it, and nothing is kept of the others.
    """
    paths = {flag for flag in FLAGS if getattr(needs, flag)} | needs.modules
    return Needs(modules=frozenset(f"{name}/{path}" for path in paths))


def for_member(name: str, needs: Needs) -> Needs:
    """The inverse of `of_member`: what is asked of this member, and of no other."""
    own = {p.removeprefix(f"{name}/") for p in needs.modules if p.startswith(f"{name}/")}
    flags = {flag: True for flag in FLAGS if flag in own}
    return Needs(**flags, modules=frozenset(own - set(FLAGS)))


@dataclass(frozen=True)
class From(Objective):
    """An objective towards one member of an `Ensemble`, with learned parts of its own.

    ``0.5 * From("large", HiddenStates()) + 0.5 * From("small", HiddenStates("last"))`` gives the
    student one head (projection) per teacher. It is logged as ``hidden_states_large``.

    Args:
        teacher: The member's name in the ensemble.
        objective: Any objective that needs a teacher.

    Raises:
        ValueError: a name that no member can have, something else than an objective, or one that
            asks nothing of a teacher.
    """

    teacher: str
    objective: Objective

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.teacher):
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
    def by_item(self) -> bool:
        return self.objective.by_item

    @property
    def columns(self) -> frozenset[str]:
        return self.objective.columns

    def check(self, kind: str, classes: int | None = None) -> None:
        self.objective.check(kind, classes)

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        return self.objective.build(student, self._member(teacher))

    def terms(
        self, student: Signal, teacher: Signal | None, items: Items, context: Context
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
