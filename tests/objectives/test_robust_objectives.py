"""Robust objectives on one batch, each against its paper's formula written out in plain torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
import yaml
from tiny_models import CASES, collate
from torch import Tensor, nn
from torch.nn import functional as F

import hf_distill as hd
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.loss_shares import GroupDROState
from hf_distill.objectives.base.models_in_step import ModelsInStep
from hf_distill.objectives.base.objective import Context
from hf_distill.objectives.base.schedules import Progress
from hf_distill.training.reduction import reduce

EPSILON, STEP, STEPS = 0.03, 0.012, 3
STD, MEAN = (0.2, 0.25, 0.5), (0.5, 0.4, 0.3)
PROCESSOR = SimpleNamespace(
    image_mean=MEAN, image_std=STD, rescale_factor=1 / 255, do_rescale=True, do_normalize=True
)
CHANNELS = torch.tensor(STD, dtype=torch.float64).view(-1, 1, 1)
LOW = -torch.tensor(MEAN, dtype=torch.float64).view(-1, 1, 1) / CHANNELS
HIGH = LOW + 1 / CHANNELS


class Bench:
    """A student, a teacher and a batch, asked as the trainer asks."""

    def __init__(self, name: str = "image_classification", rows: int = 5, processor: Any = None):
        case = CASES[name]
        self.student, self.teacher = (model.eval() for model in case.models())
        self.teacher.requires_grad_(False)
        self.task_model, self.other = TaskModel(self.student), TaskModel(self.teacher)
        self.batch = collate(case.data(rows))
        self.processor, self.asked = processor, {"student": 0, "teacher": 0}
        if "pixel_values" in self.batch:
            self.batch["pixel_values"] = torch.minimum(
                torch.maximum(self.batch["pixel_values"], LOW), HIGH
            )
        self.items = self.task_model.items(self.batch)

    def ask_student(self, batch: Any, needs: Needs) -> Signal:
        self.asked["student"] += 1
        return self.task_model.ask(self.student, batch, needs, self.items)[1]

    def ask_teacher(self, batch: Any, needs: Needs) -> Signal:
        self.asked["teacher"] += 1
        with torch.no_grad():
            return self.other.ask(self.teacher, batch, needs, self.items)[1].detach()

    def pair(self) -> ModelsInStep:
        return ModelsInStep(
            self.batch, self.task_model, self.ask_student, self.ask_teacher, self.processor
        )

    def loss(self, objective: Any, progress: Progress | None = None) -> Tensor:
        goal = 1.0 * objective
        student = self.ask_student(self.batch, goal.student_needs)
        teacher = self.ask_teacher(self.batch, goal.needs) if goal.needs else None
        context = Context(
            goal.build(student, teacher), progress=progress or Progress(), pair=self.pair()
        )
        terms = goal.terms(student, teacher, self.items, context)
        return reduce(terms, self.items.counts())[0]

    def gradient(self, loss: Tensor) -> Tensor:
        found = torch.autograd.grad(loss, list(self.student.parameters()), allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(processor=PROCESSOR)


# ---- the formulas, in plain torch ------------------------------------------------------------


def kl(target: Tensor, other: Tensor, temperature: float = 1.0) -> Tensor:
    p, q = target / temperature, other / temperature
    return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1) * temperature**2


def draws(kind: str, like: Tensor) -> Tensor:
    """What an evaluation draws: always from the same seed."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand if kind == "rand" else torch.randn
    return draw(like.shape, generator=generator, dtype=like.dtype)


