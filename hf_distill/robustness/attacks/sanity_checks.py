"""Sanity checks of an accuracy under attack, most of them for masked gradients.

The flags of AutoAttack (Croce and Hein, 2020, arXiv:2003.01690) and the checklist of Athalye et al.
(2018, arXiv:1802.00420) and Carlini et al. (2019, arXiv:1902.06705), as code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.evaluation.statistics import wilson
from hf_distill.models.batches import Batch
from hf_distill.models.input_space import InputSpace
from hf_distill.models.task_model import TaskModel
from hf_distill.robustness.attacks.attack import Attack
from hf_distill.robustness.attacks.gradient import attack_batch, zero_gradients
from hf_distill.robustness.attacks.state import AttackState, undisturbed

Batches = Sequence[tuple[Batch, Tensor]]

POINTS = 0.002
"""Accuracy tolerance of comparisons between attacks: 0.2 points, as in AutoAttack."""
MASKING = frozenset(
    {"zero_gradient", "black_box", "noise", "unbounded", "monotone", "deterministic", "logits"}
)
"""Checks whose failure indicates masked gradients rather than an error."""


@dataclass(frozen=True)
class SanityCheck:
    """Result of one check.

    Attributes:
        figures: What was measured; accuracies and shares from 0 to 1.
        message: One sentence, for the report.
    """

    name: str
    passed: bool
    figures: dict[str, Any]
    message: str


def masked(gates: Iterable[SanityCheck]) -> bool:
    """True if masked gradients are suspected: the model may be weaker than the attack indicates."""
    return any(not gate.passed and gate.name in MASKING for gate in gates)


def run_gates(
    model: nn.Module,
    batches: Batches,
    attack: Attack,
    space: InputSpace,
    seed: int = 0,
    queries: int = 100,
) -> list[SanityCheck]:
    """All checks of an attack (``fgsm`` or ``pgd``); a sample of 50 to 200 examples is enough.

    Random points are a tenth as many as the `queries` of the Square attack; for the other arguments
    see `attack_batch`.

    Raises:
        ValueError: no batches, another attack or one of radius 0, or what `attack_batch` refuses.
    """
    if not batches:
        raise ValueError("Expected at least one batch with labels to run the gates on, got none.")
    if attack.name not in ("fgsm", "pgd") or attack.epsilon == 0:
        raise ValueError(
            f"Expected 'fgsm' or 'pgd' with a radius above 0 to be checked, got {attack.name!r} "
            f"with {attack.epsilon:g}."
        )

    def run(other: Attack) -> AttackOutcome:
        return outcome(model, batches, other, space, seed)

    own = run(attack)
    ladder = {attack.epsilon: own.accuracy}
    for by in (0.25, 0.5, 2.0):
        step = None if attack.step_size is None else attack.step_size * by
        scaled = replace(attack, epsilon=attack.epsilon * by, step_size=step)
        ladder[by * attack.epsilon] = run(scaled).accuracy
    noise = replace(attack, name="noise", steps=max(1, queries // 10), step_size=None)
    gates = [
        zero_gradient_gate(torch.cat([zero_gradients(model, *b, space) for b in batches])),
        weaker_gate("noise", own.accuracy, run(noise).accuracy),
        identity_gate(run(replace(attack, epsilon=0.0, step_size=None, steps=2))),
        monotone_gate(ladder, own.n),
        distance_gate(own.distance, attack.epsilon),
        bounds_gate(own.outside),
        unbounded_gate(run(_unbounded(attack, batches[0][0], space)), own.classes),
        *output_gates(model, *batches[0], space),
    ]
    if space.key == "pixel_values" and attack.norm == "linf":
        square = replace(attack, name="square", steps=queries, step_size=None)
        gates.insert(1, weaker_gate("black_box", own.accuracy, run(square).accuracy))
    return gates


def _unbounded(attack: Attack, batch: Batch, space: InputSpace) -> Attack:
    """Attack with a radius that covers the whole input range, or ten units if it is unbounded."""
    radius = 10.0
    if space.key == "pixel_values":
        radius = 1.0 if attack.norm == "linf" else math.sqrt(batch[space.key][0].numel())
    return Attack("pgd", radius, attack.norm, max(attack.steps, 20), losses=attack.losses)


@dataclass(frozen=True)
class AttackOutcome:
    """Results of an attack on all batches.

    Attributes:
        accuracy: Accuracy under attack.
        clean: Accuracy without an attack.
        n: Number of examples.
        classes: Number of classes of the model.
        distance: Largest distance an input was moved, in units of the norm (float64).
        outside: Largest excess over the bounds; infinite for an input that is not finite.
    """

    accuracy: float
    clean: float
    n: int
    classes: int
    distance: float
    outside: float


def outcome(
    model: nn.Module, batches: Batches, attack: Attack, space: InputSpace, seed: int = 0
) -> AttackOutcome:
    """Attack every batch and measure the results independently of the attack's own projection."""
    correct, clean, distance, outside, classes = [], [], 0.0, 0.0, 0
    for batch, labels in batches:
        found = attack_batch(model, batch, labels, attack, space, seed)
        correct.append(found.correct)
        clean.append(found.clean_correct)
        classes = found.classes
        center = space.point(TaskModel(model), batch).double()
        x = found.adversarial.double()
        ball = space.ball(batch, center, attack.epsilon, attack.norm)
        distance = max(distance, float(ball.distances(x).max()))
        for bound, beyond in ((ball.low, -1), (ball.high, 1)):
            if bound is not None:
                outside = max(outside, float((beyond * (x - bound) / ball.scale).max()))
        if not x.isfinite().all():
            outside = math.inf
    right, before = torch.cat(correct), torch.cat(clean)
    share, clean_share = float(right.double().mean()), float(before.double().mean())
    return AttackOutcome(share, clean_share, len(right), classes, distance, outside)


