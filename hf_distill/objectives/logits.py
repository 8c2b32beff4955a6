"""Objectives on the two models' outputs: distributions and decisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_distill.losses import logit_mse
from hf_distill.losses.distribution.kl import times_t_squared
from hf_distill.losses.distribution.sparse import coarsened
from hf_distill.models.signals import LOGITS, BatchItems, Needs, Signal
from hf_distill.objectives.base.objective import Context, Objective, Term
from hf_distill.objectives.base.temperature import (
    LearnedTemperature,
    Temperature,
    temperature_at,
    temperature_from,
)

Loss = Callable[..., Tensor]
PROBABILITIES = frozenset({"softmax", "ctc", "sigmoid"})
CLASSES = frozenset({"softmax", "ctc"})
COARSE = Needs(logits=True, unsampled=True)
"""Divergences that need probabilities only; those of some classes and the mass of the rest
suffice."""
DRAWN = Needs(logits=True)
"""Divergences that are linear in the teacher's probabilities, up to a constant: their gradient is
unbiased if the probabilities are an unbiased estimate."""


@dataclass(frozen=True)
class LogitObjective(Objective):
    """Base: a loss function on two logits of one shape, whose keywords are the settings.

    For multi-label heads every class is a Bernoulli variable and the classes are summed.
    """

    loss: ClassVar[Loss]
    kinds: ClassVar[frozenset[str]] = PROBABILITIES
    gaussian: ClassVar[float] = 0.0
    """Factor of the squared difference for regression, whose outputs are means of normal
    distributions of variance 1. 0: no closed form."""
    needs: ClassVar[Needs] = LOGITS

    @property
    def is_itemwise(self) -> bool:
        return not self.compares_examples

    def check(self, kind: str, classes: int | None = None) -> None:
        name = type(self).__name__
        if kind == "none":
            raise ValueError(
                f"{name} compares logits, and a plain encoder has none. Align its "
                "hidden states or embeddings instead: objective=HiddenStates()."
            )
        if kind == "regression" and not self.gaussian:
            raise ValueError(
                f"{name} of two normal distributions has no closed form; for a regression head "
                "use LogitMSE or ForwardKL."
            )
        if kind != "regression" and kind not in self.kinds:
            raise ValueError(
                f"{name} compares the classes of one softmax, and this is a {kind} head, whose "
                "outputs are independent. Use ForwardKL, which sums over them."
            )

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        ours, theirs = both_logits(student, teacher)
        if student.kind == "regression":
            values = self.gaussian * logit_mse(ours, theirs)
        else:
            several = student.kind == "sigmoid" and "sigmoid" in self.kinds
            settings = self.settings(ours, theirs, items, context, several)
            pair = (bernoulli(ours), bernoulli(theirs)) if several else (ours, theirs)
            values = type(self).loss(*pair, **settings)
            values = values.sum(-1) if several else values
        return [Term(self.name, values, "items", items.masks["items"])]

    def settings(
        self, student: Tensor, teacher: Tensor, items: BatchItems, context: Context, several: bool
    ) -> dict[str, Any]:
        """The keywords of the loss function."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def bernoulli(logits: Tensor) -> Tensor:
    """Append a zero logit: softmax([z, 0]) is (sigmoid(z), 1 - sigmoid(z)), so one implementation
    serves both."""
    return torch.stack([logits, torch.zeros_like(logits)], dim=-1)


def both_logits(student: Signal, teacher: Signal | None) -> tuple[Tensor, Tensor]:
    """The logits of both, of one shape.

    Raises:
        ValueError: one of them gave none, or the shapes differ.
    """
    if teacher is None or teacher.logits is None or student.logits is None:
        raise ValueError("Expected logits of student and teacher; this teacher gave none.")
    check_shapes(student.logits.shape, teacher.logits.shape)
    return student.logits, teacher.logits


