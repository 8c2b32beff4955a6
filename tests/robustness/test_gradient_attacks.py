"""Attacks on one batch: right by closed form, the same in any batch, and nothing disturbed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from attacked import MEAN, STD, Processor, dense, digits, space, state, train, vit
from peft import LoraConfig, get_peft_model
from tiny_models import CASES, collate
from torch import Tensor

from hf_distill.models.input_space import EMBEDDINGS, InputSpace, input_space
from hf_distill.models.signals import Needs
from hf_distill.models.task_model import TaskModel
from hf_distill.robustness.attacks.gradient import (
    Attack,
    AttackResult,
    attack_batch,
    zero_gradients,
)
from hf_distill.robustness.attacks.square import side

tf: Any = transformers
WHITE_BOX = ("fgsm", "pgd")


def pictures(n: int = 40, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], Tensor]:
    pixels, labels = digits()
    return {"pixel_values": pixels[-n:].to(dtype)}, labels[-n:].clone()


@pytest.fixture(scope="module")
def trained() -> Any:
    """One hidden layer, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pixels, labels = digits()
        return train(dense(24), pixels[:1200], labels[:1200], epochs=5).double()


def run(model: Any, attack: Attack, batch: Any, labels: Tensor, **more: Any) -> AttackResult:
    return attack_batch(model, batch, labels, attack, more.pop("where", space(model)), **more)


# ---- closed forms ----------------------------------------------------------------------------


@pytest.mark.parametrize("losses", [("ce",), ("margin",), ("ce", "margin")])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", WHITE_BOX)
def test_two_classes_of_a_linear_model(name: str, norm: str, losses: Any) -> None:
    """A linear model falls exactly where margin + ε |w|* passes 0: a weaker attack would be wrong
    in units, sign or step; and two classes have no third logit to compare with."""
    model = dense(labels=2).double()
    x = torch.randn(60, 3, 8, 8, dtype=torch.float64)
    labels = torch.randint(2, (60,))
    units = InputSpace("pixel_values", (5.0, 4.0, 2.0))  # without bounds
    with torch.no_grad():
        logits = model(pixel_values=x).logits
    weight = model.layers[0].weight.detach()
    slope = (weight[1] - weight[0]).view(3, 64) * torch.tensor(units.scale)[:, None]
    dual = float(slope.abs().sum() if norm == "linf" else slope.norm())
    sides = logits.diff(dim=-1)[:, 0] * (2 * labels - 1)  # above 0: right
    epsilon = float(sides[sides > 0].median()) / dual
    attack = Attack(name, epsilon, norm, losses=losses)
    found = run(model, attack, {"pixel_values": x}, labels, where=units)
    clear = (sides.abs() - epsilon * dual).abs() > 1e-3 * epsilon * dual
    assert torch.equal(found.clean_correct, sides > 0)
    assert torch.equal(found.correct[clear], (sides > epsilon * dual)[clear])
    assert 0 < found.correct.sum() < found.clean_correct.sum()


def test_bounds_of_a_linear_model() -> None:
    """Clipping to black and white takes budget away, as much as the box says and no more."""
    model = dense(labels=2).double()
    batch, _ = pictures()
    x, box = batch["pixel_values"], space(model)
    labels = model(**batch).logits.argmax(-1)
    weight = model.layers[0].weight.detach()
    uphill = (weight[1] - weight[0]).view(3, 8, 8) * (1 - 2 * labels.view(-1, 1, 1, 1))
    low, high, scale = (
        torch.tensor(v, dtype=x.dtype).view(3, 1, 1) for v in (box.low, box.high, box.scale)
    )
    corner = (x + 0.02 * scale * uphill.sign()).clamp(low, high)
    right = model(pixel_values=corner).logits.argmax(-1) == labels
    assert 0 < right.sum() < 40
    for name in WHITE_BOX:
        assert torch.equal(run(model, Attack(name, 0.02), batch, labels).correct, right)


def test_each_way_of_noise_is_no_gradient() -> None:
    """Random points almost never are the corner of a ball of 192 dimensions: noise that fools as
    much as the gradient would not be uniform."""
    model = dense(labels=2).double()
    batch, _ = pictures()
    labels = model(**batch).logits.argmax(-1)
    kept = {n: run(model, Attack(n, 0.05), batch, labels).correct.sum() for n in ("noise", "pgd")}
    assert kept["noise"] > kept["pgd"] + 10


