"""Adversarial perturbations: projected gradient ascent and the virtual adversary."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from hf_distill.models.batches import Batch
from hf_distill.models.input_space import EMBEDDINGS
from hf_distill.models.modes import evaluating
from hf_distill.models.pgd import NormBall, check_budget, projected_ascent
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.base.models_in_step import ModelsInStep
from hf_distill.objectives.base.objective import Context, Term, bibtex
from hf_distill.objectives.distributions import ForwardKL
from hf_distill.objectives.input_perturbations import InputPerturbation, normal_like
from hf_distill.objectives.labels import HardLabels
from hf_distill.objectives.nested import set_attributes
from hf_distill.utils.suggest import one_of

MAXIMISED = ("labels", "teacher", "itself", "adaptive")
ANY_LOGITS = Needs(logits=True)
STARTS = ("random", "gaussian", "none")
SMALL = 1e-3
"""The deviation of a Gaussian start, in units of the norm (TRADES and RSLAD)."""

CITATIONS = {
    "labels": bibtex("madry2018towards"),
    "teacher": bibtex("zi2021revisiting"),
    "itself": bibtex("zhang2019theoretically"),
    "adaptive": bibtex("huang2023boosting"),
}


@dataclass(frozen=True)
class PGD(InputPerturbation):
    """Adversarial input from projected gradient ascent in a ball around the clean one.

    Each step runs the student in eval mode (no dropout, no update of batch normalisation
    statistics) and differentiates with respect to the input only. For text the ball is one of
    embeddings, around each token's own; padding stays.

    Args:
        epsilon: The radius, in the units of the input's `InputSpace` (images: pixel levels from 0
            to 1, so 8 / 255; text: lengths of the token's embedding).
        steps: How many.
        step_size: In the same units; None: 2.5 epsilon / steps, and no more than epsilon.
        norm: ``linf`` or ``l2``.
        start: ``random`` (anywhere in the ball), ``gaussian`` (noise of deviation 0.001) or
            ``none``.
        maximise: ``labels``: the loss of the labels (Madry et al., 1706.06083; ARD). ``teacher``:
            KL(T(x) || S(x')) (RSLAD, 2108.07969). ``itself``: KL(S(x) || S(x')) (TRADES,
            1901.08573), without labels or teacher. ``adaptive``: KL(T(x') || S(x')), also through
            the teacher (AdaAD), which costs a forward and a backward of it in each step.
        train_mode: Leave the student in the mode that it is in during the search (as ARD's code).

    Raises:
        ValueError: a step above epsilon, an unknown word; ``itself`` from no random start, where
            the gradient is 0.
    """

    epsilon: float
    steps: int = 10
    step_size: float | None = None
    norm: str = "linf"
    start: str = "random"
    maximise: str = "labels"
    train_mode: bool = False
    name: ClassVar[str] = "pgd"

    def __post_init__(self) -> None:
        check_budget(self.epsilon, self.norm, self.step_size)
        one_of("a start", self.start, STARTS)
        one_of("something to maximise", self.maximise, MAXIMISED)
        if self.steps < 1:
            raise ValueError(f"Expected 1 step or more, got {self.steps}. For noise use Uniform.")
        if self.maximise == "itself" and self.start == "none":
            raise ValueError(
                "Expected a random start, got start='none': KL(S(x) || S(x')) has its minimum at "
                "x' = x and no gradient there. Use start='gaussian' or 'random'."
            )
        set_attributes(
            self,
            needs=ANY_LOGITS if self.maximise in ("teacher", "adaptive") else Needs(),
            needs_labels=self.maximise == "labels",
            citation=CITATIONS[self.maximise],
        )

    @property
    def size(self) -> float:
        """The size of a step."""
        default = min(self.epsilon, 2.5 * self.epsilon / self.steps)
        return default if self.step_size is None else self.step_size

    def check(self, kind: str, classes: int | None = None) -> None:
        (HardLabels() if self.maximise == "labels" else ForwardKL()).check(kind, classes)

    def batch(
        self, pair: ModelsInStep, teacher: Signal | None, items: BatchItems, context: Context
    ) -> Batch:
        space, generator = pair.space, pair.generator()
        ball = space.ball(
            pair.batch, space.point(pair.task_model, pair.batch), self.epsilon, self.norm
        )
        x = self.begin(ball, generator)
        with contextlib.nullcontext() if self.train_mode else evaluating(pair.task_model.model):
            target = _itself(pair) if self.maximise == "itself" else teacher
            if self.maximise == "adaptive":
                gradient = _adaptive(pair, items)
            else:
                gradient = _rise(pair, items, None if self.needs_labels else target)
            for after in projected_ascent(gradient, ball, self.steps, self.size, x):
                x = after
        return pair.perturbed(x)

    def begin(self, ball: NormBall, generator: torch.Generator | None) -> Tensor:
        """Starting point of the ascent."""
        if self.start == "random":
            return ball.start(generator)
        if self.start == "none":
            return ball.center
        return ball.project(ball.center + SMALL * ball.scale * normal_like(ball.center, generator))


@dataclass(frozen=True)
class VirtualAdversary(InputPerturbation):
    """Virtual adversarial direction: the one the student's output is most sensitive to (VAT, arXiv
    1704.03976).

    The first eigenvector of the Hessian of KL(S(x) || S(x + r)) at r = 0 by power iteration: from a
    random direction d, repeat d = g / |g| with g the gradient at x + xi d. Then x' = x + epsilon d.
    The student is in eval mode. For text every token has its own direction.

    Args:
        epsilon: The length, in the units of the input's `hf_distill.models.input_space.InputSpace`.
        xi: How far from x the gradient is taken; above 0.
        steps: Power iterations.
        norm: ``l2``; ``linf`` takes the signs of the gradient.
    """

    epsilon: float
    xi: float = 1e-3
    steps: int = 1
    norm: str = "l2"
    name: ClassVar[str] = "virtual"
    citation: ClassVar[str] = bibtex("miyato2018virtual")

    def __post_init__(self) -> None:
        check_budget(self.epsilon, self.norm)
        if not 0 < self.xi < math.inf or self.steps < 1:
            raise ValueError(
                f"Expected xi above 0 and 1 step or more, got xi={self.xi} and steps={self.steps}."
            )

    def check(self, kind: str, classes: int | None = None) -> None:
        ForwardKL().check(kind, classes)

    def batch(
        self, pair: ModelsInStep, teacher: Signal | None, items: BatchItems, context: Context
    ) -> Batch:
        space, generator = pair.space, pair.generator()
        center = space.point(pair.task_model, pair.batch)
        near, far = (
            space.ball(pair.batch, center, radius, self.norm) for radius in (self.xi, self.epsilon)
        )
        uphill = normal_like(center, generator) / near.scale
        with evaluating(pair.task_model.model):
            gradient = _rise(pair, items, _itself(pair))
            for _ in range(self.steps):
                uphill = gradient(near.step(center, uphill, self.xi))
        return pair.perturbed(far.step(center, uphill, self.epsilon).detach())


def _itself(pair: ModelsInStep) -> Signal:
    """The student's output on the clean batch, as a target."""
    device = next(pair.task_model.model.parameters()).device.type
    # a cached cast of the weights, made without a graph, would have none in the loss either
    with (
        torch.no_grad(),
        torch.autocast(device, enabled=torch.is_autocast_enabled(device), cache_enabled=False),
    ):
        return pair.show(pair.batch, ANY_LOGITS).detach()


