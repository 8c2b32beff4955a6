"""Objectives on self-attention: its maps, and the relations within queries, keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_distill.losses import attention
from hf_distill.models.places import check_length
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.base.layers import (
    LayerSpec,
    check_group,
    layer_map,
    module_pairs,
    read_layers,
)
from hf_distill.objectives.base.objective import Context, Objective, Term, WeightedSum, bibtex
from hf_distill.objectives.distributions import SoftCrossEntropy
from hf_distill.objectives.features import HiddenStates, term_of

Compare = Callable[[Any, Any, Tensor | None], Tensor]
DISTANCES: dict[str, Callable[..., Tensor]] = {
    "mse": attention.attention_mse,
    "kl": attention.attention_kl,
    "ce": attention.attention_ce,
}


@dataclass(frozen=True)
class AttentionObjective(Objective):
    """Base of objectives on self-attention, layer by layer; layer 1 is the first.

    Args:
        layers: A layer map, see `parse_layers`, by index, fraction or name.
        groups: Which stacks to align (``encoder``, ``decoder``, ``text``, …); None: all.
        causal: Leave out the later positions (decoders).
    """

    layers: LayerSpec = "uniform"
    groups: tuple[str, ...] | None = field(default=None, kw_only=True)
    causal: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        read_layers(self)
        if self.layers == "emd" or module_pairs(self.layers):
            raise ValueError(
                f"Expected layers by index, fraction or name, got {self.layers!r}: attention has "
                "no module path and no learned map. Use 'uniform' or '12:6'."
            )

    def over_layers(
        self,
        name: str,
        field: str,
        signals: tuple[Signal, Signal | None],
        items: BatchItems,
        compare: Compare,
    ) -> list[Term]:
        """One term for each group: the mean over its pairs of layers, which `compare` compares.

        The field of the signals is ``attentions`` or ``qkv``.
        """
        if signals[1] is None:
            raise ValueError("Expected attention of a teacher, got no teacher.")
        student, teacher = (getattr(signal, field) for signal in signals)
        groups = tuple(student) if self.groups is None else self.groups
        terms = []
        for group in groups:
            check_group("attention", group, student, teacher)
            ours, theirs = student[group], teacher[group]
            mask = items.masks.get(group)
            values = []
            for s, t in layer_map(self.layers, len(ours), len(theirs)):
                if s == 0 or t == 0:
                    raise ValueError(
                        f"Expected layers from 1, got the pair {(s, t)} (student, teacher): the "
                        "embeddings (0) have no attention."
                    )
                for signal, layer in zip(signals, (ours[s - 1], theirs[t - 1]), strict=True):
                    if mask is not None and signal is not None:
                        length = layer[0].shape[-2] if field == "qkv" else layer.shape[-1]
                        check_length(signal.who or "a model", f"attention ({group})", length, mask)
                values.append(compare(ours[s - 1], theirs[t - 1], mask))
            value = torch.stack(values).mean(0)
            label = name if len(groups) == 1 else f"{name}_{group}"
            terms.append(term_of(label, value, group if mask is not None else "", items))
        return terms

    def relations(self, which: int, heads: int | None = None) -> Compare:
        """Comparison of the queries (0), keys (1) or values (2); None: the teacher's heads."""

        def compare(ours: Any, theirs: Any, mask: Tensor | None) -> Tensor:
            count = heads or theirs[which].shape[1]
            ours, theirs = (x[which].transpose(1, 2).flatten(2) for x in (ours, theirs))
            return attention.relation_kl(ours, theirs, count, mask=mask, causal=self.causal)

        return compare


@dataclass(frozen=True)
class AttentionMaps(AttentionObjective):
    """Distance of attention maps, summed over the keys, averaged over heads and layers.

    Args:
        distance: ``mse``, ``kl`` (teacher || student) or ``ce`` (cross-entropy of the scores).
        scores: Compare the scores before the softmax, as TinyBERT does: queries times keys over
            the root of their size, without position biases and rotations. ``ce`` always does.
        heads: ``each`` with its own, or their ``mean`` (``sum``) where the models have other
            numbers of heads.
    """

    distance: str = "mse"
    scores: bool = False
    heads: str = "each"
    name: ClassVar[str] = "attention_maps"
    citation: ClassVar[str] = bibtex("jiao2020tinybert")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance not in DISTANCES:
            raise ValueError(f"Expected a distance 'mse', 'kl' or 'ce', got {self.distance!r}.")
        if self.heads not in ("each", "mean", "sum"):
            raise ValueError(f"Expected heads 'each', 'mean' or 'sum', got {self.heads!r}.")
        if self.distance == "kl" and self.scores:
            raise ValueError("KL compares probabilities: use distance='ce' for scores.")

    @property
    def _scored(self) -> bool:
        return self.scores or self.distance == "ce"

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(qkv=True) if self._scored else Needs(attentions=True)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        distance = DISTANCES[self.distance]

        def compare(ours: Any, theirs: Any, mask: Tensor | None) -> Tensor:
            maps = [scores_of(x) if self._scored else x for x in (ours, theirs)]
            return distance(*maps, mask=mask, heads=self.heads, causal=self.causal)

        field = "qkv" if self._scored else "attentions"
        return self.over_layers(self.name, field, (student, teacher), items, compare)