def zero_gradient_gate(zero: Tensor, most: float = 0.01) -> SanityCheck:
    """Check the share of inputs whose cross-entropy gradient is exactly zero."""
    share = float(zero.double().mean())
    return SanityCheck(
        "zero_gradient",
        share <= most,
        {"share": share, "n": len(zero)},
        f"{share:.1%} of {len(zero)} inputs have a cross-entropy gradient of exactly zero "
        f"(at most {most:.0%} expected).",
    )


def weaker_gate(name: str, attacked: float, weaker: float) -> SanityCheck:
    """Check that random points of the ball, or the black-box Square attack, are not stronger than
    the attack."""
    what = {"black_box": "the Square attack", "noise": "random noise"}[name]
    return SanityCheck(
        name,
        weaker >= attacked - POINTS - 1e-9,
        {"attack": attacked, name: weaker},
        f"Accuracy is {attacked:.1%} under the attack and {weaker:.1%} under {what} of the same "
        "radius (not lower expected).",
    )


def identity_gate(at_zero: AttackOutcome) -> SanityCheck:
    """Check that a radius of 0 changes no input and no accuracy."""
    return SanityCheck(
        "identity",
        at_zero.accuracy == at_zero.clean and at_zero.distance <= 1e-6,
        {"clean": at_zero.clean, "at_zero": at_zero.accuracy, "distance": at_zero.distance},
        f"At radius 0 accuracy is {at_zero.accuracy:.1%} (clean: {at_zero.clean:.1%}), and inputs "
        f"move by {at_zero.distance:.2g}.",
    )


def monotone_gate(accuracies: dict[float, float], n: int) -> SanityCheck:
    """Check that accuracy does not rise with the radius by more than one example or one in a
    hundred."""
    values = [accuracies[radius] for radius in sorted(accuracies)]
    rise = max((b - a for a, b in pairwise(values)), default=0.0)
    most = max(1, round(n / 100)) / n
    return SanityCheck(
        "monotone",
        rise <= most + 1e-9,
        {"accuracies": accuracies, "rise": rise, "n": n},
        f"The largest rise of accuracy from one radius to the next is {max(rise, 0):.1%} of {n} "
        f"(at most {most:.1%} expected).",
    )


def distance_gate(distance: float, epsilon: float) -> SanityCheck:
    """Check that no input is moved farther than the radius, up to rounding of 1e-6."""
    return SanityCheck(
        "distance",
        distance <= epsilon + 1e-6,
        {"distance": distance, "epsilon": epsilon},
        f"Inputs move by up to {distance:.6g}, and the radius is {epsilon:.6g}.",
    )


def bounds_gate(outside: float) -> SanityCheck:
    """Check that no input leaves its bounds (black and white), up to rounding of 1e-6."""
    return SanityCheck(
        "bounds",
        outside <= 1e-6,
        {"outside": outside},
        f"Inputs lie outside their bounds by up to {max(outside, 0.0):.2g} units.",
    )


def unbounded_gate(huge: AttackOutcome, classes: int) -> SanityCheck:
    """Check that accuracy is at most chance (Wilson's 95 % bound) with a radius that covers every
    input."""
    low, _ = wilson(round(huge.accuracy * huge.n), huge.n)
    return SanityCheck(
        "unbounded",
        low <= 1 / classes,
        {"accuracy": huge.accuracy, "chance": 1 / classes, "n": huge.n},
        f"With an unlimited radius accuracy is {huge.accuracy:.1%} of {huge.n} (at most chance, "
        f"{1 / classes:.1%}, expected).",
    )


def output_gates(
    model: nn.Module, batch: Batch, labels: Tensor, space: InputSpace
) -> list[SanityCheck]:
    """Check that the model is deterministic (five runs agree to 1e-4 of the logits' norm) and
    outputs logits."""
    with undisturbed(model), torch.no_grad():
        search = AttackState(model, batch, labels, Attack("noise", epsilon=0.0), space)
        rows = torch.arange(search.size, device=search.labels.device)
        said = torch.stack([search.logits(rows, search.center) for _ in range(5)]).double()
    length = said.norm(dim=-1, keepdim=True).clamp(min=1e-10)
    spread = (said / length - (said / length)[0]).norm(dim=-1).max()
    sums = (said.sum(-1) - 1).abs().max()
    probabilities = bool((said >= 0).all() and (said <= 1 + 1e-5).all() and sums < 1e-5)
    return [
        SanityCheck(
            "deterministic",
            float(spread) <= 1e-4,
            {"spread": float(spread)},
            f"Five runs on the same inputs differ by up to {float(spread):.2g} of their length "
            "(at most 0.0001 expected; else average the gradient over runs).",
        ),
        SanityCheck(
            "logits",
            not probabilities,
            {"lowest": float(said.min()), "highest": float(said.max())},
            "The model gives probabilities: attack its logits instead."
            if probabilities
            else "The model gives logits.",
        ),
    ]
