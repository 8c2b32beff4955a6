"""Objectives on how the examples of a batch relate to each other.

They compare one vector, or one map, per example. Their value depends on which examples share a
batch, by definition: it is normalised per example, but another split of the data gives another
value.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import Tensor

from hf_distill.losses import features, relations
from hf_distill.losses.numerics import above_zero
from hf_distill.models import pooling
from hf_distill.models.pooling import as_states, pooled
from hf_distill.objectives.base.alignment import LayerPair
from hf_distill.objectives.base.layers import LayerSpec
from hf_distill.objectives.base.objective import bibtex
from hf_distill.objectives.features import FeatureObjective, Loss

POOLINGS = (*pooling.POOLINGS, "none")


@dataclass(frozen=True)
class BatchObjective(FeatureObjective):
    """Base of objectives that compare the examples of a batch.

    Args:
        layers: As in every feature objective; by default the last with the last.
        groups: As in every feature objective; ``embedding`` is a plain encoder's sentence vector.
        pooling: ``mean``, ``first``, ``last``, … of the real positions, see
            `hf_distill.models.pooling.pooled`, or ``none``: the whole map, with padding set to 0.
    """

    layers: LayerSpec = "-1:-1"
    pooling: str = field(default="mean", kw_only=True)
    projects: ClassVar[bool] = False
    compares_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in POOLINGS:
            raise ValueError(f"Expected a pooling of {list(POOLINGS)}, got {self.pooling!r}.")

    def prepare(self, pair: LayerPair, mask: Tensor | None) -> LayerPair:
        ours, theirs = pair.student, pair.teacher
        if self.pooling != "none":
            ours, theirs = (pooled(x, mask, self.pooling) for x in (ours, theirs))
        elif mask is not None and ours.dim() == 3:
            ours, theirs = (x.masked_fill(~mask[..., None], 0.0) for x in (ours, theirs))
        return replace(pair, student=ours, teacher=theirs)


@dataclass(frozen=True)
class RKD(BatchObjective):
    """Distances and angles between the examples of a batch (Park et al. 2019, arXiv 1904.05068).

    Args:
        distance_weight: Of the distances.
        angle_weight: Of the angles.
    """

    distance_weight: float = 25.0
    angle_weight: float = 50.0
    name: ClassVar[str] = "rkd"
    loss: ClassVar[Loss] = staticmethod(relations.rkd)
    keywords: ClassVar[tuple[str, ...]] = ("distance_weight", "angle_weight")
    citation: ClassVar[str] = bibtex("park2019relational")


@dataclass(frozen=True)
class SimilarityPreserving(BatchObjective):
    """Similarities of the examples' activations (SP, Tung & Mori 2019, arXiv 1907.09682)."""

    pooling: str = field(default="none", kw_only=True)
    name: ClassVar[str] = "similarity_preserving"
    loss: ClassVar[Loss] = staticmethod(relations.similarity_preserving)
    citation: ClassVar[str] = bibtex("tung2019similarity")


@dataclass(frozen=True)
class PKT(BatchObjective):
    """Conditional probabilities of the examples' neighbours (PKT, Passalis & Tefas 2018, arXiv
    1803.10837)."""

    name: ClassVar[str] = "pkt"
    loss: ClassVar[Loss] = staticmethod(features.pkt)
    citation: ClassVar[str] = bibtex("passalis2018learning")


@dataclass(frozen=True)
class CorrelationCongruence(BatchObjective):
    """Correlation congruence: products of the differences of neighbouring examples (CC, Peng et al.
    2019, arXiv 1904.01802).

    Args:
        form: ``code`` or ``paper``, see `hf_distill.losses.features.correlation_congruence`.
    """

    form: Literal["code", "paper"] = "code"
    projects: ClassVar[bool] = True
    name: ClassVar[str] = "correlation_congruence"
    loss: ClassVar[Loss] = staticmethod(features.correlation_congruence)
    keywords: ClassVar[tuple[str, ...]] = ("form",)
    citation: ClassVar[str] = bibtex("peng2019correlation")


@dataclass(frozen=True)
class CKA(BatchObjective):
    """One minus the linear centred kernel alignment of two layers (arXiv 1905.00414)."""

    name: ClassVar[str] = "cka"
    loss: ClassVar[Loss] = staticmethod(features.cka)
    citation: ClassVar[str] = bibtex("kornblith2019similarity")


@dataclass(frozen=True)
class InfoNCE(BatchObjective):
    """Contrastive loss: an example's own teacher vector against those of the batch (1807.03748).

    CRD (arXiv 1910.10699) draws its negatives from a memory of the whole data set instead.

    Args:
        temperature: Of the similarities.
    """

    temperature: float = 0.07
    projects: ClassVar[bool] = True
    name: ClassVar[str] = "info_nce"
    loss: ClassVar[Loss] = staticmethod(features.info_nce)
    keywords: ClassVar[tuple[str, ...]] = ("temperature",)
    citation: ClassVar[str] = bibtex("tian2020contrastive")

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self.temperature)


@dataclass(frozen=True)
class InBatchSimilarity(BatchObjective):
    """KL between the distributions of an example's similarities to the others (SEED, 2101.04731).

    No labels: self-supervised embedding distillation. SEED compares with a queue of past batches,
    this objective with the batch.

    Args:
        temperature: Of the similarities.
    """

    temperature: float = 0.05
    name: ClassVar[str] = "in_batch_similarity"
    loss: ClassVar[Loss] = staticmethod(relations.in_batch_similarity)
    keywords: ClassVar[tuple[str, ...]] = ("temperature",)
    citation: ClassVar[str] = bibtex("fang2021seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self.temperature)


@dataclass(frozen=True)
class PKD(FeatureObjective):
    """Patient KD: normalised states of the first token, all layers but the last (1908.09355)."""

    layers: LayerSpec = "skip"
    name: ClassVar[str] = "pkd"
    loss: ClassVar[Loss] = staticmethod(features.pkd)
    citation: ClassVar[str] = bibtex("sun2019patient")

    def prepare(self, pair: LayerPair, mask: Tensor | None) -> LayerPair:
        ours, theirs = (
            x if x.dim() == 2 else as_states(x)[:, 0] for x in (pair.student, pair.teacher)
        )
        return replace(pair, student=ours, teacher=theirs)
