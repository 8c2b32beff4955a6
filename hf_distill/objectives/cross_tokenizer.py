"""Objectives for a teacher with another tokenizer (`CrossTokenizerTeacher`).

`ForwardKL` and its like compare the tokens that both have, and all others as one; these use more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from hf_distill.losses.distribution.cross_tokenizer import (
    merged_kl,
    span_kl,
    summed_over_spans,
    universal_logit_distance,
)
from hf_distill.losses.distribution.kl import check_temperature
from hf_distill.losses.numerics import compute_dtype
from hf_distill.models.signals import BatchItems, CrossTokenizerLogits, Needs, Signal
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex


@dataclass(frozen=True)
class _Crossing(Objective):
    """Base of objectives on both models' own logits, at positions where both tokenizations
    agree."""

    needs: ClassVar[Needs] = Needs(logits=True, cross_tokenizer=True)

    @property
    def student_needs(self) -> Needs:
        return Needs(logits=True, unsampled=True, full_vocabulary=True)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        if teacher is None or teacher.cross_tokenizer is None or student.logits is None:
            raise ValueError(
                f"{type(self).__name__} is for a teacher with another tokenizer: "
                "CrossTokenizerTeacher(teacher, tokenizer, student_tokenizer). With the same "
                "tokenizer use ForwardKL."
            )
        values = self.values(student.logits, teacher.cross_tokenizer)
        return [Term(self.name, values, "items", items.masks["items"])]

    def values(self, logits: Tensor, foreign: CrossTokenizerLogits) -> Tensor:
        """One value per position ``(B, T)``."""
        raise NotImplementedError


@dataclass(frozen=True)
class PrefixKL(_Crossing):
    """Forward KL over the shared tokens; every other token counts as its longest shared prefix.

    A token of only one vocabulary (``1100``) counts as its longest prefix in both (``1``), so that
    the student does not learn to avoid its own tokens, as it would with one bucket for all of them.

    Args:
        temperature: Softens both distributions.
        t_squared: Multiply by its square.
    """

    temperature: float = 1.0
    t_squared: bool = field(default=True, kw_only=True)
    name: ClassVar[str] = "prefix_kl"
    citation: ClassVar[str] = bibtex("sreenivas2026xtoken")

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def values(self, logits: Tensor, foreign: CrossTokenizerLogits) -> Tensor:
        return merged_kl(
            logits,
            foreign.logits,
            foreign.student_classes,
            foreign.teacher_classes,
            foreign.classes,
            self.temperature,
            t_squared=self.t_squared,
        )


@dataclass(frozen=True)
class UniversalLogitDistance(_Crossing):
    """Distance of the sorted probabilities (ULD, Boizard et al. 2024, arXiv 2402.12030).

    It looks at no token, and is the baseline where few are shared. The paper adds 1.5 of it to the
    cross-entropy: ``HardLabels() + 1.5 * UniversalLogitDistance()``.

    Args:
        temperature: Softens both distributions.
    """

    temperature: float = 1.0
    name: ClassVar[str] = "universal_logit_distance"
    citation: ClassVar[str] = bibtex("boizard2024crosstokenizer")

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def values(self, logits: Tensor, foreign: CrossTokenizerLogits) -> Tensor:
        return universal_logit_distance(logits, foreign.logits, self.temperature)


@dataclass(frozen=True)
class SpanKL(_Crossing):
    """KL between the models' probabilities of the text of each span, in their own tokens.

    The probability of a span is the product of those of its tokens, so that spans of several tokens
    of either side are compared as well.
    """

    name: ClassVar[str] = "span_kl"

    def values(self, logits: Tensor, foreign: CrossTokenizerLogits) -> Tensor:
        logits = logits.to(compute_dtype(logits))
        chosen = logits.gather(-1, foreign.tokens[..., None]).squeeze(-1)
        ours = summed_over_spans(chosen - logits.logsumexp(-1), foreign.spans, logits.shape[1])
        # positions without a span have log-probability 0 on both sides, and are not items
        return span_kl(ours, foreign.log_probs)
