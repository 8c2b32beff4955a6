"""Attack settings: name, budget and losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_distill.models.pgd import check_budget
from hf_distill.utils.suggest import one_of

NAMES = ("fgsm", "pgd", "square", "noise", "autoattack")
FOOLBOX = "foolbox-"


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{c != y} z_c - z_y: above 0 where another class is chosen; for 2 classes and more.

    Unlike the cross-entropy it does not saturate (Carlini and Wagner, 2017, arXiv:1608.04644).
    Shapes: logits ``(B, C)``, labels ``(B,)``.

    >>> margin(torch.tensor([[3.0, 1.0, 2.0], [0.0, 4.0, 0.0]]), torch.tensor([0, 2]))
    tensor([-1.,  4.])
    """
    own = labels[:, None]
    others = logits.scatter(1, own, -torch.inf).amax(-1)
    return others - logits.gather(1, own)[:, 0]


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": partial(F.cross_entropy, reduction="none"),
    "margin": margin,
}


@dataclass(frozen=True)
class Attack:
    """One attack with its budget; untargeted.

    Args:
        name: ``fgsm`` (one step of size ε), ``pgd`` (projected gradient ascent from random points),
            ``square`` (random squares, scores only; pictures), ``noise`` (random points of the
            ball), ``autoattack`` (with the extra ``attacks``) or ``foolbox-`` and the name of one
            of foolbox's attacks (the same extra).
        epsilon: The radius, in the units of the `Space`: grey levels from 0 to 1 for pictures,
            lengths of the token's embedding for text.
        norm: ``linf`` or ``l2``.
        steps: Gradient steps; for ``square`` and ``noise`` queries.
        step_size: Of a step; None: 2.5 ε / steps, at most ε.
        restarts: Random starts for each loss.
        losses: Raised one after the other: ``ce``, ``margin``. Cross-entropy by itself finds
            nothing where it is saturated, as in students of a high temperature.

    Raises:
        ValueError: an unknown name, norm or loss; a step above the radius; no step.

    Reference: Goodfellow et al., 2015, arXiv:1412.6572 (FGSM); Madry et al., 2018,
    arXiv:1706.06083 (PGD); Andriushchenko et al., 2020, arXiv:1912.00049 (Square).
    """

    name: str
    epsilon: float
    norm: str = "linf"
    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    losses: tuple[str, ...] = ("ce", "margin")

    def __post_init__(self) -> None:
        if not self.name.startswith(FOOLBOX):
            one_of("an attack", self.name, (*NAMES, FOOLBOX + "LinfPGD"))
        for loss in self.losses or ("",):
            one_of("a loss", loss, LOSSES)
        check_budget(self.epsilon, self.norm, self.step_size)
        for what in ("steps", "restarts"):
            if getattr(self, what) < 1:
                raise ValueError(f"Expected at least 1 of {what}, got {getattr(self, what)}.")

    @property
    def size(self) -> float:
        """The size of a step."""
        if self.name == "fgsm":
            return self.epsilon
        by_default = min(2.5 * self.epsilon / self.steps, self.epsilon)
        return by_default if self.step_size is None else self.step_size

    def describe(self) -> dict[str, Any]:
        """Settings of the attack for the report."""
        said: dict[str, Any] = {"attack": self.name, "norm": self.norm, "epsilon": self.epsilon}
        if self.name == "autoattack":
            ensembles = {"from 4 classes": ensemble(4), "below 4 classes": ensemble(2)}
            return {**said, "ensemble": ensembles}
        if self.name.startswith(FOOLBOX):
            return {**said, "steps": self.steps, "step_size": self.size}
        if self.name in ("noise", "square"):
            losses = ["margin"] if self.name == "square" else []
            return {**said, "queries": self.steps, "restarts": self.restarts, "losses": losses}
        once = self.name == "fgsm"
        return {
            **said,
            "steps": 1 if once else self.steps,
            "step_size": self.size,
            "restarts": 1 if once else self.restarts,
            "losses": list(self.losses),
            "start": "input" if once else "random",
        }


def ensemble(classes: int) -> list[str]:
    """AutoAttack's standard ensemble; where its targeted losses are undefined, without them."""
    return ["apgd-ce", "square"] if classes < 4 else ["apgd-ce", "apgd-t", "fab-t", "square"]


@dataclass(frozen=True)
class AttackResult:
    """Results of an attack, one entry per example of a batch.

    Attributes:
        correct: ``(B,)`` boolean: right on the input and on everything that was tried.
        adversarial: ``(B, ...)``, in units of the model's input: the first that fools the model,
            else the one of highest margin.
        clean_correct: ``(B,)`` boolean: right on the input itself.
        queries: ``(B,)``, forward passes on the example; for the attacks of other libraries only
            our own before and after.
        classes: Number of classes of the model.
    """

    correct: Tensor
    adversarial: Tensor
    clean_correct: Tensor
    queries: Tensor
    classes: int
