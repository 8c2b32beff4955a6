"""Divergences that treat classes separately, or across a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hf_distill.losses import distribution
from hf_distill.models.signals import BatchItems
from hf_distill.objectives.base.objective import Context, bibtex
from hf_distill.objectives.base.temperature import Temperature
from hf_distill.objectives.logits import CLASSES, Divergence, LabelledDivergence, Loss


@dataclass(frozen=True)
class LogitStandardizedKL(Divergence):
    """Forward KL of standardised logits (Sun et al. 2024, arXiv 2403.01427); three classes or more.

    Standardised, two logits are always the same two numbers: the gradient is 0.
    """

    temperature: Temperature = 2.0
    name: ClassVar[str] = "logit_standardized_kl"
    loss: ClassVar[Loss] = staticmethod(distribution.logit_standardized_kl)
    kinds: ClassVar[frozenset[str]] = CLASSES
    citation: ClassVar[str] = bibtex("sun2024logit")

    def check(self, kind: str, classes: int | None = None) -> None:
        super().check(kind, classes)
        if classes is None or classes < 3:
            found = "a number that varies, with masked positions" if classes is None else classes
            raise ValueError(
                f"LogitStandardizedKL needs three classes or more, got {found}: two standardised "
                "logits are always +-0.7, and nothing would be learned. Use ForwardKL."
            )


@dataclass(frozen=True)
class DecoupledKD(LabelledDivergence):
    """Decoupled KD: separate weights for the target class and the others (DKD, Zhao et al. 2022,
    arXiv 2203.08679).

    Args:
        alpha: The weight of the target class against the rest.
        beta: The weight of the distribution among the rest.
    """

    temperature: Temperature = 4.0
    alpha: float = 1.0
    beta: float = 8.0
    name: ClassVar[str] = "decoupled_kd"
    loss: ClassVar[Loss] = staticmethod(distribution.decoupled_kd)
    citation: ClassVar[str] = bibtex("zhao2022decoupled")


@dataclass(frozen=True)
class NKD(LabelledDivergence):
    """Normalised KD: the target's and the others' cross-entropies (Yang et al. 2023, 2303.13005).

    Args:
        temperature: Of the distribution among the other classes.
        gamma: The weight of the distribution among the other classes.
    """

    temperature: Temperature = 1.0
    gamma: float = 1.5
    name: ClassVar[str] = "nkd"
    loss: ClassVar[Loss] = staticmethod(distribution.nkd)
    citation: ClassVar[str] = bibtex("yang2023nkd")


@dataclass(frozen=True)
class Dist(Divergence):
    """Correlations within items and within classes (DIST, Huang et al. 2022, arXiv 2205.10536).

    The second compares the items of a batch with each other, so that its value depends on how the
    data is split into batches.

    Args:
        beta: The weight of the correlation over the classes of an item; needs three classes.
        gamma: The weight of the correlation over the items of a class.
    """

    beta: float = 1.0
    gamma: float = 1.0
    name: ClassVar[str] = "dist"
    loss: ClassVar[Loss] = staticmethod(distribution.dist)
    kinds: ClassVar[frozenset[str]] = CLASSES
    compares_examples: ClassVar[bool] = True
    citation: ClassVar[str] = bibtex("huang2022knowledge")

    def check(self, kind: str, classes: int | None = None) -> None:
        super().check(kind, classes)
        if self.beta > 0 and classes is not None and classes < 3:
            raise ValueError(
                f"The correlation within items (beta={self.beta}) needs three classes or more, got "
                f"{classes}: between two it is always 1, and nothing would be learned. Use "
                "Dist(beta=0) or ForwardKL."
            )

    def settings(
        self, student: Tensor, teacher: Tensor, items: BatchItems, context: Context, several: bool
    ) -> dict[str, Any]:
        settings = super().settings(student, teacher, items, context, several)
        return {**settings, "mask": items.masks["items"]}


@dataclass(frozen=True)
class TopKKL(Divergence):
    """Forward KL over the teacher's k most likely classes and one bucket for the rest.

    Args:
        k: How many classes.
    """

    k: int = 8
    name: ClassVar[str] = "top_k_kl"
    loss: ClassVar[Loss] = staticmethod(distribution.top_k_kl)
    kinds: ClassVar[frozenset[str]] = CLASSES
    citation: ClassVar[str] = bibtex("hinton2015distilling")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"Expected k of at least 1, got {self.k}.")