class Written:
    """The papers' losses for a bench of pictures, in units of grey levels."""

    def __init__(self, bench: Bench):
        self.x, self.y = bench.batch["pixel_values"], bench.batch["labels"]
        self.s = lambda x: bench.student(pixel_values=x).logits
        self.t = lambda x: bench.teacher(pixel_values=x).logits
        self.size = 1 / CHANNELS

    def climb(self, loss: Callable[[Tensor], Tensor], x: Tensor, steps: int = STEPS) -> Tensor:
        low = torch.maximum(self.x - EPSILON * self.size, LOW)
        high = torch.minimum(self.x + EPSILON * self.size, HIGH)
        x = torch.minimum(torch.maximum(x, low), high)
        for _ in range(steps):
            x = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(loss(x).sum(), [x])
            x = torch.minimum(torch.maximum(x.detach() + STEP * self.size * g.sign(), low), high)
        return x.detach()

    def near(self) -> Tensor:
        return self.x + 0.001 * self.size * draws("randn", self.x)

    def labelled(self) -> Tensor:
        start = self.x + EPSILON * self.size * (2 * draws("rand", self.x) - 1)
        return self.climb(lambda x: F.cross_entropy(self.s(x), self.y, reduction="none"), start)

    def adversarial_training(self) -> Tensor:
        return F.cross_entropy(self.s(self.labelled()), self.y)

    def trades(self) -> Tensor:
        with torch.no_grad():
            fixed = self.s(self.x)
        x = self.climb(lambda x: kl(fixed, self.s(x)), self.near())
        plain = self.s(self.x)
        return F.cross_entropy(plain, self.y) + 2.5 * kl(plain, self.s(x)).mean()

    def ard(self) -> Tensor:
        x, plain = self.labelled(), self.s(self.x)
        taught = kl(self.t(self.x), self.s(x), 4.0).mean()
        return 0.7 * taught + 0.3 * F.cross_entropy(plain, self.y)

    def rslad(self) -> Tensor:
        x = self.climb(lambda x: kl(self.t(self.x), self.s(x)), self.near())
        both = kl(self.t(self.x), self.s(x)).mean(), kl(self.t(self.x), self.s(self.x)).mean()
        return both[0] * 5 / 6 + both[1] / 6

    def adaad(self) -> Tensor:
        x = self.climb(lambda x: kl(self.t(x), self.s(x)), self.near())
        both = kl(self.t(x), self.s(x)).mean(), kl(self.t(self.x), self.s(self.x)).mean()
        return 0.6 * both[0] + 0.4 * both[1]

    def vat(self) -> Tensor:
        fixed, direction = self.s(self.x).detach(), self.unit(draws("randn", self.x))
        x = (self.x + 0.001 * self.size * direction).clamp(LOW, HIGH).requires_grad_()
        (g,) = torch.autograd.grad(kl(fixed, self.s(x)).sum(), [x])
        x = (self.x + 0.5 * self.size * self.unit(g * self.size)).clamp(LOW, HIGH)
        return F.cross_entropy(self.s(self.x), self.y) + 3.0 * kl(fixed, self.s(x)).mean()

    def smart(self) -> Tensor:
        fixed = self.s(self.x).detach()
        x = self.climb(lambda x: kl(fixed, self.s(x)), self.near(), 1)
        one, two = self.s(self.x), self.s(x)
        both = (kl(one, two) + kl(two, one)).mean()
        return F.cross_entropy(one, self.y) + 1.5 * both

    def iad(self) -> Tensor:
        x = self.labelled()
        trust = self.t(x).softmax(-1).gather(-1, self.y[:, None])[:, 0] ** 0.3
        own = kl(self.s(self.x).detach(), self.s(x))
        return (trust * kl(self.t(self.x), self.s(x)) + (1 - trust) * own).mean()

    def free_lb(self) -> Tensor:
        """The gradient is that of the mean of K losses, each at a step of the ascent."""
        x, losses = self.x + 0.0, []
        for _ in range(STEPS):
            x = x.detach().requires_grad_()
            loss = F.cross_entropy(self.s(x), self.y)
            (g,) = torch.autograd.grad(loss, [x], retain_graph=True)
            losses.append(loss)
            x = self.balled(x.detach() + 0.2 * self.size * self.unit(g * self.size))
        return sum(losses, torch.zeros(())) / STEPS

    def balled(self, x: Tensor) -> Tensor:
        moved = (x - self.x) / self.size
        length = moved.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp(min=1e-300)
        return (self.x + moved * (0.3 / length).clamp(max=1) * self.size).clamp(LOW, HIGH)

    @staticmethod
    def unit(g: Tensor) -> Tensor:
        return g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


