"""The algebra of objectives: terms, weighted sums, and the one place that divides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_distill.schedules import Progress, Schedule, Weight, check_weight
from hf_distill.signals import Items, Needs, Signal, Unit


@dataclass(frozen=True)
class Term:
    """One component of the loss on one micro-batch.

    Attributes:
        name: The name under which it is logged.
        values: One value per item, or sums over some of them.
        unit: What is counted; the counts of the whole window divide the sum.
        mask: Boolean, in the shape of the values; None: all count.
        weight: The factor of this term in the loss.
    """

    name: str
    values: Tensor
    unit: Unit
    mask: Tensor | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Context:
    """What an objective may need besides the two signals.

    Attributes:
        module: What `Objective.build` made (projections), if anything.
        parameters: The student's trainable parameters that are subject to weight decay, by name.
        initial: Their values before training.
        progress: Where training is.
    """

    module: nn.Module | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)


def built_modules(context: Context) -> dict[str, nn.Module]:
    """The parts that `build` made for an objective, by name."""
    return dict(context.module.items()) if isinstance(context.module, nn.ModuleDict) else {}


@dataclass(frozen=True)
class Objective:
    """Base of all objectives; they add up and take weights like numbers."""

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    student_needs: ClassVar[Needs] = Needs()
    needs_labels: ClassVar[bool] = False
    needs_initial: ClassVar[bool] = False
    citation: ClassVar[str] = ""

    def terms(
        self, student: Signal, teacher: Signal | None, items: Items, context: Context
    ) -> list[Term]:
        """Values per item for one micro-batch."""
        raise NotImplementedError

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        """Make the learned parts (projections), from what both models say about a sample."""
        return None

    def check(self, kind: str) -> None:
        """Raise where this objective makes no sense for a head."""

    def describe(self) -> dict[str, Any]:
        """Name, settings and citation, for logs and cards."""
        found = {"name": self.name, "settings": dataclasses.asdict(self)}
        return {**found, "citation": self.citation} if self.citation else found

    def __str__(self) -> str:
        settings = ((f, getattr(self, f.name)) for f in dataclasses.fields(self))
        changed = [f"{f.name}={value!r}" for f, value in settings if value != f.default]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __mul__(self, weight: Weight) -> Sum:
        return Sum(((1.0, self),)) * weight

    __rmul__ = __mul__

    def __add__(self, other: Objective | Sum) -> Sum:
        return Sum(((1.0, self),)) + other


@dataclass(frozen=True)
class Sum:
    """A weighted sum of objectives, as ``0.3 * HardLabels() + 0.7 * ForwardKL()`` makes it."""

    parts: tuple[tuple[Weight, Objective], ...]

    def __mul__(self, weight: Weight) -> Sum:
        if isinstance(weight, Schedule):
            if any(isinstance(own, Schedule) for own, _ in self.parts):
                raise ValueError("A scheduled weight cannot be multiplied by another schedule.")
            return Sum(tuple((weight * float(own), part) for own, part in self.parts))  # type: ignore[arg-type]
        check_weight(weight)
        return Sum(tuple((own * weight, part) for own, part in self.parts))

    __rmul__ = __mul__

    def __add__(self, other: Objective | Sum) -> Sum:
        more = other.parts if isinstance(other, Sum) else ((1.0, other),)
        return Sum(self.parts + more)

    def named(self) -> list[tuple[str, Weight, Objective]]:
        """Every part with a name of its own: a second ``hidden_states`` is ``hidden_states_2``."""
        seen: dict[str, int] = {}
        named = []
        for weight, part in self.parts:
            seen[part.name] = seen.get(part.name, 0) + 1
            suffix = f"_{seen[part.name]}" if seen[part.name] > 1 else ""
            named.append((part.name + suffix, weight, part))
        return named

    @property
    def needs(self) -> Needs:
        """What is asked of the teacher."""
        return _all(part.needs for _, part in self.parts)

    @property
    def student_needs(self) -> Needs:
        """What is asked of the student."""
        return _all(part.needs | part.student_needs for _, part in self.parts)

    @property
    def needs_labels(self) -> bool:
        return any(part.needs_labels for _, part in self.parts)

    @property
    def needs_initial(self) -> bool:
        return any(part.needs_initial for _, part in self.parts)

    def terms(
        self, student: Signal, teacher: Signal | None, items: Items, context: Context
    ) -> list[Term]:
        """The terms of all parts, with their names and their weights of this moment."""
        found = []
        modules = built_modules(context)
        for name, weight, part in self.named():
            scale = weight.at(context.progress) if isinstance(weight, Schedule) else weight
            own = dataclasses.replace(context, module=modules.get(name))
            for term in part.terms(student, teacher, items, own):
                label = name + term.name.removeprefix(part.name)
                found.append(dataclasses.replace(term, name=label, weight=scale * term.weight))
        return found

    def build(self, student: Signal, teacher: Signal) -> nn.ModuleDict:
        """The learned parts of all objectives, by name."""
        built = {name: part.build(student, teacher) for name, _, part in self.named()}
        return nn.ModuleDict({name: m for name, m in built.items() if m is not None})

    def check(self, kind: str) -> None:
        for _, part in self.parts:
            part.check(kind)

    def describe(self) -> list[dict[str, Any]]:
        """One entry per part: weight, name, settings and citation."""
        return [
            {"weight": dataclasses.asdict(w) if isinstance(w, Schedule) else w, **part.describe()}
            for w, part in self.parts
        ]

    def __str__(self) -> str:
        def factor(weight: Weight) -> str:
            return str(weight) if isinstance(weight, Schedule) else f"{weight:g}"

        return " + ".join(f"{factor(w)} * {o}" if w != 1 else str(o) for w, o in self.parts)


def _all(needs: Iterable[Needs]) -> Needs:
    total = Needs()
    for need in needs:
        total = total | need
    return total


def reduce(
    terms: Sequence[Term], counts: Mapping[Unit, Tensor], scale: float = 1.0
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Mask, sum and divide: the only place that does.

    Args:
        terms: The terms of one micro-batch.
        counts: How many of each unit the whole window holds, over all ranks where the gradient is
            averaged over ranks.
        scale: The number of processes when ``counts`` are global, since gradients are averaged.

    Returns:
        The loss, each component (its sum over its count, unweighted, detached) and each
        component's sum (detached).
    """
    loss: Tensor | None = None
    components, sums = {}, {}
    for term in terms:
        values = term.values
        if term.mask is not None:
            values = torch.where(term.mask, values, 0.0)
        total = values.sum()
        mean = total / counts[term.unit].clamp(min=1)
        components[term.name], sums[term.name] = mean.detach(), total.detach()
        part = mean * (term.weight * scale)
        loss = part if loss is None else loss + part
    if loss is None:
        raise ValueError("Expected an objective with at least one term, got none.")
    return loss, components, sums