def check_shapes(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    """Refuse logits of two shapes."""
    if tuple(ours) != tuple(theirs):
        raise ValueError(
            f"Expected student and teacher logits of one shape, got {tuple(ours)} and "
            f"{tuple(theirs)}. Both models must see the same inputs and give one row per "
            "item (the same resolution, frame rate and sequence length)."
        )


@dataclass(frozen=True)
class Divergence(LogitObjective):
    """Base of divergences with a temperature.

    Args:
        temperature: A number above 0; or a `Schedule`, one number per class, an
            `AdaptiveTemperature` per example, a `LearnedTemperature`.
        t_squared: Multiply the value by the square of the temperature (Hinton et al. 2015), so that
            its gradient keeps its size.
    """

    temperature: Temperature = 1.0
    t_squared: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", temperature_from(self.temperature))

    @property
    def is_itemwise(self) -> bool:
        return super().is_itemwise and not isinstance(self.temperature, LearnedTemperature)

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        learned = self.temperature
        return learned.module() if isinstance(learned, LearnedTemperature) else None

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        if teacher is None or teacher.sparse is None or student.logits is None:
            return super().terms(student, teacher, items, context)
        sparse = teacher.sparse
        temperature = self._stored(sparse.temperature)
        check_shapes(student.logits.shape, (*sparse.ids.shape[:-1], sparse.classes))
        rest = sparse.log_rest if sparse.unsampled else None
        pair = coarsened(student.logits, sparse.log_probs, sparse.ids, rest, temperature)
        settings = super().settings(*pair, items, context, False)
        settings |= {"temperature": 1.0, "t_squared": False}
        values = times_t_squared(type(self).loss(*pair, **settings), temperature, self.t_squared)
        return [Term(self.name, values, "items", items.masks["items"])]

    def _stored(self, temperature: float) -> float:
        """Temperature of stored probabilities, which is fixed."""
        if self.temperature != temperature:
            raise ValueError(
                f"Expected {type(self).__name__}(temperature={temperature:g}), the temperature of "
                f"the teacher's stored probabilities, got {self.temperature}. Those of some "
                "classes alone cannot be softened later: use theirs, or write the cache anew."
            )
        return temperature

    def settings(
        self, student: Tensor, teacher: Tensor, items: BatchItems, context: Context, several: bool
    ) -> dict[str, Any]:
        settings = super().settings(student, teacher, items, context, several)
        if several and isinstance(self.temperature, tuple):
            temperature: float | Tensor = student.new_tensor(self.temperature)
        elif isinstance(self.temperature, float | int):
            temperature = self.temperature
        else:
            temperature = temperature_at(
                self.temperature, student, teacher, context.progress, context.module
            )
            if several and isinstance(temperature, Tensor) and temperature.dim() > 0:
                temperature = temperature[..., None]
        return {**settings, "temperature": temperature}


@dataclass(frozen=True)
class LabelledDivergence(Divergence):
    """Base of divergences that treat the target class separately, and therefore need labels."""

    kinds: ClassVar[frozenset[str]] = frozenset({"softmax"})
    needs_labels: ClassVar[bool] = True

    def check(self, kind: str, classes: int | None = None) -> None:
        super().check(kind, classes)
        if classes is not None and classes < 3:
            raise ValueError(
                f"{type(self).__name__} needs three classes or more, got {classes}: with a single "
                "class beside the target, the part among the others is always 0. Use ForwardKL."
            )

    def settings(
        self, student: Tensor, teacher: Tensor, items: BatchItems, context: Context, several: bool
    ) -> dict[str, Any]:
        settings = super().settings(student, teacher, items, context, several)
        mask = items.masks.get("labels")
        if items.labels is None or mask is None:
            raise ValueError(
                f"{type(self).__name__} needs labels to tell the target class from the others, and "
                "this batch has none. Use ForwardKL, or give the data a label column."
            )
        labels = items.class_ids(type(self).__name__)
        return {**settings, "labels": labels.masked_fill(~mask, -100)}

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        (term,) = super().terms(student, teacher, items, context)
        return [Term(self.name, term.values, "labels", items.masks["labels"])]