BUDGET = {"epsilon": EPSILON, "steps": STEPS, "step_size": STEP}
METHODS: dict[str, Any] = {
    "adversarial_training": hd.adversarial_training(**BUDGET),
    "trades": hd.trades(beta=2.5, **BUDGET),
    "ard": hd.ard(alpha=0.7, temperature=4.0, **BUDGET),
    "rslad": hd.rslad(**BUDGET),
    "adaad": hd.adaad(alpha=0.6, **BUDGET),
    "vat": hd.vat(0.5, alpha=3.0),
    "smart": hd.smart(EPSILON, 1.5, 1, STEP),
    "iad": hd.IAD(hd.PGD(**BUDGET), beta=0.3),
    "free_lb": hd.FreeLB(hd.HardLabels(), 0.3, STEPS, 0.2, start="none"),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_its_formula(bench: Bench, name: str) -> None:
    """A wrong direction of KL, sign, unit, bound or detach trains another method under its name."""
    ours, expected = bench.loss(METHODS[name]), getattr(Written(bench), name)()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-9)
    mine, theirs = bench.gradient(ours), bench.gradient(expected)
    assert theirs.norm() > 0
    assert (mine - theirs).norm() <= 1e-8 * theirs.norm()


def test_the_adversary_is_that_of_a_plain_loop(bench: Bench) -> None:
    """A step in processed units, or no clipping to [0, 1], is another budget than the one said."""
    by = hd.PGD(**BUDGET)
    x = by.batch(bench.pair(), None, bench.items, Context())["pixel_values"]
    torch.testing.assert_close(x, Written(bench).labelled(), rtol=0, atol=1e-12)
    moved = (x - bench.batch["pixel_values"]).abs() * CHANNELS
    assert moved.max() == pytest.approx(EPSILON, rel=1e-9)
    assert ((x >= LOW - 1e-12) & (x <= HIGH + 1e-12)).all()


def test_two_dropout_masks_agree() -> None:
    """R-Drop with three passes, or with one mask for both, is not R-Drop."""
    case = CASES["image_classification"]
    config = case.config()
    config.hidden_dropout_prob = 0.5
    bench = Bench()
    torch.manual_seed(0)
    bench.student = tf.ViTForImageClassification(config).double().train()
    bench.task_model = TaskModel(bench.student)
    torch.manual_seed(3)
    ours = bench.loss(hd.r_drop(0.7))
    assert bench.asked["student"] == 2
    torch.manual_seed(3)
    one, two = (bench.student(pixel_values=bench.batch["pixel_values"]).logits for _ in range(2))
    y = bench.batch["labels"]
    expected = (F.cross_entropy(one, y) + F.cross_entropy(two, y)) / 2
    expected = expected + 0.7 * (kl(one, two) + kl(two, one)).mean() / 2
    assert ours.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(bench.gradient(ours), bench.gradient(expected))

    torch.manual_seed(3)
    taught = bench.loss(hd.r_drop(0.0, hd.ForwardKL()))
    theirs = bench.teacher(pixel_values=bench.batch["pixel_values"]).logits
    expected = (kl(theirs, one) + kl(theirs, two)).mean() / 2
    assert taught.item() == pytest.approx(expected.item(), rel=1e-9)


