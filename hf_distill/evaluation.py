"""How well a student follows its teacher, summed over an evaluation set batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_distill.losses import forward_kl, reverse_kl
from hf_distill.losses.distribution.sparse import coarsened
from hf_distill.metrics.functional import (
    agreement,
    calibration_error,
    calibration_sums,
    decision_agreement,
)
from hf_distill.signals import Items, Signal, Sparse
from hf_distill.terms import Term

OTHER = "other"


class Evaluation:
    """Sums and counts over an evaluation set, exact for any batch size and number of processes.

    Everything stays on the device until `result`; there one collective adds up the ranks.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._bins: Tensor | None = None

    def add_terms(
        self, terms: Sequence[Term], sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]
    ) -> None:
        """Add the components of the loss on one batch."""
        for term in terms:
            self._weights[term.name] = float(term.weight)
            self._add(term.name, sums[term.name], counts[term.unit])

    def add_other(self, loss: Tensor, samples: Tensor) -> None:
        """Add what a subclass put into the loss besides its objective: a mean over examples."""
        self._weights[OTHER] = 1.0
        self._add(OTHER, loss * samples, samples)

    def add_signals(self, student: Signal, teacher: Signal | None, items: Items) -> None:
        """Add agreement, divergences and calibration on one batch."""
        labels, labelled = items.labels, items.masks.get("labels")
        if student.logits is None or student.kind == "regression":
            return
        softmax = student.kind != "sigmoid"
        if softmax and student.kind != "ctc" and labels is not None and labelled is not None:
            bins = calibration_sums(student.logits, labels, labelled)
            self._bins = bins if self._bins is None else self._bins + bins
        mask = items.masks.get("items")
        if teacher is None or mask is None:
            return
        if teacher.sparse is not None:
            self._add_sparse(student.logits, teacher.sparse, mask)
        if teacher.logits is None:
            return
        ours, theirs = student.logits, teacher.logits
        same = (agreement if softmax else decision_agreement)(ours, theirs)
        self._masked("agreement", same, mask)
        if not softmax:
            ours, theirs = (torch.stack([x, torch.zeros_like(x)], -1) for x in (ours, theirs))
        for name, divergence in (("kl_forward", forward_kl), ("kl_reverse", reverse_kl)):
            values = divergence(ours, theirs)
            self._masked(name, values if softmax else values.sum(-1), mask)

    def _add_sparse(self, student: Tensor, sparse: Sparse, mask: Tensor) -> None:
        """What some classes tell; the divergences are lower bounds, with a bucket for the rest."""
        self._masked("agreement", (student.argmax(-1) == sparse.likeliest).float(), mask)
        if sparse.exact and sparse.temperature == 1:
            pair = coarsened(student, sparse.log_probs, sparse.ids, sparse.log_rest)
            self._masked("kl_forward", forward_kl(*pair), mask)
            self._masked("kl_reverse", reverse_kl(*pair), mask)

    def _masked(self, name: str, values: Tensor, mask: Tensor) -> None:
        self._add(name, torch.where(mask, values, 0.0).sum(), mask.sum())

    def _add(self, name: str, value: Tensor, count: Tensor) -> None:
        value, count = value.detach().double(), count.double()
        if name in self._sums:
            value, count = value + self._sums[name], count + self._counts[name]
        self._sums[name], self._counts[name] = value, count

    def result(self, accelerator: Accelerator) -> tuple[dict[str, float], float | None]:
        """The figures, and the loss: the weighted sum of its components over the whole set."""
        if not self._sums:
            return {}, None
        names = list(self._sums)
        totals = torch.stack([*self._sums.values(), *self._counts.values()])
        totals = accelerator.reduce(totals, "sum").cpu()
        means = dict(
            zip(
                names,
                (totals[: len(names)] / totals[len(names) :].clamp(min=1)).tolist(),
                strict=True,
            )
        )
        loss = sum(weight * means[name] for name, weight in self._weights.items())
        figures = {name: mean for name, mean in means.items() if name != OTHER}
        if self._bins is not None:
            bins = accelerator.reduce(self._bins, "sum")
            figures["ece"] = float(calibration_error(bins))
        return figures, loss if self._weights else None
