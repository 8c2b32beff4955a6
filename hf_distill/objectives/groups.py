"""Objectives with weights per group of examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_distill.models.batch_checks import check_readable
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.base.loss_shares import GroupDROState
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex, built_modules
from hf_distill.objectives.perturbed import describe_nested, one_objective, pair_of, renamed


@dataclass(frozen=True)
class Grouped(Objective):
    """Base of an objective whose values are weighted by the group of the example."""

    objective: Mapping[str, Any] | Objective

    def __post_init__(self) -> None:
        part = one_objective(self.objective, type(self).__name__)
        own: dict[str, Any] = {
            "name": f"{part.name}_{type(self).name}",
            "needs": part.needs,
            "compares_examples": part.compares_examples,
            "needs_labels": part.needs_labels,
            "needs_initial": part.needs_initial,
            "citation": "\n\n".join(filter(None, (part.citation, type(self).citation))),
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def part(self) -> Objective:
        return one_objective(self.objective, type(self).__name__)

    @property
    def student_needs(self) -> Needs:
        return self.part.student_needs

    def check(self, kind: str, classes: int | None = None) -> None:
        self.part.check(kind, classes)

    def describe(self) -> dict[str, Any]:
        return describe_nested(self, self.part, None)

    def grouped(
        self,
        column: str,
        groups: int,
        signals: tuple[Signal, Signal | None],
        items: BatchItems,
        context: Context,
    ) -> tuple[Term, Tensor]:
        """The one term of the objective, and the group of each of its values.

        Raises:
            ValueError: no such column, groups that are not from 0 to ``groups`` - 1, or an
                objective without one value per example.
        """
        pair, part = pair_of(context, str(self)), self.part
        ids = pair.batch.get(column)
        if ids is None:
            raise ValueError(
                f"Expected a column {column!r} with the group of each example, got a batch with "
                f"{sorted(pair.batch)}. Add it to the data, let the collator keep it, or name "
                f"another: {type(self).__name__}(column=…)."
            )
        found = part.terms(*signals, items, context)
        values = found[0].values
        if len(found) != 1 or values.dim() < 1 or values.shape[:1] != ids.shape:
            raise ValueError(
                f"Expected one value (or one row of them) for each of {tuple(ids.shape)} examples "
                f"from {type(part).__name__}, got {[tuple(t.values.shape) for t in found]}. Use an "
                "objective like HardLabels or ForwardKL."
            )
        synchronous = check_readable(ids) or not pair.task_model.model.training
        if synchronous and not ((ids >= 0) & (ids < groups)).all():  # at the start, on a GPU
            raise ValueError(
                f"Expected groups from 0 to {groups - 1} in the column {column!r}, got "
                f"{sorted(set(ids.tolist()))}. Number them so, and give their number "
                f"({type(self).__name__})."
            )
        wide = ids.long().view(-1, *[1] * (values.dim() - 1)).expand(values.shape)
        return renamed(found[0], part.name, self.name), wide


@dataclass(frozen=True)
class GroupDRO(Grouped):
    """Group DRO: an objective with more weight on the groups of highest loss (Sagawa et al. 2020,
    arXiv 1911.08731).

    Minimises the sum of q_g L_g; after each optimizer step q_g grows by exp(step L_g) and is
    normalised, with L_g the group's mean loss in the step. Each value counts with q_g / p_g, where
    p_g is the group's share of the examples so far, since batches are drawn from all examples.
    q is in the checkpoints. In an evaluation the weights are those reached so far. (Strong
    regularisation is needed, or early stopping: where all training losses vanish there is no worst
    group. A balanced sampling without q is a baseline that is hard to beat.)

    Args:
        objective: One objective with a value per example: ``HardLabels()``, ``ForwardKL()``.
        groups: How many there are.
        column: The column of the data with the group of each example, from 0 on.
        step: The step size of q, above 0.
    """

    groups: int
    column: str = "group"
    step: float = 0.01
    name: ClassVar[str] = "group_dro"
    citation: ClassVar[str] = bibtex(
        "sagawa2020distributionally",
        "Distributionally Robust Neural Networks for Group Shifts: On the Importance of "
        "Regularization for Worst-Case Generalization",
        "Sagawa, Shiori and Koh, Pang Wei and Hashimoto, Tatsunori B. and Liang, Percy",
        2020,
        "1911.08731",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 2 or not self.step > 0:
            raise ValueError(
                f"Expected 2 groups or more and a step above 0, got groups={self.groups} and "
                f"step={self.step}."
            )

    @property
    def columns(self) -> frozenset[str]:
        return self.part.columns | {self.column}

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        built = {"risks": GroupDROState(self.groups, self.step)}
        own = self.part.build(student, teacher)
        return nn.ModuleDict(built if own is None else {**built, "objective": own})

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        modules = built_modules(context)
        risks = modules["risks"]
        assert isinstance(risks, GroupDROState)
        inner = replace(context, module=modules.get("objective"))
        term, ids = self.grouped(self.column, self.groups, (student, teacher), items, inner)
        values = term.values
        if pair_of(context, str(self)).task_model.model.training:
            mask = torch.ones_like(ids, dtype=torch.bool) if term.mask is None else term.mask
            zeros = torch.zeros(self.groups, dtype=torch.float64, device=values.device)
            kept = torch.where(mask, values.detach(), 0.0).double().flatten()
            sums = zeros.index_add(0, ids.flatten(), kept)
            risks.keep(sums, zeros.index_add(0, ids.flatten(), mask.double().flatten()))
        return [replace(term, values=values * risks.weights().to(values.dtype)[ids])]


@dataclass(frozen=True)
class GroupWeights(Grouped):
    """Balanced group weights: a value of group g has weight n / (groups n_g), with n_g of n
    examples in the group.

    Args:
        objective: One objective with a value per example.
        sizes: n_g, how many training examples each group has.
        column: The column of the data with the group of each example, from 0 on.
    """

    sizes: tuple[int, ...]
    column: str = "group"
    name: ClassVar[str] = "group_weights"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        super().__post_init__()
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ValueError(f"Expected the sizes of 2 groups or more, got {self.sizes}.")

    @property
    def columns(self) -> frozenset[str]:
        return self.part.columns | {self.column}

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        return self.part.build(student, teacher)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        groups = len(self.sizes)
        term, ids = self.grouped(self.column, groups, (student, teacher), items, context)
        weights = sum(self.sizes) / (groups * term.values.new_tensor(self.sizes))
        return [replace(term, values=term.values * weights[ids])]