def test_free_lb_has_one_dropout_mask() -> None:
    """With another mask at each step the ascent climbs another function than the one before."""
    bench = Bench()
    config = CASES["image_classification"].config()
    config.hidden_dropout_prob = 0.5
    torch.manual_seed(0)
    bench.student = tf.ViTForImageClassification(config).double().train()
    bench.task_model = TaskModel(bench.student)
    torch.manual_seed(3)
    one = bench.student(pixel_values=bench.batch["pixel_values"]).logits
    after = torch.get_rng_state()
    bench.batch["pixel_values"] = bench.batch["pixel_values"].clone()
    goal = hd.FreeLB(hd.HardLabels(), 0.0, 3, start="none")
    torch.manual_seed(3)
    context = Context(pair=bench.pair())
    (term,) = goal.terms(Signal(), None, bench.items, context)
    expected = F.cross_entropy(one, bench.batch["labels"], reduction="none")
    torch.testing.assert_close(term.values, expected)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize(
    "by",
    [
        hd.Gaussian(0.0),
        hd.Uniform(0.0),
        hd.PGD(0.0, 1),
        hd.VirtualAdversary(0.0),
        hd.SecondDropout(),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["image_classification", "sequence_classification"])
def test_no_perturbation_changes_nothing(name: str, by: hd.InputPerturbation) -> None:
    """An embedding that is looked up twice, or a bound that moves the plain input, is no zero."""
    bench = Bench(name)
    plain, shown = bench.loss(hd.ForwardKL()), bench.loss(hd.OnPerturbed(hd.ForwardKL(), by))
    assert shown.item() == pytest.approx(plain.item(), rel=1e-9)
    bench.teacher = copy.deepcopy(bench.student)
    bench.other = TaskModel(bench.teacher)
    loss = bench.loss(hd.OnPerturbed(hd.ForwardKL(), by) + hd.Smoothness(by, symmetric=True))
    assert abs(loss.item()) < 1e-12
    assert bench.gradient(loss).norm() < 1e-9


# ---- what the search leaves alone ------------------------------------------------------------


SEARCHES = [
    hd.PGD(0.05, 2),
    hd.PGD(0.05, 2, maximise="teacher"),
    hd.PGD(0.05, 2, maximise="itself"),
    hd.VirtualAdversary(0.5),
]


@pytest.mark.parametrize("by", SEARCHES, ids=str)
def test_the_search_leaves_the_models_as_they_were(by: hd.InputPerturbation) -> None:
    """Batch statistics of adversarial inputs, gradients of the inner loop, a student in eval mode:
    each changes the training, and nothing says so."""
    config = tf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    bench = Bench()
    torch.manual_seed(0)
    bench.student = tf.ResNetForImageClassification(config).double().train()
    bench.task_model = TaskModel(bench.student)
    frozen = next(bench.student.parameters()).requires_grad_(False)
    bench.student.classifier.eval()
    modes = [module.training for module in bench.student.modules()]
    before = {name: value.clone() for name, value in bench.student.state_dict().items()}
    taught = bench.ask_teacher(bench.batch, Needs(logits=True))
    with torch.no_grad():  # as in an evaluation
        found = by.batch(bench.pair(), taught, bench.items, Context())
    assert found["pixel_values"].ne(bench.batch["pixel_values"]).any()
    assert not found["pixel_values"].requires_grad
    assert [module.training for module in bench.student.modules()] == modes
    assert not frozen.requires_grad
    assert all(parameter.grad is None for parameter in bench.student.parameters())
    after = bench.student.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())

    bench.student.eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        one, two = (by.batch(bench.pair(), taught, bench.items, Context()) for _ in range(2))
    assert torch.equal(one["pixel_values"], two["pixel_values"])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_search_can_stay_in_training_mode() -> None:
    """ARD's code searches with dropout on: asked for, it must be so."""
    bench, seen = Bench(), set()
    bench.student.train()
    handle = bench.student.register_forward_hook(lambda module, *_: seen.add(module.training))
    hd.PGD(0.05, 1).batch(bench.pair(), None, bench.items, Context())
    assert seen == {False}
    hd.PGD(0.05, 1, train_mode=True).batch(bench.pair(), None, bench.items, Context())
    handle.remove()
    assert seen == {False, True}


def test_parts_of_a_sum_share_one_adversary(bench: Bench) -> None:
    """A second search of the same adversary doubles the cost; with dropout it is another one."""
    by = hd.PGD(EPSILON, 4)
    bench.asked.update(student=0, teacher=0)
    bench.loss(hd.OnPerturbed(hd.HardLabels(), by) + 0.5 * hd.OnPerturbed(hd.ForwardKL(), by))
    assert bench.asked == {"student": 1 + 4 + 1, "teacher": 1}  # plain, the search, perturbed
    bench.asked.update(student=0, teacher=0)
    other = replace(by, norm="l2")
    bench.loss(hd.OnPerturbed(hd.HardLabels(), by) + 0.5 * hd.OnPerturbed(hd.ForwardKL(), other))
    assert bench.asked["student"] == 1 + 2 * (4 + 1)


# ---- text ------------------------------------------------------------------------------------


TEXT = [hd.PGD(0.3, 2), hd.PGD(0.3, 2, norm="l2"), hd.VirtualAdversary(0.3), hd.Gaussian(0.3)]


@pytest.mark.parametrize("by", [*TEXT, hd.Uniform(0.3)], ids=str)
def test_padding_is_never_perturbed(by: hd.InputPerturbation) -> None:
    """What is added to padding is shown to nobody, and takes its share of the budget."""
    bench = Bench("sequence_classification")
    found = by.batch(bench.pair(), None, bench.items, Context())
    plain = bench.student.get_input_embeddings()(bench.batch["input_ids"]).detach()
    moved = (found["inputs_embeds"] - plain).abs().amax(-1)
    real = bench.batch["attention_mask"].bool()
    assert (moved[~real] == 0).all()
    assert (moved[real] > 0).all()
    length = (found["inputs_embeds"] - plain).norm(dim=-1) / plain.norm(dim=-1)
    if getattr(by, "norm", "") == "l2":
        assert length[real].max() <= 0.3 + 1e-9
    if isinstance(by, hd.Gaussian):
        assert length[real].square().mean().sqrt() == pytest.approx(0.3, rel=0.2)


