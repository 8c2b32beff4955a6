"""Objectives of the heads of a multi-task student."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_distill.models.signals import BatchItems, Needs, Signal, of_member, unit_of
from hf_distill.objectives.base.loss_weights import LossShare
from hf_distill.objectives.base.objective import (
    Context,
    Objective,
    Term,
    WeightedSum,
    bibtex,
    built_modules,
)
from hf_distill.objectives.nested import set_attributes

PARTS, UNCERTAINTY = "parts", "uncertainty"


@dataclass(frozen=True)
class OnHead(Objective):
    """An objective, or a sum of them, on one head of a `MultiHead` student: the loss of a task.

    Every component is a mean over the items of this task alone, and is logged with the head's name
    in front: ``rating_forward_kl``. ``LossShare(0.3) * OnHead("rating", …)`` sets the share of the
    task. An objective that is not on a head is put on every head by the trainer.

    With ``uncertainty`` the loss L of the task is weighted by a learned variance
    sigma² (Kendall et al. 2018, arXiv 1705.07115): L / sigma² + log sigma, of a regression
    L / (2 sigma²) + log sigma. log sigma² begins at 0 and is trained with the student, with its
    learning rate; it is not published.

    Args:
        head: Name of the head.
        objective: An objective on logits, labels or hidden states, or a weighted sum of them.
        uncertainty: Learn the weight of the task.

    Raises:
        ValueError: a share within the sum, or an objective that runs the student once more.
    """

    head: str
    objective: Objective | WeightedSum
    uncertainty: bool = False
    name: ClassVar[str] = "on_head"

    def __post_init__(self) -> None:
        parts = self.sum.parts
        for weight, part in parts:
            if isinstance(weight, LossShare):
                raise ValueError(
                    f"Expected numbers or schedules as weights within OnHead({self.head!r}, …), "
                    f"got {weight}. A share is that of a task: LossShare({weight.share:g}) * "
                    f"OnHead({self.head!r}, …)."
                )
            if isinstance(part, OnHead):
                raise ValueError(
                    f"Expected an objective for the head {self.head!r}, got {part}, which is on a "
                    "head itself. Take one of the two away."
                )
        cited = [part.citation for _, part in parts if part.citation]
        cited += [bibtex("kendall2018multitask")] if self.uncertainty else []
        set_attributes(
            self,
            name=self.head,
            needs=of_member(self.head, self.sum.needs),
            needs_labels=self.sum.needs_labels,
            compares_examples=any(part.compares_examples for _, part in parts),
            citation="\n\n".join(dict.fromkeys(cited)),
        )

    @property
    def sum(self) -> WeightedSum:
        """The objective of this head, as the head of a plain model has it."""
        return 1.0 * self.objective if isinstance(self.objective, Objective) else self.objective

    @property
    def student_needs(self) -> Needs:
        return of_member(self.head, self.sum.student_needs)

    @property
    def columns(self) -> frozenset[str]:
        return self.sum.columns

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        ours, theirs = student.members.get(self.head), teacher.members.get(self.head)
        built = {PARTS: self.sum.build(ours, theirs)}
        learned = {UNCERTAINTY: LogVariance()} if self.uncertainty else {}
        return nn.ModuleDict({**built, **learned}) if len(built[PARTS]) or learned else None

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        if self.head not in student.members:
            raise ValueError(
                f"Expected a student with a head {self.head!r}, got {student.who} with "
                f"{sorted(student.members) or 'none'}. Pass model=MultiHead…, or leave OnHead out."
            )
        ours, own = student.members[self.head], items.members[self.head]
        theirs = None if teacher is None else teacher.members.get(self.head)
        modules = built_modules(context)
        inner = replace(context, module=modules.get(PARTS), pair=None)
        terms = self.sum.terms(ours, theirs, own, inner)
        if self.uncertainty:
            learned = modules[UNCERTAINTY]
            assert isinstance(learned, LogVariance)
            factor = learned.weight(0.5 if ours.kind == "regression" else 1.0)
            terms = [replace(term, weight=term.weight * factor) for term in terms]
            rows = own.masks["samples"]  # no task in the window: no term
            sigma = (learned.bias / 2).expand(rows.shape)
            terms.append(Term("log_sigma", sigma, "samples", rows))
        named = [replace(term, name=f"{self.head}_{term.name}") for term in terms]
        return [replace(term, unit=unit_of(self.head, term.unit)) for term in named]

    def describe(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"head": self.head, "objective": str(self.objective)}
        settings |= {"uncertainty": True} if self.uncertainty else {}
        found = {"name": self.name, "settings": settings}
        return {**found, "citation": self.citation} if self.citation else found

    def __str__(self) -> str:
        more = ", uncertainty=True" if self.uncertainty else ""
        return f"OnHead({self.head!r}, {self.objective}{more})"


class LogVariance(nn.Module):
    """The learned logarithm of a task's variance.

    It is called a bias since weight decay, which would pull the weight of the task to 1, leaves
    biases out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def weight(self, factor: float) -> Tensor:
        return factor * (-self.bias).exp()


def on_heads(
    objective: WeightedSum, heads: Sequence[str], taught: Collection[str] | None = None
) -> WeightedSum:
    """Put objectives that are not on a head on every head.

    Args:
        objective: The objective of a student with several heads.
        heads: The names of the heads.
        taught: The heads that have a teacher: only they get objectives that need one; None: all.

    Raises:
        ValueError: an `OnHead` of a head that there is not, or nothing to learn for a head.
    """
    for _, part in objective.parts:
        if isinstance(part, OnHead) and part.head not in heads:
            raise ValueError(
                f"Expected an objective on one of the heads {list(heads)}, got {part}. Name one of "
                "them."
            )
    given = [(weight, part) for weight, part in objective.parts if not _everywhere(part)]
    common = [(weight, part) for weight, part in objective.parts if _everywhere(part)]
    found = []
    for head in heads if common else ():
        able = taught is None or head in taught
        own = tuple((weight, part) for weight, part in common if able or not part.needs)
        if own:
            found.append((1.0, OnHead(head, WeightedSum(own))))
        elif not any(isinstance(part, OnHead) and part.head == head for _, part in given):
            raise ValueError(
                f"Expected something to learn for the head {head!r}, got no teacher of it and "
                f"{objective}. Add its teacher (teacher_model={{{head!r}: …}}), or learn its "
                f"labels: + OnHead({head!r}, HardLabels())."
            )
    return WeightedSum((*found, *given))


def _everywhere(part: Objective) -> bool:
    """True for objectives on outputs or labels that are not on a head."""
    reads = part.needs or part.student_needs or part.needs_labels
    return bool(reads) and not isinstance(part, OnHead)


def of_head(objective: WeightedSum, head: str) -> WeightedSum:
    """The objective of one head, as the head of a plain model has it."""
    parts = (part for _, part in objective.parts)
    sums = [part.sum for part in parts if isinstance(part, OnHead) and part.head == head]
    return WeightedSum(tuple(pair for found in sums for pair in found.parts))
