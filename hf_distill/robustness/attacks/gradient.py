"""Gradient attacks on one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.models.batches import Batch
from hf_distill.models.input_space import InputSpace
from hf_distill.robustness.attacks import other_libraries
from hf_distill.robustness.attacks.attack import FOOLBOX, Attack, AttackResult
from hf_distill.robustness.attacks.square import square
from hf_distill.robustness.attacks.state import AttackState, undisturbed

__all__ = ["Attack", "AttackResult", "attack_batch", "zero_gradients"]


def attack_batch(
    model: nn.Module,
    batch: Batch,
    labels: Tensor,
    attack: Attack,
    space: InputSpace,
    seed: int = 0,
    keys: Sequence[Any] | None = None,
) -> AttackResult:
    """Attack a classifier on one batch.

    An example counts as right only if the model is right on the input itself and on every input
    that was tried, for each loss, restart and step. What is random depends on the seed, the
    example and the restart, not on the batch. The model is not changed.

    Args:
        model: A transformers (or PEFT) classifier, on the device of the batch.
        batch: The collated batch; labels in it are not used.
        labels: ``(B,)``, class ids in the model's order.
        attack: The attack with its budget.
        space: Result of `input_space` for the model and its processor.
        seed: Seed of random starts and draws.
        keys: One for each example, the same for all models; None: its content without padding.

    Raises:
        ValueError: no classifier, labels that do not fit, an input outside the bounds of the space,
            an attack that is not for this input.
        ImportError: the library of the attack is not installed.
    """
    with undisturbed(model):
        search = AttackState(model, batch, labels, attack, space, seed, keys)
        run = other_libraries.foolbox if attack.name.startswith(FOOLBOX) else ATTACKS[attack.name]
        run(search, attack)
    return search.result()


def pgd(search: AttackState, attack: Attack) -> None:
    """Projected gradient ascent on each of the losses, from random points; FGSM: one step of size
    epsilon from the input."""
    once = attack.name == "fgsm"
    for loss in attack.losses:
        for restart in range(1 if once else attack.restarts):
            rows = search.standing()
            if len(rows):
                x = search.center[rows] if once else search.start(rows, restart)
                _ascend(search, rows, x, loss, 1 if once else attack.steps, attack.size)


def _ascend(
    search: AttackState, rows: Tensor, x: Tensor, loss: str, steps: int, size: float
) -> None:
    ball = search.ball.rows(rows)
    for _ in range(steps):
        logits, gradient = search.climb(rows, x, loss)
        held = search.offer(rows, x, logits)
        if not held.all():
            rows, x, gradient, ball = rows[held], x[held], gradient[held], ball.rows(held)
        if not len(rows):
            return
        x = ball.step(x, gradient, size)
    with torch.no_grad():
        search.offer(rows, x, search.logits(rows, x))


def noise(search: AttackState, attack: Attack) -> None:
    """Random points of the ball."""
    with torch.no_grad():
        for draw in range(attack.steps * attack.restarts):
            rows = search.standing()
            if not len(rows):
                return
            x = search.start(rows, draw)
            search.offer(rows, x, search.logits(rows, x))


ATTACKS: dict[str, Callable[[AttackState, Attack], None]] = {
    "fgsm": pgd,
    "pgd": pgd,
    "square": square,
    "noise": noise,
    "autoattack": other_libraries.autoattack,
}


def zero_gradients(model: nn.Module, batch: Batch, labels: Tensor, space: InputSpace) -> Tensor:
    """Mask ``(B,)`` of examples whose cross-entropy gradient is exactly zero."""
    with undisturbed(model):
        search = AttackState(model, batch, labels, Attack("fgsm", epsilon=0.0), space)
        rows = torch.arange(search.size, device=search.labels.device)
        _, gradient = search.climb(rows, search.center, "ce")
        if search.ball.mask is not None:
            gradient = gradient * search.ball.mask
        return (gradient == 0).flatten(1).all(-1)
