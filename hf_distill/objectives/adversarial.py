"""Adversarial objectives: IAD and FreeLB."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_distill.data.random_states import same_torch_randomness
from hf_distill.models.signals import LOGITS, BatchItems, Needs, Signal
from hf_distill.objectives.adversaries import PGD, ask_teacher, by_inputs, summed
from hf_distill.objectives.base.objective import Context, Objective, Term, bibtex, mean_term
from hf_distill.objectives.distributions import ForwardKL
from hf_distill.objectives.input_perturbations import InputPerturbation
from hf_distill.objectives.labels import at_least_float
from hf_distill.objectives.nested import Nested, describe_nested
from hf_distill.objectives.perturbed import answer, inside, pair_of, perturbation_from, shown


@dataclass(frozen=True)
class IAD(Objective):
    """Introspective adversarial distillation (IAD-I): the weight of the teacher is its probability
    of the label of x' (Zhu et al. 2022, arXiv 2106.04928).

    w T² KL(T(x) || S(x')) + (1 - w) T² KL(S(x) || S(x')) with w = p_T(y | x')^beta; S(x) is fixed.
    The two parts are logged as ``iad`` and ``iad_itself``. (The authors' code
    leaves the first part at full weight, and S(x) in the graph; here it is as in the paper.)

    Args:
        by: The perturbation; ``PGD(8 / 255)`` in the paper.
        beta: How fast trust falls with the teacher's probability of the label; 0: full trust.
        temperature: Of both divergences.
        begin: The epoch before which w is 1.
    """

    by: Mapping[str, Any] | InputPerturbation
    beta: float = 0.1
    temperature: float = 1.0
    begin: float = 0.0
    name: ClassVar[str] = "iad"
    needs: ClassVar[Needs] = LOGITS
    needs_labels: ClassVar[bool] = True
    citation: ClassVar[str] = bibtex("zhu2022reliable")

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", perturbation_from(self.by))
        ForwardKL(self.temperature)
        if not self.beta >= 0:
            raise ValueError(f"Expected beta of at least 0, got {self.beta}.")

    @property
    def columns(self) -> frozenset[str]:
        return perturbation_from(self.by).columns

    def check(self, kind: str, classes: int | None = None) -> None:
        if kind != "softmax":
            raise ValueError(
                f"Introspection reads the teacher's probability of the label, and this is a {kind} "
                "head. Use OnPerturbed(ForwardKL(), …)."
            )

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        by = perturbation_from(self.by)
        pair, batch = shown(by, teacher, items, context, str(self))
        ours, kl = answer(pair, by, batch, self.student_needs), ForwardKL(self.temperature)
        (taught,) = kl.terms(ours, teacher, items, context)
        (own,) = kl.terms(ours, student.detach(), items, context)
        trust = torch.ones_like(taught.values)
        if context.progress.epoch >= self.begin:
            trust = label_probability(ask_teacher(pair, batch, LOGITS, str(self)), items)
            trust = trust.to(taught.values.dtype) ** self.beta
        mask = items.masks["labels"]
        return [
            Term(self.name, trust * taught.values, "labels", mask),
            Term(f"{self.name}_itself", (1 - trust) * own.values, "labels", mask),
        ]

    def describe(self) -> dict[str, Any]:
        return describe_nested(self)


def label_probability(signal: Signal, items: BatchItems) -> Tensor:
    """Probability of each item's label, detached; 1 without a label."""
    mask = items.masks.get(items.own_labels)
    if items.labels is None or mask is None or signal.logits is None:
        raise ValueError(
            "Expected labels and a teacher with logits of every class, to read its probability of "
            "the label. Give the data a label column, or use another objective."
        )
    log_probs = at_least_float(signal.logits.detach()).log_softmax(-1)
    labels = items.class_ids("The probability of the label").masked_fill(~mask, 0)
    return log_probs.gather(-1, labels[..., None]).squeeze(-1).masked_fill(~mask, 0.0).exp()


@dataclass(frozen=True)
class FreeLB(Nested):
    """Mean of an objective over the steps of the ascent that maximises it (Zhu et al. 2020,
    1909.11764).

    From a random start in the ball, each of K passes in training mode gives both a part of the loss
    and the gradient of the next step, so that the search costs no additional forward. All passes
    have the same dropout mask. (All K graphs are kept until the backward: K times the memory.)

    Args:
        objective: Any one objective; the paper's is ``HardLabels()``.
        epsilon: The radius, in the units of the input's `InputSpace` (text: lengths
            of the token's embedding, in a ball around each token; the paper's is one ball around
            the whole text).
        steps: K, the number of passes.
        step_size: In the same units; None: 2.5 epsilon / steps, and no more than epsilon.
        norm: ``l2`` or ``linf``.
        start: As in `PGD`.
    """

    objective: Objective
    epsilon: float
    steps: int = 3
    step_size: float | None = None
    norm: str = "l2"
    start: str = "random"
    name: ClassVar[str] = "free_lb"

    def __post_init__(self) -> None:
        self.adopt("free_lb", bibtex("zhu2020freelb"))
        self._search()  # checks the settings

    def _search(self) -> PGD:
        return PGD(self.epsilon, self.steps, self.step_size, self.norm, self.start)

    @property
    def student_needs(self) -> Needs:
        return inside(super().student_needs)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        pair, part = pair_of(context, str(self)), self.objective
        space, search = pair.space, self._search()
        center = space.point(pair.task_model, pair.batch)
        ball = space.ball(pair.batch, center, self.epsilon, self.norm)
        x, passes = search.begin(ball, pair.generator()), []
        for left in reversed(range(self.steps)):
            x = x.detach().requires_grad_()
            # The next pass has the same dropout masks.
            with (
                torch.enable_grad(),
                same_torch_randomness(center.device) if left else contextlib.nullcontext(),
            ):
                batch = pair.perturbed(x)
                ours = pair.show(batch, part.student_needs)
                inner = replace(context, pair=replace(pair, batch=batch, memory={}))
                found = part.terms(ours, teacher, items, inner)
            passes.append(self.renamed(found))
            if left:
                x = ball.step(x.detach(), _gradient(found, x), search.size)
        return [mean_term(terms) for terms in zip(*passes, strict=True)]


def _gradient(terms: list[Term], x: Tensor) -> Tensor:
    """Gradient of the weighted sum of the terms with respect to the input; the graph of the
    parameters is kept."""
    with torch.enable_grad():  # an evaluation turns it off
        total = sum((term.weight * summed(term) for term in terms), x.new_zeros(()))
    return by_inputs(total, [x], retain_graph=True)