def scores_of(qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Attention scores before the softmax, ``(B, heads, T, T)``; keys may have fewer heads."""
    queries, keys, _ = qkv
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    return queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])


@dataclass(frozen=True)
class MiniLM(AttentionObjective):
    """The last layer's attention maps and value relations (Wang et al. 2020, arXiv 2002.10957).

    Both models need the same number of heads. Two terms: ``minilm_attention``, ``minilm_values``.

    Args:
        layers: As in every attention objective; by default the last with the last.
    """

    layers: LayerSpec = "-1:-1"
    name: ClassVar[str] = "minilm"
    needs: ClassVar[Needs] = Needs(attentions=True, qkv=True)
    citation: ClassVar[str] = bibtex("wang2020minilm")

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:

        def maps(ours: Tensor, theirs: Tensor, mask: Tensor | None) -> Tensor:
            if ours.shape[1] != theirs.shape[1]:
                raise ValueError(
                    f"Expected as many attention heads in the student as in the teacher, got "
                    f"{ours.shape[1]} and {theirs.shape[1]}: MiniLM compares head by head. Use "
                    "MiniLMv2(), which cuts both models anew."
                )
            return attention.attention_kl(ours, theirs, mask=mask)

        both = (student, teacher)
        return [
            *self.over_layers("minilm_attention", "attentions", both, items, maps),
            *self.over_layers("minilm_values", "qkv", both, items, self.relations(2)),
        ]


@dataclass(frozen=True)
class MiniLMv2(AttentionObjective):
    """Relations within queries, keys and values (Wang et al. 2021, arXiv 2012.15828).

    The models may have any numbers of heads: both are cut anew into ``relation_heads``. Three terms
    of equal weight: ``minilm_v2_queries``, ``minilm_v2_keys``, ``minilm_v2_values``.

    Args:
        layers: As in every attention objective; by default the last with the last. (The authors
            take an upper middle layer of large teachers.)
        relation_heads: How many; it divides the widths of both models. None: the teacher's heads.
    """

    layers: LayerSpec = "-1:-1"
    relation_heads: int | None = None
    name: ClassVar[str] = "minilm_v2"
    needs: ClassVar[Needs] = Needs(qkv=True)
    citation: ClassVar[str] = bibtex("wang2021minilmv2")

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:

        terms = []
        for which, name in enumerate(("queries", "keys", "values")):
            label = f"{self.name}_{name}"
            terms += self.over_layers(
                label, "qkv", (student, teacher), items, self.relations(which, self.relation_heads)
            )
        return terms


@dataclass(frozen=True)
class TinyBERT(Objective):
    """TinyBERT's whole set: attention scores, hidden states with embeddings, predictions.

    The official code averages over the positions with padding, divides attention by the number of
    keys and predictions by the number of classes, and adds up the layers; here layers are averaged
    (Jiao et al. 2020, arXiv 1909.10351). Terms: ``tinybert_attention_maps``,
    ``tinybert_hidden_states``, ``tinybert_soft_cross_entropy``.

    Args:
        layers: The layer map of both, without the embeddings, which are always paired.
        projection: As in every feature objective; the official code shares one.
        temperature: Of the predictions.
        prediction: The weight of the predictions; 0 is the first of TinyBERT's two stages.
        heads: As in `AttentionMaps`: ``mean`` where the models have other numbers of heads.
    """

    layers: LayerSpec = "uniform"
    projection: str = "shared"
    temperature: float = 1.0
    prediction: float = 1.0
    heads: str = "each"
    name: ClassVar[str] = "tinybert"
    citation: ClassVar[str] = bibtex("jiao2020tinybert")

    def __post_init__(self) -> None:
        self._parts  # noqa: B018 (checks the settings)

    @property
    def _parts(self) -> WeightedSum:
        total = (
            AttentionMaps(self.layers, heads=self.heads, scores=True)
            + HiddenStates(self.layers, projection=self.projection)
            + HiddenStates(((0, 0),), projection=self.projection)  # the embeddings
        )
        if self.prediction:
            total = total + self.prediction * SoftCrossEntropy(self.temperature)
        return total

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self._parts.needs

    def check(self, kind: str, classes: int | None = None) -> None:
        self._parts.check(kind, classes)

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        return self._parts.build(student, teacher)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        return [
            replace(term, name=f"{self.name}_{term.name}")
            for term in self._parts.terms(student, teacher, items, context)
        ]