def test_sides_of_squares() -> None:
    """Another schedule is another attack. Side² = .8 h² halved at 10, 50, 200, 500, 1000, 2000 …
    queries (Andriushchenko et al. for 10 000 queries), by hand."""
    expected = {1: 25, 11: 18, 51: 13, 201: 9, 501: 6, 1001: 4, 2001: 3, 4001: 2, 6001: 2, 8001: 1}
    assert {query: side(query, 28, 28) for query in expected} == expected
    assert side(1, 1, 1) == 1


# ---- what is found ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WHITE_BOX, "square", "noise"])
def test_the_input_found_is_what_fooled(trained: Any, name: str) -> None:
    """A transfer attack, and every picture shown to a reader, is made of these inputs."""
    batch, labels = pictures()
    found = run(trained, Attack(name, 0.15, steps=30), batch, labels)
    with torch.no_grad():
        right = trained(pixel_values=found.adversarial).logits.argmax(-1) == labels
    assert torch.equal(found.correct, right)
    unit = space(trained).to_unit
    moved = unit(found.adversarial) - unit(batch["pixel_values"])
    assert moved.abs().max() <= 0.15 + 1e-6
    assert unit(found.adversarial).min() >= -1e-6
    assert unit(found.adversarial).max() <= 1 + 1e-6
    wrong = ~found.clean_correct
    assert torch.equal(found.adversarial[wrong], batch["pixel_values"][wrong])


def test_runs_of_the_model_are_counted(trained: Any) -> None:
    """Budgets are compared by queries: a batch that does not shrink costs more than it says."""
    batch, labels = pictures()
    shown: list[int] = []
    hook = trained.register_forward_hook(lambda m, a, o: shown.append(len(o.logits)))
    for name in ("pgd", "fgsm", "square", "noise"):
        shown.clear()
        found = run(trained, Attack(name, 0.1, steps=5), batch, labels)
        assert int(found.queries.sum()) == sum(shown)
        assert found.queries[~found.clean_correct].eq(1).all()
        assert shown[-1] < len(labels)
    hook.remove()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_budget_gives_the_clean_accuracy(trained: Any, norm: str) -> None:
    """A difference would be an attack outside its budget, or a model in training mode."""
    batch, labels = pictures()
    found = run(trained, Attack("pgd", 0.0, norm, steps=3), batch, labels)
    with torch.no_grad():
        right = trained(**batch).logits.argmax(-1) == labels
    assert torch.equal(found.correct, right)
    assert torch.equal(found.adversarial, batch["pixel_values"])


@pytest.mark.parametrize(
    ("weak", "strong"),
    [
        (Attack("pgd", 0.05, steps=3, step_size=0.01), {"steps": 8}),
        (Attack("pgd", 0.05, steps=3), {"restarts": 3}),
        (Attack("pgd", 0.05, steps=3, losses=("ce",)), {"losses": ("ce", "margin")}),
        (Attack("square", 0.1, steps=10), {"steps": 60}),
        (Attack("square", 0.1, steps=20), {"restarts": 2}),
        (Attack("square", 0.8, "l2", steps=10), {"steps": 60}),
        (Attack("noise", 0.3, steps=4), {"steps": 12}),
    ],
    ids=str,
)
def test_more_budget_is_never_weaker(trained: Any, weak: Attack, strong: Any) -> None:
    """A longer search that does not contain the shorter one can come out as more robust."""
    batch, labels = pictures(60)
    few = run(trained, weak, batch, labels).correct
    many = run(trained, replace(weak, **strong), batch, labels).correct
    assert not (many & ~few).any()


def test_accuracy_falls_with_the_radius(trained: Any) -> None:
    """An accuracy that rises with ε is the sign of gradients that are masked, or of a bug."""
    batch, labels = pictures(60)
    for name in ("pgd", "square"):
        attacks = [Attack(name, epsilon, steps=30) for epsilon in (0.0, 0.03, 0.1, 0.3, 1.0)]
        kept = [int(run(trained, attack, batch, labels).correct.sum()) for attack in attacks]
        assert kept == sorted(kept, reverse=True)
        assert kept[-1] <= 6