DECODER = tf.GPT2Config(
    vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, num_labels=3, pad_token_id=0
)
COUNTING = tf.RobertaConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
    pad_token_id=0,
    num_labels=3,
)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (tf.GPT2ForSequenceClassification, DECODER),
        (tf.RobertaForSequenceClassification, COUNTING),
    ],
    ids=["gpt2", "roberta"],
)
def test_embeddings_do_not_hide_the_tokens(model: Any, settings: Any) -> None:
    """A classifier on a decoder finds the end of a text by its padding tokens: given embeddings in
    their place it reads the padding."""
    bench = Bench("sequence_classification")
    torch.manual_seed(0)
    bench.student = model(settings).double().eval()
    bench.task_model = TaskModel(bench.student)
    plain = bench.loss(hd.HardLabels())
    for by in (hd.Gaussian(0.0), hd.PGD(0.0, 1, start="none")):
        shown = bench.loss(hd.OnPerturbed(hd.HardLabels(), by))
        assert shown.item() == pytest.approx(plain.item(), rel=1e-9)
    free = bench.loss(hd.FreeLB(hd.HardLabels(), 0.0, 2))
    assert free.item() == pytest.approx(plain.item(), rel=1e-9)


@pytest.mark.parametrize("replacement", ["random", "mask", "drop"])
def test_special_tokens_and_padding_stay(replacement: str) -> None:
    """A lost [CLS] or a drawn [SEP] is no noise of the text."""
    bench = Bench("sequence_classification", rows=8)
    ids, mask = bench.batch["input_ids"], bench.batch["attention_mask"]
    ids[:, 0] = 1
    by = hd.TokenNoise(0.5, replacement, mask_token=2, keep=(0, 1, 2))
    found = by.batch(bench.pair(), None, bench.items, Context())
    changed = (found["input_ids"] != ids) | (found["attention_mask"] != mask)
    assert not changed[:, 0].any()
    assert not changed[mask == 0].any()
    share = changed[:, 1:][mask[:, 1:] == 1].double().mean()
    assert 0.25 < share < 0.75
    if replacement == "random":
        assert not torch.isin(found["input_ids"][changed], torch.tensor([0, 1, 2])).any()
    if replacement == "mask":
        assert (found["input_ids"][changed] == 2).all()
    rest = replace(by, rate=0.0).batch(bench.pair(), None, bench.items, Context())
    assert torch.equal(rest["input_ids"], ids)


