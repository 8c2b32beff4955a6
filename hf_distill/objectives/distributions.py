"""Objectives that align the two models' output distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hf_distill.losses import distribution
from hf_distill.models.signals import Needs
from hf_distill.objectives.base.objective import bibtex
from hf_distill.objectives.logits import CLASSES, COARSE, DRAWN, Divergence, LogitObjective, Loss


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(teacher || student): the classical distillation loss (Hinton et al. 2015, 1503.02531).

    For regression, whose outputs are read as means of normal distributions of variance 1, it is
    half the squared difference.
    """

    name: ClassVar[str] = "forward_kl"
    needs: ClassVar[Needs] = DRAWN
    loss: ClassVar[Loss] = staticmethod(distribution.forward_kl)
    gaussian: ClassVar[float] = 0.5
    citation: ClassVar[str] = bibtex("hinton2015distilling")


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(student || teacher): seeks the teacher's modes (Gu et al. 2023, arXiv 2306.08543)."""

    name: ClassVar[str] = "reverse_kl"
    needs: ClassVar[Needs] = COARSE
    loss: ClassVar[Loss] = staticmethod(distribution.reverse_kl)
    gaussian: ClassVar[float] = 0.5
    citation: ClassVar[str] = bibtex("hinton2015distilling")


@dataclass(frozen=True)
class Jeffreys(Divergence):
    """KL(teacher || student) + KL(student || teacher)."""

    name: ClassVar[str] = "jeffreys"
    needs: ClassVar[Needs] = COARSE
    loss: ClassVar[Loss] = staticmethod(distribution.jeffreys)
    gaussian: ClassVar[float] = 1.0
    citation: ClassVar[str] = bibtex("hinton2015distilling")


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """Generalised Jensen-Shannon divergence (Agarwal et al. 2024, arXiv 2306.13649).

    Args:
        beta: 0 is forward KL, 1 reverse KL, as in TRL.
    """

    beta: float = 0.5
    name: ClassVar[str] = "jensen_shannon"
    needs: ClassVar[Needs] = COARSE
    loss: ClassVar[Loss] = staticmethod(distribution.jensen_shannon)
    citation: ClassVar[str] = bibtex("agarwal2024onpolicy")

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "beta", 0, 1)


@dataclass(frozen=True)
class SkewKL(Divergence):
    """KL(teacher || a mixture of both), smooth where the student has no mass (DistiLLM).

    Args:
        alpha: The teacher's share of the mixture; 0 is forward KL.
    """

    alpha: float = 0.1
    name: ClassVar[str] = "skew_kl"
    needs: ClassVar[Needs] = COARSE
    loss: ClassVar[Loss] = staticmethod(distribution.skew_kl)
    citation: ClassVar[str] = bibtex("ko2024distillm")

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "alpha", 0, 1)


@dataclass(frozen=True)
class SkewReverseKL(SkewKL):
    """KL(student || a mixture of both) (DistiLLM); alpha is the student's share of the mixture."""

    name: ClassVar[str] = "skew_reverse_kl"
    loss: ClassVar[Loss] = staticmethod(distribution.skew_reverse_kl)


@dataclass(frozen=True)
class AdaptiveKL(Divergence):
    """Forward and reverse KL, mixed by where the two differ (Wu et al. 2024, arXiv 2404.02657).

    Args:
        head: The teacher's mass that counts as the head of its distribution.
    """

    head: float = 0.5
    name: ClassVar[str] = "adaptive_kl"
    loss: ClassVar[Loss] = staticmethod(distribution.adaptive_kl)
    citation: ClassVar[str] = bibtex("wu2024rethinking")

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "head", 0, 1)


@dataclass(frozen=True)
class TotalVariation(Divergence):
    """Half the sum of the absolute differences of the probabilities."""

    name: ClassVar[str] = "total_variation"
    needs: ClassVar[Needs] = COARSE
    loss: ClassVar[Loss] = staticmethod(distribution.total_variation)
    citation: ClassVar[str] = bibtex("wen2023fdivergence")


@dataclass(frozen=True)
class AlphaBeta(Divergence):
    """The alpha-beta divergence, which has both KLs and more as special cases (arXiv 2505.04560).

    Args:
        alpha: See `hf_distill.losses.distribution.alpha_beta`.
        beta: As alpha.
    """

    alpha: float = 0.2
    beta: float = 0.7
    name: ClassVar[str] = "alpha_beta"
    loss: ClassVar[Loss] = staticmethod(distribution.alpha_beta)
    citation: ClassVar[str] = bibtex("wang2025abkd")


@dataclass(frozen=True)
class Renyi(Divergence):
    """The Renyi divergence of the teacher from the student.

    Args:
        alpha: The order, above 0; 1 is forward KL.
    """

    alpha: float = 0.5
    name: ClassVar[str] = "renyi"
    needs: ClassVar[Needs] = COARSE
    loss: ClassVar[Loss] = staticmethod(distribution.renyi)
    citation: ClassVar[str] = bibtex("vanerven2014renyi")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise ValueError(f"Expected alpha above 0, got {self.alpha}. 1 is forward KL.")


@dataclass(frozen=True)
class SoftCrossEntropy(Divergence):
    """Cross-entropy with the teacher's probabilities: forward KL plus the teacher's entropy."""

    name: ClassVar[str] = "soft_cross_entropy"
    needs: ClassVar[Needs] = DRAWN
    loss: ClassVar[Loss] = staticmethod(distribution.soft_cross_entropy)
    citation: ClassVar[str] = bibtex("hinton2015distilling")


@dataclass(frozen=True)
class LogitMSE(LogitObjective):
    """Squared differences of the logits, summed over the classes (Ba & Caruana 2014, 1312.6184)."""

    name: ClassVar[str] = "logit_mse"
    loss: ClassVar[Loss] = staticmethod(distribution.logit_mse)
    kinds: ClassVar[frozenset[str]] = CLASSES
    gaussian: ClassVar[float] = 1.0
    citation: ClassVar[str] = bibtex("ba2014deep")

    def check(self, kind: str, classes: int | None = None) -> None:
        super().check("softmax" if kind == "sigmoid" else kind, classes)


@dataclass(frozen=True)
class Mutual(Divergence):
    """Deep mutual learning's loss: forward KL at temperature 1 from a peer (DML, 1706.00384)."""

    name: ClassVar[str] = "mutual"
    needs: ClassVar[Needs] = DRAWN
    loss: ClassVar[Loss] = staticmethod(distribution.mutual)
    gaussian: ClassVar[float] = 0.5
    citation: ClassVar[str] = bibtex("zhang2018deep")


def between(objective: Any, name: str, low: float, high: float) -> None:
    """Refuse a setting out of its range."""
    value = getattr(objective, name)
    if not low <= value <= high:
        raise ValueError(f"Expected {name} between {low} and {high}, got {value}.")