# ---- the same in any batch -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "norm"),
    [(name, "linf") for name in ("pgd", "square", "noise")] + [("pgd", "l2"), ("square", "l2")],
)
def test_batches_do_not_matter(trained: Any, attack: str, norm: str) -> None:
    """Figures would depend on the batch size, and models be compared on other random starts."""
    batch, labels = pictures(8)
    how = Attack(attack, 0.5 if norm == "l2" else 0.1, norm, steps=5, restarts=2)
    whole = run(trained, how, batch, labels)
    order = torch.randperm(8)
    mixed = run(trained, how, {"pixel_values": batch["pixel_values"][order]}, labels[order])
    assert torch.equal(mixed.correct, whole.correct[order])
    for row in range(4):
        one = slice(row, row + 1)
        single = run(trained, how, {"pixel_values": batch["pixel_values"][one]}, labels[one])
        assert torch.equal(single.correct, whole.correct[one])
        assert single.adversarial == pytest.approx(whole.adversarial[one], abs=1e-9)


def test_starts_differ_by_seed_restart_and_key(trained: Any) -> None:
    """Restarts from one point are one restart; and one start for all examples is no random one."""
    batch, labels = pictures(2)
    batch["pixel_values"][1] = batch["pixel_values"][0]
    labels[1] = labels[0]

    def start(seed: int = 0, keys: Any = None) -> Tensor:
        attack = Attack("noise", 0.1, steps=1)
        return run(trained, attack, batch, labels, seed=seed, keys=keys).adversarial

    assert torch.equal(start(), start())
    assert torch.equal(start()[0], start()[1])
    assert not torch.equal(start(), start(seed=1))
    assert not torch.equal(start(keys=["a", "b"])[0], start(keys=["a", "b"])[1])
    two = run(trained, Attack("noise", 0.1, steps=2), batch, labels)
    assert two.queries.tolist() == [3, 3]


# ---- texts, sound, other models --------------------------------------------------------------