def test_noisy_columns_take_the_place_of_the_plain_ones() -> None:
    """A mask of the clean text over a longer noisy one hides its end."""
    bench = Bench("sequence_classification")
    longer = torch.randint(3, 20, (5, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(longer)
    bench.batch |= {"noisy_input_ids": longer, "noisy_attention_mask": mask}
    ours = bench.loss(hd.OnPerturbed(hd.ForwardKL(), hd.PerturbedColumns()))
    theirs = bench.ask_teacher(bench.batch, Needs(logits=True)).logits
    shown = bench.student(input_ids=longer, attention_mask=mask).logits
    assert ours.item() == pytest.approx(kl(theirs, shown).mean().item(), rel=1e-9)
    both = bench.loss(hd.OnPerturbed(hd.ForwardKL(), hd.PerturbedColumns(), teacher="perturbed"))
    theirs = bench.teacher(input_ids=longer, attention_mask=mask).logits
    assert both.item() == pytest.approx(kl(theirs, shown).mean().item(), rel=1e-9)


# ---- groups and wrong labels -----------------------------------------------------------------


def test_group_weights_follow_the_paper() -> None:
    """q of another order of updates, or with a group's share counted twice, is another method."""
    generator = torch.Generator().manual_seed(0)
    risks, q, seen = (
        GroupDROState(3, 0.5),
        torch.full((3,), 1 / 3).double(),
        torch.zeros(3).double(),
    )
    for _ in range(6):
        losses = torch.rand(8, generator=generator, dtype=torch.float64)
        groups = torch.randint(2, (8,), generator=generator) * 2  # never the second
        share = (seen + 1) / (seen.sum() + 3)
        torch.testing.assert_close(risks.weights(), q / share)
        for part in range(4):  # a window of four micro-batches, with sums over two processes
            rows = slice(2 * part, 2 * part + 2)
            zeros = torch.zeros(3, dtype=torch.float64)
            risks.keep(
                zeros.index_add(0, groups[rows], losses[rows]),
                zeros.index_add(0, groups[rows], torch.ones(2).double()),
            )
            risks.observe(part == 3, lambda values: 2 * values)
        for group in range(3):
            own = losses[groups == group]
            seen[group] += 2 * len(own)
            q[group] *= torch.exp(0.5 * (own.mean() if len(own) else torch.zeros(())))
        q /= q.sum()
        torch.testing.assert_close(risks.q, q)
    assert risks.q[1] < 1 / 3


def test_group_dro_weighs_the_losses() -> None:
    """Weights of the wrong example, or in the graph, or a mean over weights."""
    bench = Bench()
    y, x = bench.batch["labels"], bench.batch["pixel_values"]
    bench.batch["group"] = torch.tensor([0, 2, 1, 1, 0])
    goal = 1.0 * hd.GroupDRO(hd.HardLabels(), groups=3, step=0.1)
    signal = bench.ask_student(bench.batch, goal.student_needs)
    built = goal.build(signal, None)
    (name,) = built
    bench.student.train()
    built[name]["risks"].q.copy_(torch.tensor([0.5, 0.3, 0.2]))
    built[name]["risks"].seen.copy_(torch.tensor([6.0, 2.0, 1.0]))
    context = Context(built, pair=bench.pair())
    terms = goal.terms(signal, None, bench.items, context)
    loss = reduce(terms, bench.items.counts())[0]
    weights = torch.tensor([0.5 * 12 / 7, 0.3 * 12 / 3, 0.2 * 12 / 2]).double()
    each = F.cross_entropy(bench.student(pixel_values=x).logits, y, reduction="none")
    expected = (weights[bench.batch["group"]] * each).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    goal.observe(terms, {terms[0].name: loss.detach()}, built, True, lambda values: values)
    means = torch.stack([each[bench.batch["group"] == g].mean() for g in range(3)])
    q = torch.tensor([0.5, 0.3, 0.2]).double() * torch.exp(0.1 * means)
    torch.testing.assert_close(built[name]["risks"].q, (q / q.sum()).detach(), atol=1e-7, rtol=0)

    even = bench.loss(hd.GroupWeights(hd.HardLabels(), (2, 2, 1)))
    assert even.item() == pytest.approx(means.mean().item(), rel=1e-9)


def test_labels_are_trusted_as_the_teacher_does(bench: Bench) -> None:
    """The student's own trust, or a gradient through it, rewards giving up on labels."""
    x, y = bench.batch["pixel_values"], bench.batch["labels"]
    trust = bench.teacher(pixel_values=x).logits.softmax(-1).gather(-1, y[:, None])[:, 0]
    each = F.cross_entropy(bench.student(pixel_values=x).logits, y, reduction="none")
    ours = bench.loss(hd.TrustedLabels(2.0))
    assert ours.item() == pytest.approx((trust**2 * each).mean().item(), rel=1e-9)
    p = bench.student(pixel_values=x).logits.softmax(-1).gather(-1, y[:, None])[:, 0]
    ours = bench.loss(hd.GeneralizedCrossEntropy(0.7))
    assert ours.item() == pytest.approx(((1 - p**0.7) / 0.7).mean().item(), rel=1e-9)
    assert bench.loss(hd.GeneralizedCrossEntropy(0.0)).item() == pytest.approx(each.mean().item())
    assert bench.loss(hd.GeneralizedCrossEntropy(1.0)).item() == pytest.approx(1 - p.mean().item())


def test_introspection_begins_later(bench: Bench) -> None:
    """A student that is not yet good is no teacher of itself."""
    goal = hd.IAD(hd.PGD(**BUDGET), beta=0.3, begin=2.0)
    early = bench.loss(goal, Progress(epoch=1.0))
    plain = bench.loss(hd.OnPerturbed(hd.ForwardKL(), hd.PGD(**BUDGET)))
    assert early.item() == pytest.approx(plain.item(), rel=1e-9)
    assert bench.loss(goal, Progress(epoch=2.0)).item() != pytest.approx(plain.item(), rel=1e-3)


# ---- recipes, cards, errors ------------------------------------------------------------------


RECIPE = """
- {name: on_perturbed, weight: 0.5, objective: {name: forward_kl, temperature: 2},
   by: {name: pgd, epsilon: 3e-2, maximise: teacher}, teacher: perturbed}
- {name: smoothness, by: {name: again}, symmetric: true}
- {name: rslad, epsilon: 0.03, steps: 4, weight: 0.6}
- {name: group_dro, objective: {name: hard_labels}, groups: 4}
- {name: free_lb, objective: {name: hard_labels}, epsilon: 0.1}
- {name: iad, by: {name: pgd, epsilon: 0.1}}
"""


def test_recipes_write_them() -> None:
    """A nested objective that stays a mapping fails at the first step, hours after the start."""
    by = hd.PGD(0.03, maximise="teacher")
    expected = 0.5 * hd.OnPerturbed(hd.ForwardKL(2), by, "perturbed")
    expected = expected + hd.Smoothness(hd.SecondDropout(), symmetric=True)
    expected = expected + 0.6 * hd.rslad(0.03, steps=4) + hd.GroupDRO(hd.HardLabels(), 4)
    expected = expected + hd.FreeLB(hd.HardLabels(), 0.1) + hd.IAD(hd.PGD(0.1))
    found = hd.objective_from(yaml.safe_load(RECIPE))
    assert found == expected
    names = [row["name"] for row in found.describe()]
    assert names[:3] == ["forward_kl_pgd", "smoothness_again", "forward_kl_pgd"]
    cited = "".join(row.get("citation", "") for row in found.describe())
    for paper in ("1503.02531", "2108.07969", "1911.08731", "1909.11764", "2106.04928"):
        assert paper in cited, paper
    assert "1905.09747" in hd.ard(0.1).describe()[0]["citation"]


KL, CE = hd.ForwardKL(), hd.HardLabels()
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "step above epsilon": (lambda: hd.PGD(2 / 255, step_size=8 / 255), "swapped"),
    "no gradient": (lambda: hd.PGD(0.1, maximise="itself", start="none"), "random start"),
    "unknown maximise": (lambda: hd.PGD(0.1, maximise="label"), "'labels'"),
    "unknown start": (lambda: hd.PGD(0.1, start="gauss"), "'gaussian'"),
    "unknown norm": (lambda: hd.PGD(0.1, norm="l1"), "l2"),
    "no steps": (lambda: hd.PGD(0.1, 0), "1 step"),
    "negative epsilon": (lambda: hd.PGD(-0.1), "at least 0"),
    "negative deviation": (lambda: hd.Gaussian(-0.1), "at least 0"),
    "rate": (lambda: hd.TokenNoise(1.5), "from 0 to 1"),
    "replacement": (lambda: hd.TokenNoise(0.5, "masks"), "'mask'"),
    "xi": (lambda: hd.VirtualAdversary(0.1, xi=0.0), "xi above 0"),
    "a sum inside": (lambda: hd.OnPerturbed(KL + CE, hd.SecondDropout()), "outside"),
    "unknown perturbation": (lambda: hd.OnPerturbed(KL, {"name": "pdg"}), "'pgd'"),
    "unknown setting": (lambda: hd.Smoothness({"name": "pgd", "epsilom": 1}), "'epsilon'"),
    "no perturbation": (lambda: hd.OnPerturbed(KL, "pgd"), "Expected a perturbation"),
    "teacher": (lambda: hd.OnPerturbed(KL, hd.SecondDropout(), "noisy"), "'clean', 'perturbed'"),
    "teacherless": (lambda: hd.OnPerturbed(CE, hd.SecondDropout(), "perturbed"), "asks no teacher"),
    "alpha": (lambda: hd.rslad(0.1, alpha=1.5), "alpha in"),
    "power": (lambda: hd.TrustedLabels(-1.0), "at least 0"),
    "q": (lambda: hd.GeneralizedCrossEntropy(2.0), "from 0 to 1"),
    "beta": (lambda: hd.IAD(hd.SecondDropout(), beta=-1.0), "at least 0"),
    "groups": (lambda: hd.GroupDRO(CE, 1), "2 groups"),
    "sizes": (lambda: hd.GroupWeights(CE, (0, 3)), "2 groups"),
    "recipe": (lambda: hd.objective_from([{"name": "rslda", "epsilon": 1}]), "rslad"),
    "weight inside": (
        lambda: hd.objective_from(
            [{"name": "free_lb", "epsilon": 1, "objective": {"name": "forward_kl", "weight": 2}}]
        ),
        "rows of their own",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_settings_are_refused(name: str) -> None:
    """A swapped step and epsilon trains at a quarter of the budget, as a published code does."""
    make, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        make()


def test_bad_input_is_refused() -> None:
    """What does not fit would train on something else, or fail in a kernel."""
    text, picture = Bench("sequence_classification"), Bench()
    by = hd.PGD(0.1, 1, maximise="adaptive")
    cases: list[tuple[Bench, Any, str]] = [
        (text, hd.OnPerturbed(KL, by, "perturbed"), "embeddings, which mean nothing"),
        (text, hd.OnPerturbed(KL, hd.PGD(0.1, 1), "perturbed"), "embeddings, which mean nothing"),
        (text, hd.OnPerturbed(KL, hd.TokenNoise(0.5)), "processing_class"),
        (text, hd.OnPerturbed(KL, hd.TokenNoise(0.5, "mask", keep=(0,))), "mask token"),
        (text, hd.OnPerturbed(KL, hd.PerturbedColumns()), "PairedCollator"),
        (picture, hd.OnPerturbed(KL, hd.TokenNoise(0.5)), "input_ids"),
        (picture, hd.GroupDRO(CE, 3), "column 'group'"),
        (picture, hd.GroupDRO(CE, 2, "labels"), "from 0 to 1"),
        (picture, hd.GroupDRO(hd.EarlyExits(labels=1.0), 3, "labels"), "one value"),
    ]
    for bench, objective, words in cases:
        with pytest.raises(ValueError, match=words):
            bench.loss(objective)
    with pytest.raises(ValueError, match="DistillationTrainer"):
        hd.OnPerturbed(CE, hd.SecondDropout()).terms(Signal(), None, BatchItems({}), Context())
    for kind in ("regression", "sigmoid"):
        for objective in (hd.TrustedLabels(), hd.IAD(hd.SecondDropout())):
            with pytest.raises(ValueError, match=kind):
                objective.check(kind)
    tagged = Bench("token_classification")
    tagged.batch["noisy_input_ids"] = tagged.batch["input_ids"]
    with pytest.raises(ValueError, match="one per token"):
        tagged.loss(hd.OnPerturbed(KL, hd.PerturbedColumns()))


def test_a_teacher_without_a_gradient_is_refused(bench: Bench) -> None:
    """A cache that answers x with T(x) for every x' makes AdaAD silently RSLAD."""
    pair = bench.pair()
    fixed = pair.ask_teacher(bench.batch, Needs(logits=True))
    cached = replace(pair, ask_teacher=lambda batch, needs: fixed)
    by = hd.PGD(0.1, 1, maximise="adaptive")
    with pytest.raises(ValueError, match="the model itself"):
        by.batch(cached, fixed, bench.items, Context())

    def missing(batch: Any, needs: Needs) -> Signal:
        raise ValueError("not in the cache")

    with pytest.raises(ValueError, match=r"teacher='clean'.*not in the cache"):
        by.batch(replace(pair, ask_teacher=missing), fixed, bench.items, Context())


def test_modules_are_not_shared() -> None:
    """A learned part of an objective inside must be found where it was built."""
    learned = hd.LearnedTemperature(1.0, 5.0)
    bench = Bench()
    bench.batch["group"] = torch.zeros(5, dtype=torch.long)
    for objective in (
        hd.OnPerturbed(hd.ForwardKL(learned), hd.Gaussian(0.1)),
        hd.FreeLB(hd.ForwardKL(learned), 0.1, 2),
        hd.GroupDRO(hd.ForwardKL(learned), 2),
        hd.GroupWeights(hd.ForwardKL(learned), (1, 2)),
    ):
        goal = 1.0 * objective
        built = goal.build(Signal(), Signal())
        assert any(isinstance(p, nn.Parameter) for p in built.parameters())
        assert bench.loss(objective).requires_grad


def test_a_member_is_named_inside_a_perturbed_teacher() -> None:
    """Around it, the whole ensemble would be asked, and its mean taken for the member."""
    part = hd.OnPerturbed(hd.ForwardKL(), hd.PGD(0.1), teacher="perturbed")
    with pytest.raises(ValueError, match="Put the member inside"):
        hd.FromTeacher("large", part)
    hd.FromTeacher("large", hd.OnPerturbed(hd.ForwardKL(), hd.PGD(0.1)))
