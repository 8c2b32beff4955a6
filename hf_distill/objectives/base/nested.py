"""Objectives around another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import nn

from hf_distill.models.signals import Needs, Signal
from hf_distill.objectives.base.objective import Objective, Term

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
        return [
            dataclasses.replace(term, name=self.name + term.name.removeprefix(old))
            for term in terms
        ]

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
