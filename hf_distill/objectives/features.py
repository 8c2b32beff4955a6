"""Objectives on hidden states and feature maps, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from hf_distill.losses import features
from hf_distill.models.places import check_length
from hf_distill.models.pooling import as_states
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.base.alignment import (
    MODULES,
    PROJECTIONS,
    LayerPair,
    TransportPlan,
    align,
    build_projections,
    project,
    same_size,
)
from hf_distill.objectives.base.layers import LayerSpec, module_pairs, parse_layers, read_layers
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex, built_modules

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class FeatureObjective(Objective):
    """Base of objectives that compare layers of the student with layers of the teacher.

    Args:
        layers: A layer map, see `parse_layers`: a name (``uniform``, ``skip``,
            ``last``, ``emd``), ``"teacher:student, …"`` or pairs (student, teacher), by index,
            fraction or module path.
        projection: How the student's features get the teacher's width where they differ:
            ``linear`` (a 1x1 convolution on feature maps), ``orthogonal``, ``shared`` (one for all
            layers of the same widths) or ``none``. Trained with the student, never published.
        groups: Which stacks to align (``encoder``, ``decoder``, ``text``, …); None: all.
    """

    layers: LayerSpec = "uniform"
    projection: str = field(default="linear", kw_only=True)
    groups: tuple[str, ...] | None = field(default=None, kw_only=True)
    projects: ClassVar[bool] = True
    loss: ClassVar[Loss]
    keywords: ClassVar[tuple[str, ...]] = ()
    """The fields that are keywords of the loss function."""

    def __post_init__(self) -> None:
        if self.projection not in PROJECTIONS:
            raise ValueError(
                f"Expected a projection of {list(PROJECTIONS)}, got {self.projection!r}."
            )
        read_layers(self)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self._needs(1)

    @property
    def student_needs(self) -> Needs:
        return self._needs(0)

    def _needs(self, side: int) -> Needs:
        paths = module_pairs(self.layers)
        pairs = parse_layers(self.layers)
        hidden = isinstance(pairs, str) or len(paths) < len(pairs)
        return Needs(hidden_states=hidden, modules=frozenset(pair[side] for pair in paths))

    def prepare(self, pair: LayerPair, mask: Tensor | None) -> LayerPair:
        """Bring both features of a pair to the shape of the comparison, before projections."""
        return pair

    def compare(
        self, pair: LayerPair, mask: Tensor | None, modules: dict[str, nn.Module]
    ) -> Tensor:
        """The values of one pair of layers, ``(B, T)`` or ``(B,)``."""
        settings = {name: getattr(self, name) for name in self.keywords}
        return type(self).loss(pair.student, pair.teacher, **settings)

    def values(
        self, pairs: Sequence[LayerPair], mask: Tensor | None, modules: dict[str, nn.Module]
    ) -> list[Tensor]:
        """The values of all pairs of one group; they are averaged."""
        return [self.compare(pair, mask, modules) for pair in pairs]

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        prepared = [
            self.prepare(pair, None) for pair in align(self.layers, student, teacher, self.groups)
        ]
        built = build_projections(prepared, self._kind) if self.projects else {}
        built.update(self.learned(prepared))
        if self.layers == "emd":
            for group in {pair.group for pair in prepared}:
                ours, theirs = student.hidden_states[group], teacher.hidden_states[group]
                if len(ours) > 1:
                    built[f"plan_{group}"] = TransportPlan(len(ours) - 1, len(theirs) - 1)
        return nn.ModuleDict(built) if built else None

    @property
    def _kind(self) -> str:
        """Kind of projection; many-to-many pairs share theirs."""
        return "shared" if self.layers == "emd" and self.projection == "linear" else self.projection

    def learned(self, pairs: Sequence[LayerPair]) -> dict[str, nn.Module]:
        """Learned parts besides the projections."""
        return {}

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        if teacher is None:
            raise ValueError("Expected hidden states of a teacher, got no teacher.")
        modules = built_modules(context)
        gathered: dict[tuple[str, str], list[LayerPair]] = {}
        for pair in align(self.layers, student, teacher, self.groups):
            unit = unit_of(pair, items)
            check_places(pair, items.masks.get(unit), (student, teacher))
            pair = self.prepare(pair, items.masks.get(unit))
            pair = project(pair, modules, self._kind) if self.projects else pair
            gathered.setdefault((pair.group, unit), []).append(pair)
        terms = []
        for (group, unit), pairs in gathered.items():
            mask = items.masks.get(unit)
            values = self.values(pairs, mask, modules)
            if not unit:  # layers of other sizes: one value per example each
                values = [v.flatten(1).mean(1) if v.dim() > 1 else v for v in values]
            stacked = torch.stack(values)
            plan = modules.get(f"plan_{group}")
            if plan is None:
                value = stacked.mean(0)
            else:
                value = torch.tensordot(plan().to(stacked.dtype), stacked, dims=1)
            name = self.name if len(gathered) == 1 else f"{self.name}_{group}"
            terms.append(term_of(name, value, unit, items))
        return terms


def unit_of(pair: LayerPair, items: BatchItems) -> str:
    """The unit whose mask marks the positions of a pair's features; empty if all are real."""
    if pair.group != MODULES:
        return pair.group if pair.group in items.masks else ""
    for name in ("decoder", "encoder", "text", "hidden"):
        mask = items.masks.get(name)
        named = name in ("text", "hidden") or name in pair.key
        if mask is None or not named or pair.student.dim() != 3:
            continue
        if pair.student.shape[:2] == mask.shape:
            return name
    return ""


