"""Gates of an attack: quiet on an honest model, and loud on each way to look robust."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from attacked import dense, digits, space, state, train
from tiny_models import CASES, collate
from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput

from hf_distill.models.input_space import EMBEDDINGS, InputSpace
from hf_distill.robustness.attacks.gradient import Attack, attack_batch, zero_gradients
from hf_distill.robustness.attacks.sanity_checks import (
    MASKING,
    AttackOutcome,
    bounds_gate,
    distance_gate,
    identity_gate,
    masked,
    monotone_gate,
    output_gates,
    run_gates,
    unbounded_gate,
    weaker_gate,
    zero_gradient_gate,
)

EPSILON = 0.1


def batch(n: int = 200) -> tuple[dict[str, Tensor], Tensor]:
    pixels, labels = digits()
    return {"pixel_values": pixels[-n:]}, labels[-n:]


def distilled(temperature: float) -> Any:
    """Defensive distillation (Papernot et al., 2016): teacher and student at one temperature, the
    student used at 1."""
    pixels, labels = (part[:1200] for part in digits())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        teacher = train(dense(32), pixels, labels, 15, temperature=temperature)
        with torch.no_grad():
            soft = (teacher(pixel_values=pixels).logits / temperature).softmax(-1)
        torch.manual_seed(0)
        return train(dense(32), pixels, soft, 15, temperature=temperature)


@pytest.fixture(scope="module")
def plain() -> Any:
    return distilled(1.0)


@pytest.fixture(scope="module")
def defended() -> Any:
    return distilled(100.0)


def accuracy(model: Any, losses: tuple[str, ...]) -> float:
    attack = Attack("pgd", EPSILON, losses=losses)
    return float(attack_batch(model, *batch(), attack, space(model)).correct.double().mean())


def gates(model: Any, n: int = 100, **settings: Any) -> dict[str, Any]:
    attack = Attack("pgd", EPSILON, steps=10, **settings)
    found = run_gates(model, [batch(n)], attack, space(model))
    json.dumps([gate.figures for gate in found])  # what a report stores
    return {gate.name: gate for gate in found}


# ---- whole models ----------------------------------------------------------------------------


def test_an_honest_model_passes(plain: Any) -> None:
    """A gate that fails on ordinary models is one that nobody will believe."""
    before = state(plain)
    found = gates(plain)
    assert len(found) == 10
    assert all(gate.passed for gate in found.values()), found
    assert not masked(found.values())
    after = state(plain)
    assert before["modes"] == after["modes"]
    assert before["trained"] == after["trained"]
    assert torch.equal(before["random"], after["random"])


def test_defensive_distillation_is_not_taken_for_robust(plain: Any, defended: Any) -> None:
    """The fake that students of a high temperature show: far better than a plain net under
    cross-entropy alone (+21 points in our own measurement), not so under the margin too."""
    fake = accuracy(defended, ("ce",)) - accuracy(plain, ("ce",))
    honest = accuracy(defended, ("ce", "margin")) - accuracy(plain, ("ce", "margin"))
    assert fake > 0.10
    assert honest < 0.10
    assert zero_gradients(defended, *batch(), space(defended)).float().mean() > 0.5
    found = gates(defended)
    assert not found["zero_gradient"].passed
    assert masked(found.values())


def test_cross_entropy_alone_is_beaten_by_random_squares(defended: Any) -> None:
    """What knows no gradient beats an attack whose gradients are zero."""
    pixels, labels = digits()
    attack = Attack("pgd", 3 * EPSILON, losses=("ce",))
    found = run_gates(
        defended, [({"pixel_values": pixels[-100:]}, labels[-100:])], attack, space(defended)
    )
    assert not {gate.name: gate for gate in found}["black_box"].passed


class Wrapped(torch.nn.Module):
    """Changes what a model is shown, or what it says."""

    def __init__(self, model: Any, shown: Any = None, said: Any = None):
        super().__init__()
        self.model, self.config = model, model.config
        self.shown, self.said = shown or (lambda x: x), said or (lambda z: z)

    main_input_name = "pixel_values"

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(
            logits=self.said(self.model(pixel_values=self.shown(pixel_values)).logits)
        )


class WrappedForImageClassification(Wrapped):
    """By its name the task is known."""


def test_rounded_inputs_are_seen(plain: Any) -> None:
    """A model that rounds its input has no gradient at all, and no robustness either."""
    model = WrappedForImageClassification(plain, lambda x: (8 * x).round() / 8 + 0 * x)
    found = gates(model)
    assert found["zero_gradient"].figures["share"] == 1.0
    assert not found["unbounded"].passed
    assert not found["noise"].passed or not found["black_box"].passed
    assert masked(found.values())


def test_random_models_are_seen(plain: Any) -> None:
    """Each gradient of a random model is that of another model; and the caller's random numbers
    must not move."""
    model = WrappedForImageClassification(plain, said=lambda z: z + torch.randn_like(z))
    before = torch.get_rng_state()
    found = {gate.name: gate for gate in output_gates(model, *batch(20), space(plain))}
    assert torch.equal(before, torch.get_rng_state())
    assert not found["deterministic"].passed
    assert masked(found.values())


def test_probabilities_are_seen(plain: Any) -> None:
    """A softmax of a softmax has small gradients: attacks through it are weak."""
    model = WrappedForImageClassification(plain, said=lambda z: z.softmax(-1))
    found = {gate.name: gate for gate in output_gates(model, *batch(20), space(plain))}
    assert not found["logits"].passed
    assert found["deterministic"].passed


def test_a_constant_model_is_seen() -> None:
    """On one class alone a constant is right under any attack."""
    model = dense()
    model.layers[0].weight.data.zero_()
    model.layers[0].bias.data[3] = 9.0
    pixels, _ = digits()
    labels = torch.full((50,), 3)
    attack = Attack("pgd", EPSILON, steps=2)
    found = run_gates(model, [({"pixel_values": pixels[:50]}, labels)], attack, space(model))
    failed = {gate.name for gate in found if not gate.passed}
    assert failed == {"zero_gradient", "unbounded"}


@pytest.mark.parametrize("name", ["sequence_classification", "audio_classification"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_texts_and_sounds_have_gates(name: str, norm: str) -> None:
    """Without pictures there are no squares; everything else is checked."""
    model = CASES[name].models(torch.float32)[0].eval()
    data = collate(CASES[name].data(dtype=torch.float32))
    with torch.no_grad():
        inputs = {key: value for key, value in data.items() if key != "labels"}
        labels = model(**inputs).logits.argmax(-1)
    where = InputSpace(EMBEDDINGS if name == "sequence_classification" else "input_values")
    found = run_gates(model, [(data, labels)], Attack("pgd", 0.01, norm, steps=3), where)
    names = {gate.name for gate in found}
    assert "black_box" not in names
    assert len(names) == 9
    passed = {gate.name for gate in found if gate.passed}
    assert {"identity", "distance", "bounds", "deterministic", "logits"} <= passed


@pytest.mark.parametrize(
    ("batches", "attack", "message"),
    [
        (0, Attack("pgd", 0.1), "at least one batch"),
        (1, Attack("square", 0.1), "Expected 'fgsm' or 'pgd'"),
        (1, Attack("pgd", 0.0), "radius above 0"),
    ],
)
def test_gates_of_nothing_are_refused(batches: int, attack: Attack, message: str) -> None:
    """Gates that checked nothing would all pass."""
    model = dense()
    with pytest.raises(ValueError, match=message):
        run_gates(model, [batch(5)] * batches, attack, space(model))


# ---- one gate at a time ----------------------------------------------------------------------


def seen(**changes: Any) -> AttackOutcome:
    fine = {
        "accuracy": 0.5, "clean": 0.5, "n": 100, "classes": 2, "distance": 0.0, "outside": 0.0
    }  # fmt: skip
    return AttackOutcome(**{**fine, **changes})


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        (zero_gradient_gate(torch.tensor([True] + [False] * 99)), True),
        (zero_gradient_gate(torch.tensor([True] * 2 + [False] * 98)), False),
        (weaker_gate("black_box", 0.5, 0.5), True),
        (weaker_gate("black_box", 0.5, 0.498), True),
        (weaker_gate("black_box", 0.5, 0.497), False),
        (weaker_gate("noise", 0.5, 0.9), True),
        (weaker_gate("noise", 0.5, 0.49), False),
        (identity_gate(seen()), True),
        (identity_gate(seen(accuracy=0.49)), False),
        (identity_gate(seen(distance=1e-5)), False),
        (monotone_gate({0.2: 0.4, 0.1: 0.5, 0.4: 0.4}, 200), True),
        (monotone_gate({0.1: 0.5, 0.2: 0.51}, 200), True),
        (monotone_gate({0.1: 0.5, 0.2: 0.515}, 200), False),
        (monotone_gate({0.1: 0.5, 0.2: 0.6}, 10), True),
        (distance_gate(0.1 + 9e-7, 0.1), True),
        (distance_gate(0.1 + 2e-6, 0.1), False),
        (bounds_gate(0.0), True),
        (bounds_gate(1e-5), False),
        (bounds_gate(float("inf")), False),
        (unbounded_gate(seen(accuracy=0.0), 2), True),
        (unbounded_gate(seen(accuracy=0.59), 2), True),
        (unbounded_gate(seen(accuracy=0.61), 2), False),
    ],
)
def test_where_a_gate_closes(gate: Any, passed: bool) -> None:
    """The limits are part of the claim: AutoAttack's 0.2 points, one example, 1e-6, chance.
    (Wilson's lower bound at 100 examples is .492 for 59 and .512 for 61.)"""
    assert gate.passed is passed
    assert gate.message.endswith(".")
    assert masked([gate]) is (not passed and gate.name in MASKING)
