"""Our attacks against those of foolbox, ART and AutoAttack, on the same small transformer."""

from __future__ import annotations

import functools
import random
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from attacked import MEAN, STD, dense, digits, space, train, vit
from torch import Tensor

from hf_distill.robustness.attacks.gradient import Attack, attack_batch

RADII = {"linf": (0.03, 0.06, 0.1), "l2": (0.25, 0.4, 0.55)}
STEPS = {"linf": 20, "l2": 40}
N = 200
"""With steps of ε/8 all three have arrived, so that the random starts hardly matter."""


class Levels(torch.nn.Module):
    """A model of grey levels from 0 to 1, written without our spaces."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))

    def forward(self, levels: Tensor) -> Tensor:
        return self.model(pixel_values=(levels - self.mean) / self.std).logits


@pytest.fixture(scope="module")
def transformer() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pixels, labels = digits()
        return train(vit(), pixels[:1200], labels[:1200], epochs=8, rate=5e-3)


def pictures(n: int = N) -> tuple[Tensor, Tensor, Tensor]:
    """As the processor gives them, as grey levels, and labels."""
    pixels, labels = digits()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return pixels[-n:], (pixels[-n:] * std + mean).clamp(0, 1), labels[-n:]


def library(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own imports
        return pytest.importorskip(name)


@functools.cache
def ours(model: Any, epsilon: float, norm: str) -> float:
    pixels, _, labels = pictures()
    attack = Attack("pgd", epsilon, norm, STEPS[norm], epsilon / 8, losses=("ce",))
    found = attack_batch(model, {"pixel_values": pixels}, labels, attack, space(model))
    return float(found.correct.double().mean())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_that_of_foolbox(transformer: Any, norm: str) -> None:
    """A budget in the wrong units, a step in the wrong norm or a start that is not random gives
    another accuracy at some radius: 1 point is allowed."""
    foolbox = library("foolbox")
    _, levels, labels = pictures()
    model = foolbox.PyTorchModel(Levels(transformer).eval(), bounds=(0, 1), device="cpu")
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    for epsilon in RADII[norm]:
        attack = kind(steps=STEPS[norm], abs_stepsize=epsilon / 8)
        _, _, fooled = attack(model, levels, labels, epsilons=epsilon)
        theirs = 1 - float(fooled.double().mean())
        assert ours(transformer, epsilon, norm) == pytest.approx(theirs, abs=0.0101), epsilon


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_that_of_art(transformer: Any, norm: str) -> None:
    """As above, against a second implementation."""
    library("art")
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    _, levels, labels = pictures()
    classifier = PyTorchClassifier(
        Levels(transformer).eval(),
        torch.nn.CrossEntropyLoss(),
        input_shape=(3, 8, 8),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    python, numpy = random.getstate(), np.random.get_state()
    np.random.seed(0)
    for epsilon in RADII[norm]:
        attack = ProjectedGradientDescentPyTorch(
            classifier,
            norm=np.inf if norm == "linf" else 2,
            eps=epsilon,
            eps_step=epsilon / 8,
            max_iter=STEPS[norm],
            num_random_init=1,
            batch_size=N,
            verbose=False,
        )
        found = torch.tensor(attack.generate(levels.numpy(), labels.numpy()))
        with torch.no_grad():
            right = Levels(transformer)(found).argmax(-1) == labels
        theirs = float(right.double().mean())
        assert ours(transformer, epsilon, norm) == pytest.approx(theirs, abs=0.0101), epsilon
    random.setstate(python)
    np.random.set_state(numpy)


def run(model: Any, attack: Attack, n: int, batch: Any = None) -> Any:
    pixels, _, labels = pictures(n)
    batch = {"pixel_values": pixels} if batch is None else batch
    return attack_batch(model, batch, labels % model.config.num_labels, attack, space(model))


@pytest.mark.parametrize(
    ("name", "norm", "epsilon"),
    [("foolbox-LinfPGD", "linf", 0.08), ("foolbox-L2FastGradientAttack", "l2", 0.7)],
)
def test_attacks_of_foolbox_by_name(transformer: Any, name: str, norm: str, epsilon: float) -> None:
    """The wrapper hands on units, bounds and budget: the accuracy is that of the library itself,
    and its global random numbers are put back."""
    foolbox = library("foolbox")
    _, levels, labels = pictures()
    before = torch.get_rng_state()
    attack = Attack(name, epsilon, norm)
    found = run(transformer, attack, N)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(run(transformer, attack, N).adversarial, found.adversarial)

    model = foolbox.PyTorchModel(Levels(transformer).eval(), bounds=(0, 1), device="cpu")
    kind = getattr(foolbox.attacks, name.removeprefix("foolbox-"))
    same = kind(steps=20, abs_stepsize=2.5 * epsilon / 20) if "PGD" in name else kind()
    _, _, fooled = same(model, levels, labels, epsilons=epsilon)
    kept = float(found.correct.double().mean())
    assert kept == pytest.approx(1 - float(fooled.double().mean()), abs=0.0101)
    unit = space(transformer).to_unit
    moved = (unit(found.adversarial) - levels).flatten(1)
    size = moved.abs().amax(-1) if norm == "linf" else moved.norm(dim=-1)
    assert size.max() <= epsilon + 1e-5


@pytest.mark.parametrize(
    ("name", "norm", "message"),
    [
        ("foolbox-LinfPDG", "linf", "Did you mean 'foolbox-LinfPGD'"),
        ("foolbox-L2PGD", "linf", "in linf, got L2PGD"),
        ("foolbox-Attack2", "linf", "name of an attack of foolbox"),
    ],
)
def test_attacks_that_foolbox_has_not(name: str, norm: str, message: str) -> None:
    """A radius in another norm is another budget, mostly a much smaller one."""
    library("foolbox")
    with pytest.raises(ValueError, match=message):
        run(dense(), Attack(name, 0.1, norm), 4)


@pytest.mark.parametrize(("labels", "norm"), [(2, "linf"), (10, "linf"), (10, "l2")])
def test_autoattack_runs_on_any_number_of_classes(labels: int, norm: str) -> None:
    """Its targeted losses need four classes: with two the whole attack would end in an error, and
    the models of most text data have two."""
    library("pyautoattack")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pixels, digit = digits()
        model = train(dense(labels=labels), pixels[:1200], digit[:1200] % labels, 5)
    before = torch.get_rng_state()
    attack = Attack("autoattack", 0.3 if norm == "linf" else 5.0, norm)
    found = run(model, attack, 12)
    assert torch.equal(before, torch.get_rng_state())
    assert found.clean_correct.sum() > 6
    assert not found.correct.any()
    unit = space(model).to_unit
    moved = (unit(found.adversarial) - pictures(12)[1]).flatten(1)
    size = moved.abs().amax(-1) if norm == "linf" else moved.norm(dim=-1)
    assert size.max() <= attack.epsilon + 1e-5


@pytest.mark.slow
def test_our_attack_is_close_to_autoattack(transformer: Any) -> None:
    """The default attack of reports must not be far from the strongest one that is known."""
    library("pyautoattack")
    strong = run(transformer, Attack("autoattack", 0.05), 20).correct
    usual = run(transformer, Attack("pgd", 0.05, restarts=2), 20).correct
    assert (usual & ~strong).sum() <= 1


@pytest.mark.parametrize(
    ("norm", "epsilon", "theirs_named"), [("linf", 0.1, "Linf"), ("l2", 0.8, "L2")]
)
def test_our_squares_are_about_those_of_autoattack(
    transformer: Any, norm: str, epsilon: float, theirs_named: str
) -> None:
    """The schedule and the colours of squares decide how strong the attack is. Ours also places
    them in the last row and column, which on pictures of 8 x 8 makes it some points stronger."""
    library("pyautoattack")
    from pyautoattack.square import SquareAttack

    _, levels, labels = pictures(200)
    model = Levels(transformer).eval()
    with torch.no_grad(), torch.random.fork_rng():
        theirs = SquareAttack(
            model, p_init=0.8, n_queries=150, eps=epsilon, norm=theirs_named, n_restarts=1, seed=0,
            verbose=False, device="cpu", resc_schedule=False,
        )  # fmt: skip
        right = model(theirs.perturb(levels, labels)).argmax(-1) == labels
    found = run(transformer, Attack("square", epsilon, norm, steps=150), 200)
    moved = (space(transformer).to_unit(found.adversarial) - levels).flatten(1)
    size = moved.abs().amax(-1) if norm == "linf" else moved.norm(dim=-1)
    assert size.max() <= epsilon + 1e-5
    kept, theirs_kept = (float(part.double().mean()) for part in (found.correct, right))
    assert theirs_kept - 0.1 < kept < theirs_kept + 0.03


@pytest.mark.parametrize("name", ["autoattack", "foolbox-LinfPGD"])
def test_missing_libraries_name_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the reader has to guess which of three packages to install."""
    for module in ("pyautoattack", "foolbox"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=r"hf_distill\[attacks\]"):
        run(dense(), Attack(name, 0.1), 4)
