"""Objectives on the first dimensions of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_distill.models.embedding.bi_encoder import other_candidates
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.base.objective import (
    Context,
    Objective,
    Term,
    bibtex,
    built_modules,
)
from hf_distill.objectives.nested import Nested

EMBEDDINGS = ("embedding", "query", "candidates")
"""Groups of hidden states that are embeddings."""


@dataclass(frozen=True)
class Matryoshka(Nested):
    """An objective on the first dimensions of the embeddings, for several numbers of them
    (Kusupati et al. 2022, arXiv 2205.13147).

    Each number adds the objective with the student's embeddings cut to so many dimensions and
    scaled to their length, as users cut them later; of a `BiEncoder` the similarities are computed
    anew, so that ``Matryoshka(HardLabels(), …)`` learns labels. The teacher's embeddings stay
    whole, which relations between examples permit; projections are built for each number.

    Args:
        objective: One objective on embeddings (`InBatchSimilarity`, `HiddenStates`, …) or on the
            logits of a bi-encoder.
        dims: Numbers of dimensions, usually with the whole width.
        weights: The factor of each; default: 1.
        cut_teacher: Cut the teacher's embeddings too, of a teacher trained so.

    Raises:
        ValueError: no numbers, another number of weights, or more dimensions than there are.
    """

    objective: Objective
    dims: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    cut_teacher: bool = False
    name: ClassVar[str] = "matryoshka"
    citation: ClassVar[str] = bibtex("kusupati2022matryoshka")

    def __post_init__(self) -> None:
        weights = (1.0,) * len(self.dims) if self.weights is None else self.weights
        dims = tuple(int(dim) for dim in self.dims)
        if not dims or min(dims) < 1 or len(set(dims)) != len(dims) or len(weights) != len(dims):
            raise ValueError(
                f"Expected different numbers of dimensions from 1 on, and as many weights, got "
                f"dims={self.dims} and weights={self.weights}."
            )
        self.adopt(
            type(self).name, type(self).citation, dims=dims, weights=tuple(map(float, weights))
        )

    @property
    def student_needs(self) -> Needs:
        return super().student_needs | Needs(hidden_states=True)

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        built = {
            str(dim): self.objective.build(_cut(student, dim), self._theirs(teacher, dim))
            for dim in self.dims
        }
        modules = {name: module for name, module in built.items() if module is not None}
        return nn.ModuleDict(modules) if modules else None

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        modules, found = built_modules(context), []
        for dim, weight in zip(self.dims, self.weights or (), strict=True):
            own = replace(context, module=modules.get(str(dim)))
            theirs = None if teacher is None else self._theirs(teacher, dim)
            for term in self.objective.terms(_cut(student, dim), theirs, items, own):
                name = f"{self.name}_{dim}{term.name.removeprefix(self.objective.name)}"
                found.append(replace(term, name=name, weight=weight * term.weight))
        return found

    def _theirs(self, teacher: Signal, dim: int) -> Signal:
        if self.cut_teacher and _embeddings(teacher):
            return _cut(teacher, dim)
        return replace(teacher, hidden_states=_embeddings(teacher))

    def __str__(self) -> str:
        return f"Matryoshka({self.objective}, dims={self.dims})"


def _embeddings(signal: Signal) -> dict[str, tuple[Tensor, ...]]:
    return {name: signal.hidden_states[name] for name in EMBEDDINGS if name in signal.hidden_states}


def _cut(signal: Signal, dim: int) -> Signal:
    """The signal with embeddings of so many dimensions, and logits computed from them.

    Raises:
        ValueError: there are no embeddings, or with fewer dimensions.
    """
    whole = _embeddings(signal)
    widths = {name: layers[-1].shape[-1] for name, layers in whole.items()}
    if not whole or min(widths.values()) < dim:
        raise ValueError(
            f"Expected embeddings (groups {list(EMBEDDINGS)}) of at least {dim} dimensions from "
            f"{signal.who or 'the model'}, got {widths or sorted(signal.hidden_states)}. Choose "
            "dims up to the width of a plain encoder, an embedder or a bi-encoder."
        )
    cut = {name: tuple(_shortened(x, dim) for x in layers) for name, layers in whole.items()}
    signal = replace(signal, hidden_states=cut)
    if signal.logits is None or not {"query", "candidates"} <= set(whole):
        return signal
    return replace(signal, **_scores(signal, whole, cut))


def _shortened(values: Tensor, dim: int) -> Tensor:
    """The first dimensions, scaled to the length of the whole vector."""
    cut = values[..., :dim]
    tiny = torch.finfo(values.dtype).tiny
    lengths = (x.norm(dim=-1, keepdim=True).clamp(min=tiny) for x in (values, cut))
    whole, own = lengths
    return cut * (whole / own)


def _scores(
    signal: Signal,
    whole: Mapping[str, tuple[Tensor, ...]],
    cut: Mapping[str, tuple[Tensor, ...]],
) -> dict[str, Any]:
    """Logits of a bi-encoder from shorter embeddings, at its scale."""
    logits = signal.logits
    assert logits is not None
    query, candidates = cut["query"][-1], cut["candidates"][-1]
    dots = torch.einsum("bd,bcd->bc", whole["query"][-1], whole["candidates"][-1]).detach()
    scale = (logits.detach() * dots).sum() / (dots * dots).sum()
    own = scale * torch.einsum("bd,bcd->bc", query, candidates)
    labelled = signal.label_logits
    if labelled is None or labelled.shape == own.shape:
        return {"logits": own, "label_logits": own}
    every = torch.cat([own, scale * other_candidates(query, candidates)], 1)
    lowest = torch.finfo(every.dtype).min
    return {"logits": own, "label_logits": every.masked_fill(labelled == lowest, lowest)}
