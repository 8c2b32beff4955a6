"""Running sums of the trainer's evaluation metrics."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_distill.evaluation.metrics.functional import (
    calibration_error,
    confidence_sums,
    counting_dtype,
    decision_agreement,
)
from hf_distill.losses import forward_kl, reverse_kl
from hf_distill.losses.distribution.kl import log_probs
from hf_distill.losses.distribution.sparse import coarsened
from hf_distill.losses.numerics import compute_dtype
from hf_distill.models.signals import BatchItems, Signal, SparseProbs
from hf_distill.objectives.base.objective import Term

OTHER = "other"
PERPLEXITIES = ("perplexity", "teacher_perplexity")
"""Sums of negative log-likelihoods until `Evaluation.result`."""
FIGURES = frozenset(
    f"loss {OTHER} ece agreement forward_kl_divergence reverse_kl_divergence acceptance_rate "
    "entropy teacher_entropy entropy_gap perplexity teacher_perplexity epoch step learning_rate "
    "grad_norm total_flos runtime".split()
)
"""Names in a log that no component of a loss can have."""


class RunningMetrics:
    """Sums and counts over an evaluation set, exact for any batch size and number of processes.

    Everything stays on the device until `result`; there one collective adds up the ranks. A batch
    may come in parts, down to single items, and a part may be empty.

    Args:
        vocabulary: The classes are the tokens of a language model, with perplexity and entropy.
        teacher: Compare the student with its teacher.
    """

    def __init__(self, vocabulary: bool = False, teacher: bool = True) -> None:
        self._vocabulary = vocabulary
        self._teacher = teacher
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._bins: Tensor | None = None
        self._heads: dict[str, RunningMetrics] = {}

    def add_terms(
        self, terms: Sequence[Term], sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]
    ) -> None:
        """Add the components of the loss on one batch."""
        for term in terms:
            self._weights[term.name] = float(term.weight)
            self._add(term.name, sums[term.name], counts[term.unit])

    def add_other(self, loss: Tensor, samples: Tensor) -> None:
        """Add a loss of a subclass that is not part of the objective: a mean over examples."""
        self._weights[OTHER] = 1.0
        self._add(OTHER, loss * samples, samples)

    @torch.no_grad()
    def add_signals(self, student: Signal, teacher: Signal | None, items: BatchItems) -> None:
        """Add the outputs of both models for a batch or a part of its items.

        Logits are ``(..., C)`` (the teacher's may be probabilities of some classes), masks
        ``items`` and ``labels`` and the labels ``(...)``; without logits of the student nothing is
        added. Of a student with several heads the outputs of each are added to its own sums.
        """
        for name, own in items.members.items():
            if name in student.members:
                lesson = None if teacher is None else teacher.members.get(name)
                head = self._heads.setdefault(name, RunningMetrics(teacher=self._teacher))
                head.add_signals(student.members[name], lesson, own)
        logits, mask = student.logits, items.masks.get("items")
        if logits is None or student.kind == "regression":
            return
        teacher = teacher if self._teacher else None
        theirs = None if teacher is None or mask is None else teacher.logits
        if student.kind == "sigmoid":
            if theirs is not None and mask is not None:
                self._add_decisions(logits, theirs, mask)
            return
        chosen = logits.argmax(-1)
        log_s, log_t = _log_softmax(logits, theirs)
        if student.kind != "ctc" and items.labels is not None and "labels" in items.masks:
            self._add_labelled(log_s, log_t, chosen, items.labels, items.masks["labels"])
        if mask is None:
            return
        if self._vocabulary and log_t is None:
            self._masked("entropy", _entropy(log_s.exp(), log_s), mask)
        if theirs is not None and log_t is not None:
            self._masked("agreement", (chosen == theirs.argmax(-1)).float(), mask)
            self._add_pair(log_s, log_t, mask)
        elif teacher is not None and teacher.sparse is not None:
            self._add_sparse(logits, chosen, teacher.sparse, mask)

    def _add_labelled(
        self, log_s: Tensor, log_t: Tensor | None, chosen: Tensor, labels: Tensor, mask: Tensor
    ) -> None:
        labels = labels.argmax(-1) if labels.dim() > mask.dim() else labels  # soft: the likeliest
        confidence = log_s.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).exp()
        bins = confidence_sums(confidence, chosen == labels, mask)
        self._bins = bins if self._bins is None else self._bins + bins
        if self._vocabulary:
            index = labels.masked_fill(~mask, 0).long().unsqueeze(-1)
            for name, logs in zip(PERPLEXITIES, (log_s, log_t), strict=True):
                if logs is not None:
                    self._masked(name, -logs.gather(-1, index).squeeze(-1), mask)

    def _add_pair(self, log_s: Tensor, log_t: Tensor, mask: Tensor) -> None:
        p_s, p_t, apart = log_s.exp(), log_t.exp(), log_t - log_s
        self._masked("forward_kl_divergence", (p_t * apart).sum(-1), mask)
        self._masked("reverse_kl_divergence", -(p_s * apart).sum(-1), mask)
        if not self._vocabulary:
            return
        ours, theirs = _entropy(p_s, log_s), _entropy(p_t, log_t)
        self._masked("entropy", ours, mask)
        self._masked("teacher_entropy", theirs, mask)
        self._masked("entropy_gap", ours - theirs, mask)
        # Leviathan et al., 2022, arXiv:2211.17192, corollary 3.6, at temperature 1
        self._masked("acceptance_rate", torch.minimum(p_s, p_t).sum(-1), mask)

    def _add_decisions(self, student: Tensor, teacher: Tensor, mask: Tensor) -> None:
        """Add independent yes/no answers: the divergence of an item is the sum of theirs."""
        self._masked("agreement", decision_agreement(student, teacher), mask)
        ours, theirs = (torch.stack([x, torch.zeros_like(x)], -1) for x in (student, teacher))
        self._masked("forward_kl_divergence", forward_kl(ours, theirs).sum(-1), mask)
        self._masked("reverse_kl_divergence", reverse_kl(ours, theirs).sum(-1), mask)

    def _add_sparse(
        self, student: Tensor, chosen: Tensor, sparse: SparseProbs, mask: Tensor
    ) -> None:
        """Add metrics of a teacher with some classes and a bucket for the rest: divergences are
        lower bounds, acceptance is an upper bound, and metrics that need every class are left
        out.
        """
        self._masked("agreement", (chosen == sparse.likeliest).float(), mask)
        if sparse.unsampled and sparse.temperature == 1:
            ours, theirs = coarsened(student, sparse.log_probs, sparse.ids, sparse.log_rest)
            self._masked("forward_kl_divergence", forward_kl(ours, theirs), mask)
            self._masked("reverse_kl_divergence", reverse_kl(ours, theirs), mask)
            if self._vocabulary:
                accepted = torch.minimum(ours, theirs).exp().sum(-1)
                self._masked("acceptance_rate", accepted, mask)

    def _masked(self, name: str, values: Tensor, mask: Tensor) -> None:
        values = torch.where(mask, values, 0.0)
        self._add(name, values.sum(dtype=counting_dtype(values.device)), mask.sum())

    def _add(self, name: str, value: Tensor, count: Tensor) -> None:
        dtype = counting_dtype(value.device)
        value, count = value.detach().to(dtype), count.to(dtype)
        if name in self._sums:
            value, count = value + self._sums[name], count + self._counts[name]
        self._sums[name], self._counts[name] = value, count

    def result(self, accelerator: Accelerator) -> tuple[dict[str, float], float | None]:
        """The figures, and the loss: the weighted sum of its components over the whole set.

        The figures of a head have its name in front.
        """
        figures, loss = self._result(accelerator)
        for name, head in self._heads.items():
            own, _ = head._result(accelerator)
            figures |= {f"{name}_{figure}": value for figure, value in own.items()}
        return figures, loss

    def _result(self, accelerator: Accelerator) -> tuple[dict[str, float], float | None]:
        if not self._sums:
            return {}, None
        names = sorted(self._sums)
        sums, counts = (torch.stack([of[n] for n in names]) for of in (self._sums, self._counts))
        totals = accelerator.reduce(torch.stack([sums, counts]), "sum").cpu()
        means = totals[0] / totals[1].clamp(min=1)
        found = dict(zip(names, means.tolist(), strict=True))
        loss = sum(weight * found[name] for name, weight in self._weights.items())
        # exp of torch: infinite, and no error, after a label that has no probability at all
        exponentials = dict(zip(names, means.exp().tolist(), strict=True))
        found |= {name: exponentials[name] for name in PERPLEXITIES if name in found}
        figures = {name: value for name, value in found.items() if name != OTHER}
        if self._bins is not None:
            bins = accelerator.reduce(self._bins, "sum")
            figures["ece"] = float(calibration_error(bins))
        return figures, loss if self._weights else None


def _log_softmax(student: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities, float32 at least; of a class masked with -inf the lowest finite number."""
    if teacher is None:
        log_s, log_t = student.log_softmax(-1, dtype=compute_dtype(student)), None
    else:
        log_s, log_t = log_probs("evaluation", student, teacher)
    lowest = torch.finfo(log_s.dtype).min
    return log_s.clamp_(min=lowest), None if log_t is None else log_t.clamp_(min=lowest)


def _entropy(probabilities: Tensor, logs: Tensor) -> Tensor:
    return -(probabilities * logs).sum(-1)
