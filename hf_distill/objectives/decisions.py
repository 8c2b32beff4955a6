"""Objectives that align the two models' decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_distill.losses import decision, relations
from hf_distill.models.signals import BatchItems, Signal
from hf_distill.objectives.base.objective import Context, Term, bibtex
from hf_distill.objectives.logits import CLASSES, PROBABILITIES, Divergence, LogitObjective, Loss


@dataclass(frozen=True)
class HardTeacherLabels(LogitObjective):
    """Cross-entropy with the teacher's decision (hard distillation of DeiT, arXiv 2012.12877)."""

    name: ClassVar[str] = "hard_teacher_labels"
    loss: ClassVar[Loss] = staticmethod(decision.hard_teacher_labels)
    citation: ClassVar[str] = bibtex("touvron2021training")


@dataclass(frozen=True)
class ConfidenceWeightedKL(Divergence):
    """Forward KL, weighted by the teacher's confidence.

    Args:
        power: The weight is the teacher's largest probability to this power.
    """

    power: float = 1.0
    name: ClassVar[str] = "confidence_weighted_kl"
    loss: ClassVar[Loss] = staticmethod(decision.confidence_weighted_kl)


@dataclass(frozen=True)
class LabelAgreement(LogitObjective):
    """One minus the student's probability of the teacher's decision: expected disagreement."""

    name: ClassVar[str] = "label_agreement"
    loss: ClassVar[Loss] = staticmethod(decision.label_agreement)


@dataclass(frozen=True)
class Margin(LogitObjective):
    """Squared difference of the margins between the teacher's two most likely classes."""

    name: ClassVar[str] = "margin"
    loss: ClassVar[Loss] = staticmethod(decision.margin)
    kinds: ClassVar[frozenset[str]] = PROBABILITIES


@dataclass(frozen=True)
class Boundary(LogitObjective):
    """Squared hinges that put the student on the teacher's side of each decision boundary.

    Args:
        margin: The distance in logits that is enough.
    """

    margin: float = 1.0
    name: ClassVar[str] = "boundary"
    loss: ClassVar[Loss] = staticmethod(decision.boundary)

    def __post_init__(self) -> None:
        if not self.margin > 0:
            raise ValueError(f"Expected a margin above 0, got {self.margin}.")


@dataclass(frozen=True)
class ProbabilityMSE(Divergence):
    """Squared L2 distance between the models' probabilities.

    Squared differences of the probabilities, summed over the classes; for regression those of the
    outputs. The article's whole objective is
    ``alpha * ProbabilityMSE() + (1 - alpha) * WeightDecay(gamma)``.
    """

    name: ClassVar[str] = "probability_mse"
    loss: ClassVar[Loss] = staticmethod(decision.probability_mse)
    gaussian: ClassVar[float] = 1.0


@dataclass(frozen=True)
class MarginMSE(LogitObjective):
    """Squared differences of the margins between candidates, for rerankers (2010.02666).

    In a multiple-choice head the first choice is the positive one. A regression head scores single
    candidates: every ``candidates`` examples in a batch belong to one query, the positive one
    first.

    Args:
        candidates: Examples per query in a head with one score; the batch size is a multiple of it.
    """

    candidates: int = 2
    name: ClassVar[str] = "margin_mse"
    loss: ClassVar[Loss] = staticmethod(relations.margin_mse)
    kinds: ClassVar[frozenset[str]] = CLASSES
    gaussian: ClassVar[float] = 1.0
    compares_examples: ClassVar[bool] = True
    citation: ClassVar[str] = bibtex("hofstaetter2020improving")

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError(f"Expected at least 2 candidates per query, got {self.candidates}.")

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        if student.logits is None or teacher is None or teacher.logits is None:
            raise ValueError("Expected logits of student and teacher; this teacher gave none.")
        ours, theirs = student.logits, teacher.logits
        if student.kind != "regression":
            values = relations.margin_mse(ours, theirs)
            return [Term(self.name, values, "items", items.masks["items"])]
        if len(ours) % self.candidates:
            raise ValueError(
                f"Expected a batch of whole queries, {self.candidates} rows each, got {len(ours)} "
                "rows. Make the batch size a multiple of it, set dataloader_drop_last=True and "
                "keep the order of the rows (a sampler or data without shuffling within queries)."
            )
        values = relations.margin_mse(
            ours.view(-1, self.candidates), theirs.view(-1, self.candidates)
        )
        # one value per candidate, so that the count of samples divides it
        values = values.repeat_interleave(self.candidates)
        return [Term(self.name, values, "samples", items.masks["samples"])]
