"""Objectives with weights per group of examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from hf_distill.models.batch_checks import check_readable
from hf_distill.models.signals import BatchItems, Signal
from hf_distill.objectives.base.loss_shares import GroupDROState
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex, built_modules
from hf_distill.objectives.nested import Nested
from hf_distill.objectives.perturbed import pair_of


class Grouped(Nested):
    """Base of an objective whose values are weighted by the group of the example."""

    column: str

    @property
    def columns(self) -> frozenset[str]:
        return super().columns | {self.column}

    def grouped(
        self,
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
        pair, part, column = pair_of(context, str(self)), self.objective, self.column
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
        return self.renamed(found)[0], wide


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

    objective: Objective
    groups: int
    column: str = "group"
    step: float = 0.01
    name: ClassVar[str] = "group_dro"
    citation: ClassVar[str] = bibtex("sagawa2020distributionally")

    def __post_init__(self) -> None:
        self.adopt(type(self).name, type(self).citation)
        if self.groups < 2 or not self.step > 0:
            raise ValueError(
                f"Expected 2 groups or more and a step above 0, got groups={self.groups} and "
                f"step={self.step}."
            )

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        built = {"risks": GroupDROState(self.groups, self.step)}
        own = self.objective.build(student, teacher)
        return nn.ModuleDict(built if own is None else {**built, "objective": own})

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        modules = built_modules(context)
        risks = modules["risks"]
        assert isinstance(risks, GroupDROState)
        inner = replace(context, module=modules.get("objective"))
        term, ids = self.grouped(self.groups, (student, teacher), items, inner)
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

    objective: Objective
    sizes: tuple[int, ...]
    column: str = "group"
    name: ClassVar[str] = "group_weights"

    def __post_init__(self) -> None:
        self.adopt(type(self).name, sizes=tuple(int(size) for size in self.sizes))
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ValueError(f"Expected the sizes of 2 groups or more, got {self.sizes}.")

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        groups = len(self.sizes)
        term, ids = self.grouped(groups, (student, teacher), items, context)
        weights = sum(self.sizes) / (groups * term.values.new_tensor(self.sizes))
        return [replace(term, values=term.values * weights[ids])]