def sample(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, dict[str, Tensor], Tensor]:
    """A random model of the zoo, its data, and its own decisions as labels."""
    model = CASES[name].models(dtype)[0].eval()
    batch = collate(CASES[name].data(dtype=dtype))
    task_model = TaskModel(model)
    with torch.no_grad():
        logits = model(**task_model.inputs(batch, Needs())).logits
    return model, batch, logits.argmax(-1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_texts_do_not_depend_on_their_padding(norm: str) -> None:
    """The attacked accuracy of a text would depend on the longest text next to it."""
    model, batch, labels = sample("sequence_classification")
    attack = Attack("pgd", 0.1 if norm == "l2" else 0.01, norm, steps=4)
    whole = run(model, attack, batch, labels, where=InputSpace(EMBEDDINGS))
    assert whole.correct.any()
    for row in range(0, len(labels), 2):
        real = batch["attention_mask"][row].bool()
        one = {key: value[row : row + 1, real] for key, value in batch.items() if value.dim() == 2}
        found = run(model, attack, one, labels[row : row + 1], where=InputSpace(EMBEDDINGS))
        assert torch.equal(found.correct, whole.correct[row : row + 1])
        assert found.adversarial[0] == pytest.approx(whole.adversarial[row, real], abs=1e-9)


@pytest.mark.parametrize(
    "name",
    ["sequence_classification", "multiple_choice", "image_classification", "audio_classification"],
)
def test_every_kind_of_input_can_be_attacked(name: str) -> None:
    """An input that the attack does not reach keeps its accuracy: perfectly robust."""
    model, batch, labels = sample(name)
    where = input_space(TaskModel(model))
    found = run(model, Attack("pgd", 5.0, steps=10), batch, labels, where=where)
    assert found.clean_correct.all()
    assert found.correct.float().mean() < 0.7
    if (mask := batch.get("attention_mask")) is not None:
        center = where.point(TaskModel(model), batch)
        assert not (found.adversarial - center)[mask == 0].any()


def test_decoders_are_attacked_as_they_are_used() -> None:
    """Given embeddings alone, a decoder reads the padding behind the text."""
    config = CASES["causal_lm"].config()
    config.num_labels = 3
    model = tf.LlamaForSequenceClassification(config).double().eval()
    _, batch, _ = sample("sequence_classification")
    with torch.no_grad():
        labels = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(-1)
    found = run(model, Attack("pgd", 0.0, steps=1), batch, labels, where=InputSpace(EMBEDDINGS))
    assert found.correct.all()


def test_half_precision_keeps_the_budget(trained: Any) -> None:
    """Near white one step of bfloat16 is 1/256: added up in it, inputs leave the ball; and what is
    called fooling must fool the model that was asked."""
    model = vit().bfloat16()
    batch, _ = pictures(20, torch.bfloat16)
    labels = model(**batch).logits.argmax(-1)
    found = run(model, Attack("pgd", 0.1, steps=5), batch, labels)
    unit = space(model).to_unit
    moved = unit(found.adversarial) - unit(batch["pixel_values"].float())
    assert moved.abs().max() <= 0.1 + 1e-6
    with torch.no_grad():
        fooled = model(pixel_values=found.adversarial.bfloat16()).logits.argmax(-1) != labels
    assert torch.equal(fooled, ~found.correct)
    assert fooled.any()


def test_attention_kernels_have_a_first_derivative() -> None:
    """The fused kernel has no second derivative: an attack must not need one."""
    model = vit(attn_implementation="sdpa")
    batch, _ = pictures(8, torch.float32)
    labels = model(**batch).logits.argmax(-1)
    assert not run(model, Attack("pgd", 0.5, steps=5), batch, labels).correct.all()


# ---- nothing is disturbed --------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WHITE_BOX, "square", "noise"])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft
def test_the_model_stays_as_it_was(name: str, adapter: bool) -> None:
    """Dropout left off, frozen layers that train, gradients that pile up, other random numbers:
    a training that is evaluated would go another way than one that is not."""
    model: Any = dense(16)
    batch, labels = pictures(8, torch.float32)
    where = space(model)
    if adapter:
        model = get_peft_model(model, LoraConfig(target_modules=["layers.0"]))
    model.train()
    model.get_submodule("base_model.model.layers" if adapter else "layers")[2].eval()
    list(model.parameters())[-1].requires_grad_(False)
    model(**batch).logits.sum().backward()
    before = state(model)
    with torch.no_grad():
        found = run(model, Attack(name, 0.2, steps=4), batch, labels, where=where)
    after = state(model)
    for what in ("values", "gradients"):
        pairs = zip(before.pop(what), after.pop(what), strict=True)
        assert all(a is b or torch.equal(a, b) for a, b in pairs)
    assert torch.equal(before.pop("random"), after.pop("random"))
    assert before == after
    assert not found.adversarial.requires_grad


def test_an_error_leaves_the_model_as_it_was() -> None:
    """A failed report in the middle of a training would end the training's learning."""
    model = dense(16).train()
    before = state(model)
    with pytest.raises(ValueError, match="classes"):
        run(model, Attack("pgd", 0.1), *(pictures(4, torch.float32)[0], torch.full((4,), 10)))
    after = state(model)
    assert (before["modes"], before["trained"]) == (after["modes"], after["trained"])


def test_gradients_that_are_zero_are_seen() -> None:
    """Saturated models look robust under cross-entropy; the margin still has its slope."""
    model = dense(labels=2)
    batch, _ = pictures(8, torch.float32)
    labels = model(**batch).logits.argmax(-1)
    assert not zero_gradients(model, batch, labels, space(model)).any()
    model.layers[0].weight.data *= 1e6
    model.layers[0].bias.data *= 1e6
    assert zero_gradients(model, batch, labels, space(model)).all()
    kept = {
        loss: run(model, Attack("fgsm", 0.3, losses=(loss,)), batch, labels).correct
        for loss in ("ce", "margin")
    }
    assert kept["ce"].all()
    assert not kept["margin"].any()


def test_pictures_are_handed_on_as_grey_levels(trained: Any) -> None:
    """Another processor's numbers would be another picture: with what it was made on, a transfer
    must find exactly what the attack found, whatever the processor of the copy."""
    batch, labels = pictures()
    found = run(trained, Attack("pgd", 0.1), batch, labels)
    levels = space(trained).to_unit(found.adversarial)

    copy = dense(24).double()
    copy.load_state_dict(trained.state_dict())
    weight = copy.layers[0].weight.data.view(-1, 3, 64)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (MEAN, STD))
    # the copy takes grey levels from -1 to 1: (level - mean) / std = (value / 2 + 1/2 - mean) / std
    copy.layers[0].bias.data += (weight * (0.5 - mean) / std).sum((1, 2))
    copy.layers[0].weight.data = (weight / (2 * std)).flatten(1)

    class Other(Processor):
        image_mean, image_std = [0.5] * 3, [0.5] * 3

    right = copy(pixel_values=space(copy, Other()).from_unit(levels)).logits.argmax(-1) == labels
    assert torch.equal(right, found.correct)