def _total(student: Signal, target: Signal | None, items: BatchItems) -> Tensor:
    """The summed loss of the labels (no target), or KL(target || student)."""
    objective = HardLabels() if target is None else ForwardKL()
    (term,) = objective.terms(student, target, items, Context())
    return summed(term)


def summed(term: Term) -> Tensor:
    """The sum of a term's values that count."""
    values = term.values if term.mask is None else torch.where(term.mask, term.values, 0.0)
    return values.sum()


def by_inputs(total: Tensor, inputs: list[Tensor], retain_graph: bool = False) -> Tensor:
    """Gradient with respect to the inputs only; no gradients of parameters are computed or
    accumulated."""
    with torch.autocast(total.device.type, enabled=False):  # a backward runs outside of it
        first, *others = torch.autograd.grad(total, inputs, retain_graph=retain_graph)
    return sum(others, first)


def _rise(
    pair: ModelsInStep, items: BatchItems, target: Signal | None
) -> Callable[[Tensor], Tensor]:
    """Gradient of the loss with respect to the input, of the labels or towards a fixed target."""

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():  # an evaluation turns it off
            shown = pair.show(pair.perturbed(x), ANY_LOGITS)
            total = _total(shown, target, items)
        return by_inputs(total, [x])

    return gradient


def _adaptive(pair: ModelsInStep, items: BatchItems) -> Callable[[Tensor], Tensor]:
    """Gradient of KL(T(x) || S(x)) with respect to the input of both."""

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        batch = pair.perturbed(x)
        theirs = ask_teacher(
            pair, batch, replace(ANY_LOGITS, inputs=True), "PGD(maximise='adaptive')"
        )
        if theirs.traced is None:
            raise ValueError(
                "Expected a teacher that can be differentiated by its input, got one that cannot "
                "(a cache, a server). Give the model itself as teacher_model, or use "
                "PGD(maximise='teacher')."
            )
        logits, own = theirs.traced
        with torch.enable_grad():
            shown = pair.show(batch, ANY_LOGITS)
            total = _total(shown, replace(theirs, logits=logits, sparse=None), items)
        return by_inputs(total, [x, own])

    return gradient


def ask_teacher(pair: ModelsInStep, batch: Batch, needs: Needs, who: str) -> Signal:
    """The teacher's output on a perturbed batch.

    Raises:
        ValueError: there is no teacher; it has outputs for the clean data only; the student's
            embeddings are perturbed.
    """
    if pair.ask_teacher is None:
        raise ValueError(f"{who} asks the teacher, and there is none. Pass teacher_model=….")
    if EMBEDDINGS in batch and EMBEDDINGS not in pair.batch:
        raise ValueError(
            f"{who} would show the teacher the student's token embeddings, which mean nothing to "
            "it. Let it answer about the plain text (teacher='clean', maximise='labels' or "
            "'teacher'), or perturb the tokens (TokenNoise, PerturbedColumns)."
        )
    try:
        return pair.ask_teacher(batch, needs)
    except ValueError as error:
        raise ValueError(
            f"{who} asks the teacher about perturbed inputs, and this one does not answer. A cache "
            "holds the plain data: give the model itself as teacher_model, or let the teacher "
            f"answer about the plain input (teacher='clean'). It said: {error}"
        ) from error
