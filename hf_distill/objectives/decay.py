"""Terms on the student's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_distill.models.signals import BatchItems, Signal
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex
from hf_distill.objectives.base.schedules import check_weight


@dataclass(frozen=True)
class WeightDecay(Objective):
    """An explicit L2 term: ``strength * sum(||w - w0||^2)``, counted once per optimizer step.

    It acts through the gradient, so an adaptive optimizer rescales it; the optimizer's own
    ``weight_decay`` (AdamW) is decoupled from the loss. Use one of the two. Biases and norms are
    left out, by the same names as in `transformers.Trainer`.

    Args:
        strength: The factor gamma.
        target: ``zero``, or ``init`` for the distance to the weights before training (L2-SP,
            Li et al. 2018, arXiv 1802.01483).
    """

    strength: float = 1.0
    target: str = "zero"
    name: ClassVar[str] = "weight_decay"
    citation: ClassVar[str] = bibtex("li2018explicit")

    def __post_init__(self) -> None:
        check_weight(self.strength)
        if self.target not in ("zero", "init"):
            raise ValueError(f"Expected a target of 'zero' or 'init', got {self.target!r}.")

    @property
    def needs_initial(self) -> bool:  # type: ignore[override]
        return self.target == "init"

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        squares = [
            (p - context.initial[name] if self.needs_initial else p).square().sum()
            for name, p in context.parameters.items()
        ]
        if not squares:
            raise ValueError("WeightDecay found no trainable weights (biases and norms are out).")
        return [Term(self.name, self.strength * torch.stack(squares).sum(), "batches")]