def test_embeddings_are_not_handed_on() -> None:
    """The embeddings of one model would give numbers that mean nothing in another."""
    with pytest.raises(ValueError, match="embeddings of one model"):
        InputSpace(EMBEDDINGS).from_unit(torch.rand(2, 3, 8, 8))


# ---- what is refused, and what is said -------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "pdg"}, "Did you mean 'pgd'"),
        ({"norm": "l1"}, "linf"),
        ({"epsilon": -1.0}, "at least 0"),
        ({"step_size": 0.2}, "swapped"),
        ({"steps": 0}, "at least 1 of steps"),
        ({"restarts": 0}, "at least 1 of restarts"),
        ({"losses": ("margn",)}, "Did you mean 'margin'"),
        ({"losses": ()}, "a loss of"),
    ],
)
def test_budgets_that_make_no_sense(settings: Any, message: str) -> None:
    """An attack with a slip in its budget is weak, and its victim looks robust."""
    with pytest.raises(ValueError, match=message):
        Attack(**{"name": "pgd", "epsilon": 0.1, **settings})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.long)}, "one class id for each of 4"),
        ({"labels": torch.zeros(4)}, "class id"),
        ({"labels": torch.tensor([0, 1, -100, 1])}, "below 0"),
        ({"labels": torch.tensor([0, 1, 10, 1])}, "model's own order"),
        ({"keys": ["a"]}, "key for each of 4"),
        ({"batch": {"pixel_values": torch.full((4, 3, 8, 8), 9.0)}}, "processor that made"),
    ],
)
def test_batches_that_make_no_sense(changes: Any, message: str) -> None:
    """Each of these would give an accuracy, and a wrong one."""
    batch, labels = pictures(4, torch.float32)
    model = dense()
    given = {"attack": Attack("pgd", 0.1), "batch": batch, "labels": labels, **changes}
    with pytest.raises(ValueError, match=message):
        run(model, **given)


@pytest.mark.parametrize("name", ["regression", "multi_label", "token_classification"])
def test_only_classifiers_are_attacked(name: str) -> None:
    """Scores and tags have no single label to lose."""
    model = CASES[name].models()[0]
    batch = collate(CASES[name].data())
    labels = torch.zeros(len(batch["input_ids"]), dtype=torch.long)
    with pytest.raises(ValueError, match="classifier with one label"):
        run(model, Attack("pgd", 0.1), batch, labels, where=InputSpace(EMBEDDINGS))


def test_squares_are_for_pictures() -> None:
    """A square of embeddings is no attack that anyone has described."""
    model, batch, labels = sample("sequence_classification")
    with pytest.raises(ValueError, match=r"Expected pictures .* Take `noise` or `pgd`"):
        run(model, Attack("square", 0.1), batch, labels, where=InputSpace(EMBEDDINGS))


def test_inference_mode_is_refused() -> None:
    """Its tensors have no gradients: torch's own message does not say why."""
    batch, labels = pictures(2, torch.float32)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        run(dense(), Attack("pgd", 0.1), batch, labels)


def test_attacks_say_what_they_were() -> None:
    """A figure without its budget cannot be compared with any other."""
    assert Attack("pgd", 0.1, steps=10, restarts=2).describe() == {
        "attack": "pgd",
        "norm": "linf",
        "epsilon": 0.1,
        "steps": 10,
        "step_size": 0.025,
        "restarts": 2,
        "losses": ["ce", "margin"],
        "start": "random",
    }
    assert Attack("pgd", 0.1, steps=2).describe()["step_size"] == 0.1  # not above the radius
    once = Attack("fgsm", 0.1, steps=20).describe()
    assert (once["steps"], once["step_size"], once["start"]) == (1, 0.1, "input")
    assert Attack("square", 0.1, steps=500).describe()["queries"] == 500
    assert Attack("autoattack", 0.1).describe()["ensemble"] == {
        "from 4 classes": ["apgd-ce", "apgd-t", "fab-t", "square"],
        "below 4 classes": ["apgd-ce", "square"],
    }
