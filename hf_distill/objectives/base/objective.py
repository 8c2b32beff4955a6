"""Objectives, their weighted sums and terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_distill.models.signals import WEIGHTED, BatchItems, Needs, Signal, Unit
from hf_distill.objectives.base.loss_shares import GroupDROState, LossShares
from hf_distill.objectives.base.loss_weights import LossShare, Weight, product
from hf_distill.objectives.base.models_in_step import ModelsInStep
from hf_distill.objectives.base.schedules import Progress, Schedule

BALANCE = "balance"
"""The name of the running means among the learned parts of a sum."""


@dataclass(frozen=True)
class Term:
    """One component of the loss on one micro-batch.

    Attributes:
        name: The name under which it is logged.
        values: One value per item, or sums over some of them.
        unit: What is counted; the counts of the whole window divide the sum.
        mask: Boolean, in the shape of the values; None: all count.
        weight: The factor of this term in the loss.
        part: The name of its objective in a sum, which `WeightedSum` sets.
        inner: The factor of this term in its objective, which `WeightedSum` keeps from before.
    """

    name: str
    values: Tensor
    unit: Unit
    mask: Tensor | None = None
    weight: float | Tensor = 1.0
    part: str = ""
    inner: float | Tensor = 1.0


@dataclass(frozen=True)
class Context:
    """Additional inputs of an objective, besides the two signals.

    Attributes:
        module: The result of `Objective.build` (projections), if any.
        parameters: The student's trainable parameters that are subject to weight decay, by name.
        initial: Their values before training.
        progress: Progress of the training.
        pair: Both models, for forward passes beyond the batch; None where these are not possible.
    """

    module: nn.Module | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    pair: ModelsInStep | None = None


def built_modules(context: Context) -> dict[str, nn.Module]:
    """The parts that `build` made for an objective, by name."""
    return dict(context.module.items()) if isinstance(context.module, nn.ModuleDict) else {}


@dataclass(frozen=True)
class Objective:
    """Base of all objectives; they add up and take weights like numbers.

    ``needs`` are the requested outputs of the teacher; ``compares_examples``: examples are compared
    with others of its batch, so that the value depends on how the data is split into batches.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    compares_examples: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_initial: ClassVar[bool] = False
    citation: ClassVar[str] = ""

    @property
    def is_itemwise(self) -> bool:
        """True if the values depend only on the logits of each single item: they may then be
        computed a few items at a time."""
        return False

    @property
    def columns(self) -> frozenset[str]:
        """The batch keys that it reads besides the models' inputs, so that they are kept."""
        return frozenset()

    @property
    def student_needs(self) -> Needs:
        """Outputs requested from the student; by default the same as from the teacher."""
        return self.needs

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        """Values per item for one micro-batch."""
        raise NotImplementedError

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        """Make the learned parts (projections), from the signals of both models on a sample."""
        return None

    def check(self, kind: str, classes: int | None = None) -> None:
        """Raise if this objective is not defined for a head.

        Args:
            kind: Form of its logits, see `Signal`.
            classes: The number of classes; None if it varies from batch to batch.
        """

    def mapped(self, change: Callable[[Objective], Objective]) -> Objective:
        """Apply a change to this objective, after the objectives in its fields."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        inner = {
            n: v.mapped(change) for n, v in fields.items() if isinstance(v, Objective | WeightedSum)
        }
        return change(dataclasses.replace(self, **inner) if inner else self)

    def describe(self) -> dict[str, Any]:
        """Name, settings and citation, for logs and cards."""
        found = {"name": self.name, "settings": dataclasses.asdict(self)}
        return {**found, "citation": self.citation} if self.citation else found

    def __str__(self) -> str:
        settings = ((f, getattr(self, f.name)) for f in dataclasses.fields(self))
        changed = [f"{f.name}={value!r}" for f, value in settings if value != f.default]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __mul__(self, weight: Weight) -> WeightedSum:
        return WeightedSum(((1.0, self),)) * weight

    __rmul__ = __mul__

    def __add__(self, other: Objective | WeightedSum) -> WeightedSum:
        return WeightedSum(((1.0, self),)) + other


@dataclass(frozen=True)
class WeightedSum:
    """A weighted sum of objectives, as ``0.3 * HardLabels() + 0.7 * ForwardKL()`` makes it."""

    parts: tuple[tuple[Weight, Objective], ...]

    def __mul__(self, weight: Weight) -> WeightedSum:
        return WeightedSum(tuple((product(own, weight), part) for own, part in self.parts))

    __rmul__ = __mul__

    def __add__(self, other: Objective | WeightedSum) -> WeightedSum:
        more = other.parts if isinstance(other, WeightedSum) else ((1.0, other),)
        return WeightedSum(self.parts + more)

    def mapped(self, change: Callable[[Objective], Objective]) -> WeightedSum:
        """Apply a change to every objective of the sum, see `Objective.mapped`."""
        return WeightedSum(tuple((weight, part.mapped(change)) for weight, part in self.parts))

    def named(self) -> list[tuple[str, Weight, Objective]]:
        """All objectives with unique names: a second ``hidden_states`` is ``hidden_states_2``."""
        seen: dict[str, int] = {}
        named = []
        for weight, part in self.parts:
            seen[part.name] = seen.get(part.name, 0) + 1
            suffix = f"_{seen[part.name]}" if seen[part.name] > 1 else ""
            named.append((part.name + suffix, weight, part))
        return named

    @cached_property
    def needs(self) -> Needs:
        """Outputs requested from the teacher."""
        return _all(part.needs for _, part in self.parts)

    @cached_property
    def student_needs(self) -> Needs:
        """Outputs requested from the student."""
        return _all(part.student_needs for _, part in self.parts)

    @cached_property
    def is_itemwise(self) -> frozenset[str]:
        """Names of the objectives that read logits, if each is itemwise; otherwise none: the logits
        are needed as a whole."""
        reads = {
            name: part.is_itemwise for name, _, part in self.named() if part.student_needs.logits
        }
        return frozenset(reads) if all(reads.values()) else frozenset()

    @cached_property
    def needs_labels(self) -> bool:
        return any(part.needs_labels for _, part in self.parts)

    @cached_property
    def needs_initial(self) -> bool:
        return any(part.needs_initial for _, part in self.parts)

    @cached_property
    def columns(self) -> frozenset[str]:
        return frozenset[str]().union(*(part.columns for _, part in self.parts))

    def terms(
        self,
        student: Signal,
        teacher: Signal | None,
        items: BatchItems,
        context: Context,
        only: Callable[[str], bool] = lambda name: True,
    ) -> list[Term]:
        """The terms of all objectives (``only`` selects some by name), with their names and current
        weights."""
        found = []
        modules = built_modules(context)
        balance = modules.get(BALANCE)
        shares = balance.weights() if isinstance(balance, LossShares) else {}
        for name, weight, part in self.named():
            if not only(name):
                continue
            scale: float | Tensor = 0.0
            if isinstance(weight, LossShare):
                scale = shares.get(name, scale)
            else:
                scale = weight.at(context.progress) if isinstance(weight, Schedule) else weight
            own = dataclasses.replace(context, module=modules.get(name))
            for term in part.terms(student, teacher, items, own):
                term = _weighted(term, items)
                label = name + term.name.removeprefix(part.name)
                own_weight = term.weight
                found.append(
                    dataclasses.replace(
                        term, name=label, weight=scale * own_weight, part=name, inner=own_weight
                    )
                )
        return found

    @cached_property
    def is_scheduled(self) -> bool:
        """True if a weight or a temperature changes during training."""
        temperatures = [getattr(part, "temperature", None) for _, part in self.parts]
        weights: list[Any] = [weight for weight, _ in self.parts]
        fixed = int | float | tuple | None
        return not all(isinstance(setting, fixed) for setting in (*weights, *temperatures))

    def observe(
        self,
        terms: Sequence[Term],
        components: Mapping[str, Tensor],
        modules: nn.ModuleDict,
        last: bool,
        over_ranks: Callable[[Tensor], Tensor],
    ) -> None:
        """Update the state of shares and group weights from a micro-batch.

        Args:
            terms: The result of `terms`.
            components: Their parts of the window's means, as `reduce` gives them.
            modules: The result of `build`.
            last: True if this micro-batch ends the window.
            over_ranks: Adds up over the processes.
        """
        for module in modules.modules():
            if isinstance(module, GroupDROState):
                module.observe(last, over_ranks)
        balance = dict(modules.items()).get(BALANCE)
        if not isinstance(balance, LossShares):
            return
        values: dict[str, Tensor] = {}
        for term in terms:
            shared = balance.shares[term.part] is not None
            value = components[term.name] * (term.inner if shared else term.weight)
            values[term.part] = values[term.part] + value if term.part in values else value
        balance.observe(values, last, over_ranks)

    def build(self, student: Signal | None, teacher: Signal | None) -> nn.ModuleDict:
        """The learned parts of all objectives, by name, and the running means of their shares."""
        ours = Signal() if student is None else student  # empty for objectives without needs
        theirs = Signal() if teacher is None else teacher
        built: dict[str, nn.Module | None] = {BALANCE: self.balance()}
        built.update({name: part.build(ours, theirs) for name, _, part in self.named()})
        return nn.ModuleDict({name: m for name, m in built.items() if m is not None})

    def balance(self) -> LossShares | None:
        """Running means for shares, if there are any."""
        shares = {n: w.share if isinstance(w, LossShare) else None for n, w, _ in self.named()}
        return LossShares(shares) if any(s is not None for s in shares.values()) else None

    def check(self, kind: str, classes: int | None = None) -> None:
        self.balance()
        for _, part in self.parts:
            part.check(kind, classes)

    def describe(self) -> list[dict[str, Any]]:
        """One entry per part: weight, name, settings and citation."""
        return [
            {
                "weight": w if isinstance(w, float | int) else dataclasses.asdict(w),
                **part.describe(),
            }
            for w, part in self.parts
        ]

    def __str__(self) -> str:
        def factor(weight: Weight) -> str:
            return f"{weight:g}" if isinstance(weight, float | int) else str(weight)

        return " + ".join(f"{factor(w)} * {o}" if w != 1 else str(o) for w, o in self.parts)


def _all(needs: Iterable[Needs]) -> Needs:
    total = Needs()
    for need in needs:
        total = total | need
    return total


@cache
def _bibliography() -> dict[str, str]:
    """The entries of `citations.bib` by key, each on one line."""
    path = Path(__file__).parents[1] / "citations.bib"
    entries = (" ".join(e.split()) for e in path.read_text(encoding="utf-8").split("\n\n"))
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}


def bibtex(key: str) -> str:
    """The BibTeX entry of a paper in `citations.bib`."""
    return _bibliography()[key]


def mean_term(terms: Sequence[Term], name: str | None = None) -> Term:
    """Mean of several terms of the same items, as one term.

    The terms have one unit, mask and weight; the name is the first one's, unless given.
    """
    first = terms[0]
    values = first.values if len(terms) == 1 else torch.stack([t.values for t in terms]).mean(0)
    return dataclasses.replace(first, name=first.name if name is None else name, values=values)


def _weighted(term: Term, items: BatchItems) -> Term:
    """The term with its values times the weights of the items, if it has one value for each."""
    weights = items.weights
    if weights is None or term.unit not in WEIGHTED or term.values.shape != weights.shape:
        return term
    return dataclasses.replace(term, values=term.values * weights.to(term.values.dtype))