def check_places(pair: LayerPair, mask: Tensor | None, signals: tuple[Signal, Signal]) -> None:
    """Raise if the hidden states have another length than the batch's mask of real tokens."""
    for who, states, signal in zip(pair.who, (pair.student, pair.teacher), signals, strict=True):
        if mask is not None and states.dim() == 3 and states.shape[1] != mask.shape[-1]:
            stack = tuple.__iter__(signal.hidden_states.get(pair.group, ()))
            sizes = [0 if layer is None else int(layer.shape[1]) for layer in stack]
            check_length(who, f"states at {pair.key}", states.shape[1], mask, sizes)


def term_of(name: str, values: Tensor, unit: str, items: BatchItems) -> Term:
    """Make a term: values per position are divided by the real ones, values per example by the
    examples."""
    if unit and values.dim() == 2:
        return Term(name, values, unit, items.masks[unit])
    values = values.flatten(1).mean(1) if values.dim() > 1 else values
    return Term(name, values, "samples", items.masks["samples"])


@dataclass(frozen=True)
class HiddenStates(FeatureObjective):
    """Distance of hidden states, averaged over the features and over the pairs of layers.

    Padding does not count; groups without padding (images) are averaged over their positions first.
    Images of different resolution are average-pooled to the smaller one.

    Args:
        distance: ``mse`` (FitNets, arXiv 1412.6550) or ``cosine`` (DistilBERT, arXiv 1910.01108).
    """

    distance: str = "mse"
    name: ClassVar[str] = "hidden_states"
    citation: ClassVar[str] = bibtex("romero2015fitnets")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance not in DISTANCES:
            raise ValueError(f"Expected a distance of {sorted(DISTANCES)}, got {self.distance!r}.")

    def prepare(self, pair: LayerPair, mask: Tensor | None) -> LayerPair:
        return pair if pair.student.dim() == 2 else same_size(pair)

    def compare(
        self, pair: LayerPair, mask: Tensor | None, modules: dict[str, nn.Module]
    ) -> Tensor:
        return DISTANCES[self.distance](as_states(pair.student), as_states(pair.teacher))


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": features.hidden_mse,
    "cosine": features.cosine,
}


class PositionsObjective(FeatureObjective):
    """Base of objectives on layers with positions, at one resolution."""

    def prepare(self, pair: LayerPair, mask: Tensor | None) -> LayerPair:
        if pair.student.dim() == 2:
            raise ValueError(
                f"{type(self).__name__} needs layers with positions, and {pair.key} is a single "
                "vector."
            )
        return same_size(pair)


@dataclass(frozen=True)
class FSP(PositionsObjective):
    """Flow between aligned layers: Gram matrices of each layer with the next (Yim et al. 2017).

    It takes the pairs of the layer map in turn, so that it needs two pairs or more.
    """

    name: ClassVar[str] = "fsp"
    citation: ClassVar[str] = bibtex("yim2017gift")

    def values(
        self, pairs: Sequence[LayerPair], mask: Tensor | None, modules: dict[str, nn.Module]
    ) -> list[Tensor]:
        if len(pairs) < 2:
            raise ValueError(
                f"FSP compares consecutive layers, and the layer map {self.layers!r} pairs only "
                f"{len(pairs)}. Name two pairs or more."
            )
        return [
            features.fsp(a.student, a.teacher, b.student, b.teacher, mask=mask)
            for a, b in pairwise(pairs)
        ]


@dataclass(frozen=True)
class TokenGram(PositionsObjective):
    """Relations between the positions of a sequence: squared differences of token Gram matrices.

    TextBrewer's ``mmd_loss`` (Yang et al. 2020, arXiv 2002.12620), of layers with themselves.
    """

    projects: ClassVar[bool] = False
    name: ClassVar[str] = "token_gram"
    citation: ClassVar[str] = bibtex("yang2020textbrewer")

    def compare(
        self, pair: LayerPair, mask: Tensor | None, modules: dict[str, nn.Module]
    ) -> Tensor:
        return features.mmd(as_states(pair.student), as_states(pair.teacher), mask=mask)
