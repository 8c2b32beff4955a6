"""Several teachers as one: every rule against numpy in float64, and against each member by hand."""

from __future__ import annotations

import copy
import itertools
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batch_splits import measure
from tiny_models import CASES, Case, collate
from tiny_trainers import Recorder, data, log_softmax, models, trainer, weights
from torch import Tensor
from transformers import TrainerCallback

from hf_distill import ForwardKL, HardLabels, HiddenStates, Jacobian, LogitMSE, ReverseKL
from hf_distill.models.signals import BatchItems, Needs, Signal, SparseProbs
from hf_distill.objectives.base.objective import Context
from hf_distill.objectives.nested import FromTeacher
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.cache import write_cache
from hf_distill.teachers.cache.teacher import CachedTeacher
from hf_distill.teachers.ensemble.teacher import Ensemble

ALL = Needs(logits=True, unsampled=True, full_vocabulary=True)
EVEN = BatchItems({})


class Says:
    """A teacher that says the same for every batch, and remembers what it was asked."""

    config: Any = None

    def __init__(self, signal: Signal | Tensor, provides: Needs = ALL, kind: str = "softmax"):
        self.signal = Signal(signal, kind) if isinstance(signal, Tensor) else signal
        self.provides = provides
        self.asked: list[Needs] = []

    def __call__(self, batch: Any, needs: Needs, items: BatchItems) -> Signal:
        self.asked.append(needs)
        return self.signal

    def columns(self) -> set[str]:
        return {"input_ids"}

    def tokens(self) -> None:
        return None

    def place(self, accelerator: Any) -> None:
        pass

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def describe(self) -> dict[str, Any]:
        return {"name": "says"}


def drawn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def several(*shape: int, count: int = 3) -> list[Tensor]:
    return [drawn(*shape, seed=seed, scale=1.0 + seed) for seed in range(count)]


def sigmoid(x: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))


def top(logits: Tensor, k: int, temperature: float = 1.0) -> SparseProbs:
    """The k likeliest classes, and the mass of the others summed one by one."""
    chances = np.exp(log_softmax(logits / temperature))
    ids = np.argsort(-chances, -1)[..., :k].copy()
    best = np.take_along_axis(chances, ids, -1)
    others = np.sort(chances, -1)[..., : chances.shape[-1] - k].sum(-1)
    with np.errstate(divide="ignore"):
        parts = torch.tensor(ids), torch.tensor(np.log(best)), torch.tensor(np.log(others))
    return SparseProbs(*parts, classes=logits.shape[-1], temperature=temperature)


def partly(sparse: SparseProbs, unsampled: bool = True) -> Says:
    return Says(Signal(sparse=sparse), Needs(logits=True, unsampled=unsampled))


def dense(sparse: SparseProbs) -> np.ndarray:
    """What a sparse result says of every class: its rest in one lump, last."""
    shape = (*sparse.ids.shape[:-1], sparse.classes)
    found = np.zeros((int(np.prod(shape[:-1])), sparse.classes + 1))
    ids, values = sparse.ids.flatten(0, -2), sparse.log_probs.flatten(0, -2).exp()
    for row in range(len(found)):
        for index, value in zip(ids[row].tolist(), values[row].tolist(), strict=True):
            if value > 0:
                assert found[row, index] == 0, "a class is listed twice"
                found[row, index] = value
    found[:, -1] = sparse.log_rest.flatten().exp()
    return found.reshape(*shape[:-1], -1)


# ---- averages --------------------------------------------------------------------------------

W = np.array([0.5, 0.3, 0.2])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["softmax", "ctc"])
def test_mean_of_probabilities(kind: str, temperature: float) -> None:
    """A mean taken at another temperature than the objective's is a different teacher."""
    logits = several(4, 5, 7)
    ensemble = Ensemble([Says(z, kind=kind) for z in logits], [5, 3, 2], temperature=temperature)
    found = ensemble({}, ALL, EVEN)
    expected = sum(w * np.exp(log_softmax(z / temperature)) for w, z in zip(W, logits, strict=True))
    assert found.kind == kind
    assert found.logits is not None
    np.testing.assert_allclose((found.logits / temperature).exp(), expected, rtol=1e-12)
    student = drawn(4, 5, 7, seed=9)
    items = BatchItems({"items": torch.ones(4, 5, dtype=torch.bool)})
    goal = ForwardKL(temperature, t_squared=False)
    (term,) = goal.terms(Signal(student, kind), found, items, Context())
    ours = log_softmax(student / temperature)
    kl = (expected * (np.log(expected) - ours)).sum(-1)
    np.testing.assert_allclose(term.values, kl, rtol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_mean_of_independent_classes(temperature: float) -> None:
    """A softmax over classes that are independent of each other would make them compete."""
    logits = several(6, 4)
    found = Ensemble([Says(z, kind="sigmoid") for z in logits], [5, 3, 2], temperature=temperature)(
        {}, ALL, EVEN
    )
    expected = sum(w * sigmoid(z / temperature) for w, z in zip(W, logits, strict=True))
    assert found.logits is not None
    np.testing.assert_allclose(sigmoid(found.logits / temperature), expected, rtol=1e-12)
    far = Ensemble([Says(torch.full((1, 2), -800.0), kind="sigmoid") for _ in range(2)])
    logits_far = far({}, ALL, EVEN).logits
    assert logits_far is not None
    np.testing.assert_allclose(logits_far, -800.0)  # a mean of 0 would be -inf


def test_mean_of_outputs_and_logits() -> None:
    """A regression's outputs are no logs of anything, and mean logits are no log of a mean."""
    outputs = several(6, 1)
    expected = sum(w * z.numpy() for w, z in zip(W, outputs, strict=True))
    for average in ("probabilities", "logits"):
        teachers = [Says(z, kind="regression") for z in outputs]
        found = Ensemble(teachers, [5, 3, 2], average)({}, ALL, EVEN).logits
        assert found is not None
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    for kind in ("softmax", "sigmoid", "ctc"):
        logits = several(2, 3, 5)
        found = Ensemble([Says(z, kind=kind) for z in logits], [5, 3, 2], "logits")
        mean = found({}, ALL, EVEN).logits
        assert mean is not None
        expected = sum(w * z.numpy() for w, z in zip(W, logits, strict=True))
        np.testing.assert_allclose(mean, expected, rtol=1e-12)


def test_confidence() -> None:
    """Weights that are the same for all items would let an unsure member spoil a sure one."""
    logits = several(5, 6)
    found = Ensemble([Says(z) for z in logits], "confidence", temperature=2.0)({}, ALL, EVEN)
    chances = [np.exp(log_softmax(z / 2.0)) for z in logits]
    scores = np.stack([(p * np.log(p)).sum(-1) for p in chances])
    w = np.exp(scores) / np.exp(scores).sum(0)
    expected = sum(w[i][:, None] * chances[i] for i in range(3))
    assert found.logits is not None
    np.testing.assert_allclose((found.logits / 2).exp(), expected, rtol=1e-12)
    found = Ensemble([Says(z, kind="sigmoid") for z in logits], "confidence")({}, ALL, EVEN)
    chances = [sigmoid(z) for z in logits]
    scores = np.stack([(p * np.log(p) + (1 - p) * np.log1p(-p)).sum(-1) for p in chances])
    w = np.exp(scores) / np.exp(scores).sum(0)
    assert found.logits is not None
    mean = sum(w[i][:, None] * chances[i] for i in range(3))
    np.testing.assert_allclose(sigmoid(found.logits), mean, rtol=1e-9)
    found = Ensemble([Says(z) for z in logits], "confidence", "logits")({}, ALL, EVEN)
    scores = np.stack([(np.exp(log_softmax(z)) * log_softmax(z)).sum(-1) for z in logits])
    w = np.exp(scores) / np.exp(scores).sum(0)
    mean = sum(w[i][:, None] * logits[i].numpy() for i in range(3))
    np.testing.assert_allclose(found.logits, mean, rtol=1e-12)


def test_weights_by_the_labels() -> None:
    """An item without a label would take a weight from the class that fills its place."""
    logits, labels = several(5, 6), torch.tensor([0, 5, -100, 2, 3])
    items = BatchItems({"labels": labels != -100}, labels)
    found = Ensemble([Says(z) for z in logits], "labels")({}, ALL, items).logits
    chances = np.stack([np.exp(log_softmax(z)) for z in logits])
    w = np.full((3, 5), 1 / 3)
    for row, label in enumerate(labels.tolist()):
        if label >= 0:
            w[:, row] = chances[:, row, label] / chances[:, row, label].sum()
    assert found is not None
    np.testing.assert_allclose(found.exp(), (w[..., None] * chances).sum(0), rtol=1e-12)
    unlabelled = Ensemble([Says(z) for z in logits], "labels")({}, ALL, EVEN).logits
    np.testing.assert_allclose(unlabelled, np.log(chances.mean(0)), rtol=1e-12)

    several_labels = torch.tensor([[1.0, 0.0], [1.0, torch.nan], [torch.nan, -1.0]])
    logits = several(3, 2)
    items = BatchItems({"labels": torch.tensor([True, True, False])}, several_labels)
    found = Ensemble([Says(z, kind="sigmoid") for z in logits], "labels")({}, ALL, items).logits
    p = np.stack([sigmoid(z) for z in logits])
    likely = np.stack([p[:, 0, 0] * (1 - p[:, 0, 1]), p[:, 1, 0], np.ones(3)], 1)
    w = likely / likely.sum(0)
    np.testing.assert_allclose(sigmoid(found), (w[..., None] * p).sum(0), rtol=1e-9)

    outputs, targets = several(4, 1), drawn(4, seed=8)
    items = BatchItems({"labels": torch.ones(4, dtype=torch.bool)}, targets)
    found = Ensemble([Says(z, kind="regression") for z in outputs], "labels")({}, ALL, items).logits
    z = np.stack([o.numpy()[:, 0] for o in outputs])
    likely = np.exp(-0.5 * (z - targets.numpy()) ** 2)
    np.testing.assert_allclose(found[:, 0], (likely / likely.sum(0) * z).sum(0), rtol=1e-9)


def test_extreme_logits_stay_finite() -> None:
    """Masked positions carry the lowest number there is; a mean of it must not become NaN."""
    low = torch.finfo(torch.float32).min / 4
    logits = [torch.tensor([[1.0, low, 0.0]]), torch.tensor([[low, low, 3.0]])]
    for average, temperature in itertools.product(("probabilities", "logits"), (0.5, 1.0, 4.0)):
        ensemble = Ensemble([Says(z) for z in logits], None, average, temperature=temperature)
        found = ensemble({}, ALL, EVEN).logits
        assert found is not None
        assert found.dtype == torch.float32
        assert not found.isnan().any()
        assert (found[:, 1] < -1e30).all()


# ---- members that know some classes ----------------------------------------------------------


def spread_by_hand(sparse: SparseProbs, reference: np.ndarray) -> np.ndarray:
    """One item and class after another: the rule as it is written down."""
    found = np.zeros_like(reference)
    for index in np.ndindex(reference.shape[:-1]):
        pairs = zip(sparse.ids[index].tolist(), sparse.log_probs[index].tolist(), strict=True)
        listed = {c: v for c, v in pairs if v > -np.inf}
        rest = float(sparse.log_rest[index].exp())
        outside = [c for c in range(sparse.classes) if c not in listed]
        total = sum(reference[index][c] for c in outside)
        for c in range(sparse.classes):
            share = reference[index][c] / total if c in outside else 0.0
            found[index][c] = np.exp(listed[c]) if c in listed else rest * share
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_rest_is_spread_like_the_dense_members(temperature: float) -> None:
    """Spread evenly, the tail of a vocabulary would get mass that no teacher gives it."""
    a, b, c, d = several(3, 4, 9, count=4)
    teachers = [Says(a), partly(top(c, 3, temperature)), Says(b), partly(top(d, 2, temperature))]
    found = Ensemble(teachers, [0.1, 0.2, 0.3, 0.4], temperature=temperature)({}, ALL, EVEN)
    first, second = (np.exp(log_softmax(z / temperature)) for z in (a, b))
    reference = (first + second) / 2
    expected = 0.1 * first + 0.3 * second
    expected += 0.2 * spread_by_hand(top(c, 3, temperature), reference)
    expected += 0.4 * spread_by_hand(top(d, 2, temperature), reference)
    assert found.sparse is None
    assert found.logits is not None
    np.testing.assert_allclose((found.logits / temperature).exp(), expected, rtol=1e-10)


def gradient(goal: ForwardKL, student: Tensor, teacher: Signal) -> Tensor:
    student = student.clone().requires_grad_()
    items = BatchItems({"items": torch.ones(student.shape[:-1], dtype=torch.bool)})
    (term,) = goal.terms(Signal(student), teacher, items, Context())
    (found,) = torch.autograd.grad(term.values.sum(), student)
    return found


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("others", ["dense", "sparse"])
def test_all_but_one_class_is_all(others: str, average: str) -> None:
    """With one class left, its mass is known: whatever the rule, nothing may be lost."""
    a, b = several(3, 8, count=2)
    whole = Ensemble([Says(a), Says(b)], [1, 3], average, temperature=2.0)({}, ALL, EVEN)
    first = Says(a) if others == "dense" else partly(top(a, 7, 2.0))
    mixed = Ensemble([first, partly(top(b, 7, 2.0))], [1, 3], average, temperature=2.0)
    found = mixed({}, ALL & mixed.provides, EVEN)
    expected = np.exp(log_softmax(whole.logits / 2.0))
    if others == "dense":
        np.testing.assert_allclose(np.exp(log_softmax(found.logits / 2.0)), expected, atol=1e-12)
    else:
        assert found.sparse is not None
        assert found.sparse.unsampled
        got = dense(found.sparse)
        np.testing.assert_allclose(got[..., :-1], expected * (got[..., :-1] > 0), atol=1e-12)
        np.testing.assert_allclose(got.sum(-1), 1.0, atol=1e-12)
    goal, student = ForwardKL(2.0), drawn(3, 8, seed=5)
    difference = gradient(goal, student, found) - gradient(goal, student, whole)
    assert difference.abs().max() < 1e-6


@pytest.mark.parametrize("others", ["dense", "sparse"])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_error_is_within_the_rest(others: str, k: int) -> None:
    """The rule may misplace the mass of the rest, times its member's weight, and no more."""
    a, b = several(50, 12, count=2)
    whole = Ensemble([Says(a), Says(b)], [1, 3])({}, ALL, EVEN)
    first = Says(a) if others == "dense" else partly(top(a, k))
    rest = 0.75 * top(b, k).log_rest.exp()
    if others == "sparse":
        rest = rest + 0.25 * top(a, k).log_rest.exp()
    mixed = Ensemble([first, partly(top(b, k))], [1, 3])
    found = mixed({}, ALL & mixed.provides, EVEN)
    expected = np.exp(log_softmax(whole.logits))
    if found.sparse is None:
        distance = 0.5 * np.abs(np.exp(log_softmax(found.logits)) - expected).sum(-1)
    else:
        got = dense(found.sparse)
        listed = got[..., :-1] > 0
        lump = np.where(listed, 0.0, expected).sum(-1)
        distance = 0.5 * np.abs(np.where(listed, got[..., :-1] - expected, 0.0)).sum(-1)
        distance += 0.5 * np.abs(got[..., -1] - lump)
    assert (distance <= rest.numpy() + 1e-12).all()
    assert (distance > 1e-6).any()  # there is an error to bound
    goal, student = ForwardKL(), drawn(50, 12, seed=5)
    off = (gradient(goal, student, found) - gradient(goal, student, whole)).abs().sum(-1)
    bound = 2 * rest if found.sparse is None else 4 * rest  # a bucket hides the student's tail too
    assert (off <= bound + 1e-12).all()


def union_by_hand(members: list[SparseProbs], w: list[float]) -> np.ndarray:
    rows, classes = len(members[0].ids), members[0].classes
    found = np.zeros((rows, classes + 1))
    for row in range(rows):
        tables = []
        for member in members:
            pairs = zip(member.ids[row].tolist(), member.log_probs[row].tolist(), strict=True)
            tables.append({c: np.exp(v) for c, v in pairs if v > -np.inf})
        union = set().union(*tables)
        for table, member, weight in zip(tables, members, w, strict=True):
            rest = float(member.log_rest[row].exp())
            each = rest / (classes - len(table)) if len(table) < classes else 0.0
            for c in range(classes):
                found[row, c if c in union else classes] += weight * table.get(c, each)
    return found


def only(sparse: SparseProbs, row: int) -> SparseProbs:
    parts = (t[row : row + 1] for t in (sparse.ids, sparse.log_probs, sparse.log_rest))
    return SparseProbs(*parts, classes=sparse.classes)


def test_sparse_members_alone() -> None:
    """Slots that are not used, lists of other lengths and classes that two members list: each is a
    way to count mass twice or not at all."""
    a, b, c = several(20, 9)
    members = [top(a, 3), top(b, 5), top(c, 1)]
    unused = members[1].log_probs.clone()
    lost = unused[::2, -2:].exp().sum(-1)
    unused[::2, -2:] = -torch.inf
    rest = members[1].log_rest.exp()
    rest[::2] += lost
    ids = members[1].ids.clone()
    ids[::2, -2:] = ids[::2, :1]  # what an unused slot holds is ignored
    members[1] = SparseProbs(ids, unused, rest.log(), 9)
    ensemble = Ensemble([partly(m) for m in members], [5, 3, 2])
    assert ensemble.provides == Needs(logits=True, unsampled=True) | ensemble.provides
    assert not ensemble.provides.full_vocabulary
    found = ensemble({}, ensemble.provides, EVEN).sparse
    assert found is not None
    assert found.unsampled
    assert found.classes == 9
    assert int(found.ids.min()) >= 0
    np.testing.assert_allclose(dense(found), union_by_hand(members, list(W)), atol=1e-12)
    confident = Ensemble([partly(m) for m in members], "confidence")({}, ALL, EVEN).sparse
    assert confident is not None
    entropies = []
    for member in members:
        p = spread_by_hand(member, np.ones((20, 9)))
        entropies.append(-np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(-1))
    w = np.exp(-np.stack(entropies)) / np.exp(-np.stack(entropies)).sum(0)
    rows = [union_by_hand([only(m, r) for m in members], list(w[:, r])) for r in range(20)]
    np.testing.assert_allclose(dense(confident), np.concatenate(rows), atol=1e-12)


def test_draws_are_unbiased() -> None:
    """A draw's missing classes are not a rest: mass spread on them would bias the mean."""
    logits, other = drawn(5, seed=1), drawn(5, seed=2)
    exact = np.exp(log_softmax(logits))
    total, student = np.zeros(5), drawn(1, 5, seed=6)
    mean_gradient = torch.zeros_like(student)
    for first, second in itertools.product(range(5), repeat=2):  # every outcome of two draws
        counts = np.bincount([first, second], minlength=5)
        parts = torch.tensor(counts / 2).log()[None], torch.tensor([-torch.inf])
        drawn_one = SparseProbs(torch.arange(5)[None], *parts, classes=5, unsampled=False)
        ensemble = Ensemble([Says(other[None]), partly(drawn_one, unsampled=False)], [1, 3])
        assert not ensemble.provides.unsampled
        assert not ensemble.provides.full_vocabulary
        found = ensemble({}, ALL, EVEN).sparse
        assert found is not None
        assert not found.unsampled
        total += exact[first] * exact[second] * dense(found)[0, :-1]
        share = gradient(ForwardKL(), student, Signal(sparse=found))
        mean_gradient += exact[first] * exact[second] * share
        alone = Ensemble([partly(drawn_one, unsampled=False), partly(top(other[None], 2))])
        result = alone({}, ALL, EVEN).sparse
        assert result is not None
        assert not result.unsampled
    expected = 0.25 * np.exp(log_softmax(other)) + 0.75 * exact
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    np.testing.assert_allclose(
        mean_gradient[0], np.exp(log_softmax(student))[0] - expected, atol=1e-12
    )
    with pytest.raises(ValueError, match="temperature"):  # softened draws would be biased
        gradient(ForwardKL(2.0), student, Signal(sparse=found))
    with pytest.raises(ValueError, match="draws"):
        Ensemble([Says(other[None]), partly(drawn_one, unsampled=False)], average="logits")


def test_other_temperature_is_refused() -> None:
    """Stored probabilities cannot be softened: mixed as they are they would be another teacher."""
    a, b = several(2, 5, count=2)
    with pytest.raises(
        ValueError, match="'teacher_1' at the ensemble's temperature 1, got them at 2"
    ):
        Ensemble([Says(a), partly(top(b, 2, 2.0))])({}, ALL, EVEN)
    with pytest.raises(ValueError, match=r"\(2, 5\) of 'teacher_0' and softmax \(2, 6\)"):
        Ensemble([Says(a), Says(drawn(2, 6))])({}, ALL, EVEN)
    with pytest.raises(ValueError, match="sigmoid"):
        Ensemble([Says(a), Says(b, kind="sigmoid")])({}, ALL, EVEN)


# ---- real heads ------------------------------------------------------------------------------


def asked(
    teacher: Any, name: str, needs: Needs = ALL
) -> tuple[Signal, dict[str, Tensor], BatchItems]:
    batch = collate(CASES[name].data())
    task_model = ModelTeacher(CASES[name].models()[1]).task_model
    batch = dict(task_model.task.share(batch, task_model.model))
    items = task_model.items(batch)
    return teacher(batch, needs, items), batch, items


@pytest.mark.parametrize(
    "name",
    [
        "sequence_classification",
        "multi_label",
        "regression",
        "token_classification",
        "question_answering",
        "causal_lm",
        "seq2seq_lm",
        "semantic_segmentation",
        "ctc",
        "dual_encoder",
    ],
)
def test_heads(name: str) -> None:
    """Each head has logits of its own shape and meaning; and one member alone is that member."""
    small, large = CASES[name].models()
    ensemble = Ensemble({"small": small, "large": large}, [1, 3])
    found, _, _ = asked(ensemble, name)
    alone, _, _ = asked(Ensemble([large]), name)
    beside, _, _ = asked(Ensemble([small, large], [0, 2]), name)
    theirs, _, _ = asked(ModelTeacher(large), name)
    ours, _, _ = asked(ModelTeacher(small), name)
    for same in (alone, beside):
        assert same.kind == theirs.kind
        assert torch.equal(same.logits, theirs.logits)
    assert not found.members
    pair = (ours.logits, theirs.logits)
    if theirs.kind == "regression":
        expected = 0.25 * pair[0] + 0.75 * pair[1]
        np.testing.assert_allclose(found.logits, expected, rtol=1e-10)
    elif theirs.kind == "sigmoid":
        p = [sigmoid(z) for z in pair]
        np.testing.assert_allclose(sigmoid(found.logits), 0.25 * p[0] + 0.75 * p[1], rtol=1e-9)
    else:
        p = [np.exp(log_softmax(z)) for z in pair]
        np.testing.assert_allclose(found.logits.exp(), 0.25 * p[0] + 0.75 * p[1], rtol=1e-9)
    assert found.kind == theirs.kind


def permuted(model: Any, order: list[int]) -> Any:
    """The same classifier, whose class i is what was class order[i]."""
    other = copy.deepcopy(model)
    names = model.config.id2label
    other.config.id2label = {i: names[o] for i, o in enumerate(order)}
    other.config.label2id = {names[o]: i for i, o in enumerate(order)}
    with torch.no_grad():
        other.classifier.weight.copy_(model.classifier.weight[order])
        other.classifier.bias.copy_(model.classifier.bias[order])
    return other


def named(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    for model in pair:
        model.config.id2label = {0: "bad", 1: "so so", 2: "good"}
        model.config.label2id = {"bad": 0, "so so": 1, "good": 2}
    return pair


def test_labels_in_another_order() -> None:
    """Classes that are averaged by position would teach 'good' what another calls 'bad'."""
    small, large = named(CASES["sequence_classification"].models())
    turned = permuted(large, [2, 0, 1])  # not its own inverse, which would hide a mistake
    expected, batch, items = asked(Ensemble([small, large]), "sequence_classification")
    found = Ensemble([small, turned])(batch, ALL, items)
    assert torch.equal(found.logits, expected.logits)
    routed = Ensemble([small, turned], route="who")
    who = torch.tensor([0, 1] * 4)
    rows = routed({**batch, "who": who}, ALL, items).logits
    straight = Ensemble([small, large], route="who")({**batch, "who": who}, ALL, items).logits
    assert torch.equal(rows, straight)

    class Listed(Says):
        config = turned.config

    theirs = ModelTeacher(turned)(batch, ALL, items).logits
    plain = ModelTeacher(large)(batch, ALL, items).logits
    listed = Listed(Signal(sparse=top(theirs, 1)), Needs(logits=True, unsampled=True))
    found = Ensemble([small, listed])(batch, ALL, items)
    own = partly(top(plain, 1))
    own.config = large.config
    expected = Ensemble([small, own])(batch, ALL, items)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-12)


class Tokenizer:
    def __init__(self, size: int):
        self.size = size

    def get_vocab(self) -> dict[str, int]:
        return {f"t{i}": i for i in range(self.size)}


def test_vocabularies_that_differ_by_padding() -> None:
    """Rows of padding that one vocabulary has and the other has not, are no tokens."""
    case = CASES["causal_lm"]
    config = case.config()
    config.vocab_size = 44
    small, wide = case.models()[0], case.model(config).to(torch.float64)
    members = {
        "small": ModelTeacher(small, Tokenizer(38)),
        "wide": ModelTeacher(wide, Tokenizer(38)),
    }
    ensemble = Ensemble(members)
    assert ensemble.config.vocab_size == 38
    assert small.config.vocab_size == 40
    found, batch, items = asked(ensemble, "causal_lm")
    pair = [members[n](batch, ALL, items).logits[..., :38] for n in ("small", "wide")]
    expected = np.mean([np.exp(log_softmax(z)) for z in pair], 0)
    np.testing.assert_allclose(found.logits.exp(), expected, rtol=1e-10)
    members["wide"] = ModelTeacher(wide, Tokenizer(39))
    with pytest.raises(ValueError, match="member 'wide' of the ensemble does not fit"):
        Ensemble(members)


def test_members_that_do_not_fit() -> None:
    """What is found at the first batch has cost the loading of a cluster; a wrong name, a day."""
    small, large = named(CASES["sequence_classification"].models())
    large.config.id2label = {0: "bad", 1: "so so", 2: "excellent"}
    with pytest.raises(
        ValueError, match=r"member 'b' of the ensemble.*first one, 'a'.*same labels"
    ):
        Ensemble({"a": small, "b": large})
    with pytest.raises(ValueError, match="'b' beside"):
        Ensemble({"a": small, "b": CASES["causal_lm"].models()[0]})
    for given, words in (
        ({}, "got none"),
        ({"a/b": small}, "'a/b'"),
        ({"2": small}, "'2'"),
        ({"a": "bert-base-cased"}, "'a' to be a model"),
    ):
        with pytest.raises(ValueError, match=words):
            Ensemble(given)
    pair = [Says(drawn(2, 3)), Says(drawn(2, 3))]
    for bad in ([1], [1, 2, 3], [1, -1], [0, 0], [1, float("nan")], [1, float("inf")], "best"):
        with pytest.raises(ValueError, match="weights"):
            Ensemble(pair, bad)
    with pytest.raises(ValueError, match="average"):
        Ensemble(pair, average="median")
    with pytest.raises(ValueError, match="route"):
        Ensemble(pair, [1, 2], route="who")
    with pytest.raises(ValueError, match="above 0"):
        Ensemble(pair, temperature=0)
    with pytest.raises(ValueError, match="no entropy"):
        Ensemble(list(CASES["regression"].models()), "confidence")
    with pytest.raises(ValueError, match="CTC"):
        Ensemble(list(CASES["ctc"].models()), "labels")
    with pytest.raises(ValueError, match="examples of a batch"):
        Ensemble(list(CASES["dual_encoder"].models()), route="who")
    with pytest.raises(ValueError, match="some classes alone"):
        Ensemble([pair[0], partly(top(drawn(2, 3), 1))], route="who")


class Freed(Says):
    """Gives new logits each time, and looks which of those given before are still held."""

    given: list[Any] = []  # noqa: RUF012
    alive: list[int] = []  # noqa: RUF012

    def __call__(self, batch: Any, needs: Needs, items: BatchItems) -> Signal:
        self.alive.append(sum(ref() is not None for ref in self.given))
        logits = drawn(4, 5)
        self.given.append(weakref.ref(logits))
        return Signal(logits)


@pytest.mark.parametrize("weights", [None, "confidence"])
def test_members_are_not_kept(weights: Any) -> None:
    """The logits of a language model are gigabytes; those of all members at once do not fit."""
    Freed.given, Freed.alive = [], []
    ensemble = Ensemble([Freed(drawn(1, 1)) for _ in range(6)], weights)
    found = ensemble({}, ALL, EVEN)
    assert max(Freed.alive) <= 1
    assert not found.members


# ---- routing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["sequence_classification", "question_answering", "causal_lm", "ctc", "multiple_choice"]
)
def test_routing(name: str) -> None:
    """Rows that are put back in another order teach every example what belongs to another."""
    pair = CASES[name].models()
    who = torch.tensor([1, 0, 0, 1, 1, 0, 1, 1])
    ensemble = Ensemble(list(pair), route="who")
    assert "who" in ensemble.columns()
    _, batch, items = asked(ModelTeacher(pair[1]), name)
    found = ensemble({**batch, "who": who}, ALL, items)
    assert found.logits is not None
    axis = 1 if name == "question_answering" else 0
    for row, index in enumerate(who.tolist()):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        head = ModelTeacher(pair[index])
        expected = head(one, ALL, head.task_model.items(one)).logits
        got = found.logits.select(axis, row)
        np.testing.assert_allclose(got, expected.select(axis, 0), rtol=1e-8, atol=1e-10)


def test_routed_rows_come_with_their_items() -> None:
    """A member that is told of other rows' labels or padding reads its own batch wrongly."""
    small, large = CASES["sequence_classification"].models()
    told: list[tuple[Any, BatchItems]] = []

    class Told(ModelTeacher):
        def __call__(self, batch: Any, needs: Needs, items: BatchItems) -> Signal:
            told.append((batch, items))
            return super().__call__(batch, needs, items)

    ensemble = Ensemble([Told(small), Told(large), small], route="who")
    _, batch, items = asked(ModelTeacher(large), "sequence_classification")
    rows = torch.tensor([True] * 6 + [False] * 2)
    items = ensemble.teachers["teacher_0"].task_model.items(batch, rows)
    who = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
    ensemble({**batch, "who": who}, ALL, items)
    assert len(told) == 2  # no row is for the third
    for index, (part, own) in enumerate(told):
        chosen = who == index
        assert torch.equal(part["input_ids"], batch["input_ids"][chosen])
        assert torch.equal(own.labels, batch["labels"][chosen])
        for unit, mask in items.masks.items():
            expected = mask if mask.dim() == 0 else mask[chosen]
            assert torch.equal(own.masks[unit], expected), unit

    seen: list[BatchItems] = []

    class Bare(Says):  # no head to read a batch with: the masks themselves are divided
        def __call__(self, batch: Any, needs: Needs, items: BatchItems) -> Signal:
            seen.append(items)
            return Signal(torch.zeros(len(batch["input_ids"]), 3))

    Ensemble([Bare(drawn(1)), Bare(drawn(1))], route="who")({**batch, "who": who}, ALL, items)
    for index, own in enumerate(seen):
        assert torch.equal(own.labels, batch["labels"][who == index])
        assert torch.equal(own.masks["hidden"], items.masks["hidden"][who == index])
        assert own.masks["batches"].dim() == 0


def test_routing_of_sparse_members() -> None:
    """Lists of another length per member must become one list."""
    a, b = several(6, 7, count=2)
    who = torch.tensor([1, 0, 1, 1, 0, 0])

    class Rows(Says):
        def __call__(self, batch: Any, needs: Needs, items: BatchItems) -> Signal:
            k = 2 if self is first else 4
            return Signal(sparse=top(batch["x"], k))

    first, second = (Rows(Signal(), Needs(logits=True, unsampled=True)) for _ in range(2))
    x = torch.where(who[:, None] == 0, a, b)
    items = BatchItems({"samples": torch.ones(6, dtype=torch.bool)})
    ensemble = Ensemble([first, second], route="who")
    found = ensemble({"x": x, "who": who}, ALL, items).sparse
    assert found is not None
    for row, index in enumerate(who.tolist()):
        expected = dense(top(x[row : row + 1], (2, 4)[index]))
        np.testing.assert_allclose(dense(found)[row : row + 1], expected, atol=1e-12)


def test_wrong_routes() -> None:
    """An index out of range, or no column at all, must not fall to some member."""
    ensemble = Ensemble([Says(drawn(2, 3)), Says(drawn(2, 3))], route="who")
    items = BatchItems({"samples": torch.ones(2, dtype=torch.bool)})
    x = torch.zeros(2, 1)
    for who, words in (
        (torch.tensor([0, 2]), r"got \[2\]"),
        (torch.tensor([0, -1]), r"got \[-1\]"),
        (torch.tensor([0.0, 1.0]), "float32"),
        (["a", "b"], r"\['a', 'b'\]"),
        (None, "got None"),
    ):
        with pytest.raises(ValueError, match=words):
            ensemble({"x": x, "who": who}, ALL, items)
    batch = {"x": x, "patches": torch.zeros(5, 2), "who": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match="'patches'"):
        ensemble(batch, ALL, items)


# ---- learned weights -------------------------------------------------------------------------


class Looks(Says):
    """Says of each example what its batch holds under a key."""

    def __init__(self, key: str, kind: str = "softmax"):
        super().__init__(Signal(), kind=kind)
        self.key, self.kind = key, kind

    def __call__(self, batch: Any, needs: Needs, items: BatchItems) -> Signal:
        return Signal(batch[self.key], self.kind)


def labelled(batch: Any) -> BatchItems:
    labels = batch["labels"]
    missing = labels.isnan() if labels.is_floating_point() else labels < 0
    return BatchItems({"labels": ~(missing.all(-1) if missing.dim() > 1 else missing)}, labels)


def held_out(kind: str, n: int = 240) -> dict[str, Tensor]:
    """Labels from a mixture of what three members say, of which the third is of little use."""
    width = {"softmax": 4, "sigmoid": 2, "regression": 1}[kind]
    z = several(n, width)
    generator = np.random.default_rng(0)
    if kind == "softmax":
        p = 0.6 * np.exp(log_softmax(z[0])) + 0.4 * np.exp(log_softmax(z[1]))
        y = [generator.choice(width, p=row / row.sum()) for row in p]
        labels = torch.tensor(np.array(y))
        labels[::7] = -100
    elif kind == "sigmoid":
        p = 0.6 * sigmoid(z[0]) + 0.4 * sigmoid(z[1])
        labels = torch.tensor((generator.random(p.shape) < p).astype(np.float64))
        labels[::7, 1], labels[::9] = torch.nan, torch.nan
    else:
        noise = torch.tensor(generator.normal(size=n))
        labels = 0.6 * z[0][:, 0] + 0.3 * z[1][:, 0] + 0.1 * z[2][:, 0] + noise
        labels[::7] = torch.nan
    return {"a": z[0], "b": z[1], "c": z[2], "labels": labels}


def likelihood(batch: dict[str, Tensor], kind: str, average: str, w: np.ndarray) -> float:
    """The mean log-likelihood of the labels, in numpy."""
    z, y = [batch[key].numpy() for key in "abc"], batch["labels"].numpy()
    if kind == "regression":
        mean = sum(u * x[:, 0] for u, x in zip(w, z, strict=True))
        return float(-np.nanmean((mean - y) ** 2))
    if kind == "sigmoid":
        logits = sum(u * x for u, x in zip(w, z, strict=True))
        p = sum(u * sigmoid(x) for u, x in zip(w, z, strict=True))
        p = sigmoid(logits) if average == "logits" else p
        return float(np.nanmean(np.log(np.where(y == 1, p, 1 - p)) + 0 * y))
    rows = np.flatnonzero(y >= 0)
    logs = log_softmax(sum(u * x for u, x in zip(w, z, strict=True)))
    p = sum(u * np.exp(log_softmax(x)) for u, x in zip(w, z, strict=True))
    return float((logs if average == "logits" else np.log(p))[rows, y[rows]].mean())


GRID = [(i / 50, j / 50, (50 - i - j) / 50) for i in range(51) for j in range(51 - i)]


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "regression"])
def test_fitted_weights_are_the_best(kind: str, average: str) -> None:
    """Weights from a search that stops early, or of another likelihood, look as good as any."""
    batch = held_out(kind)
    split = [{k: v[i : i + 48] for k, v in batch.items()} for i in range(0, 240, 48)]
    members = [Looks(key, kind) for key in "abc"]
    ensemble = Ensemble(members, average=average).fit([batch], labelled)
    found = np.array(ensemble.weights)
    best = max(GRID, key=lambda w: likelihood(batch, kind, average, np.array(w)))
    value = likelihood(batch, kind, average, found)
    assert value >= likelihood(batch, kind, average, np.array(best)) - 1e-9
    assert np.abs(found - np.array(best)).max() < 0.03
    assert found.sum() == pytest.approx(1.0)
    again = Ensemble(members, average=average).fit(split, labelled)
    assert again.weights == pytest.approx(ensemble.weights, abs=1e-6)
    items = int(labelled(batch).masks["labels"].sum())
    counted = items if kind != "sigmoid" else int((~batch["labels"].isnan()).sum())
    assert ensemble.describe()["weights_fitted_on_items"] == ensemble.fitted == counted


def test_fit_uses_the_models_labels() -> None:
    """Labels that are counted otherwise than in training would weigh padding."""
    small, large = CASES["causal_lm"].models()
    rows = CASES["causal_lm"].data()
    ensemble = Ensemble([small, large]).fit([collate(rows[:4]), collate(rows[4:])])
    _, batch, items = asked(ensemble, "causal_lm")
    assert ensemble.fitted == int(items.masks["labels"].sum())
    picked = [
        log_softmax(ModelTeacher(m)(batch, ALL, items).logits)[items.masks["labels"].numpy()]
        for m in (small, large)
    ]
    y = items.labels[items.masks["labels"]].numpy()
    chances = [np.exp(p[np.arange(len(y)), y]) for p in picked]
    best = max(
        np.linspace(0, 1, 2001), key=lambda w: np.log(w * chances[0] + (1 - w) * chances[1]).sum()
    )
    assert ensemble.weights[0] == pytest.approx(best, abs=1e-3)


def test_fit_with_sparse_members() -> None:
    """A label outside a member's list has the share of the rest that the mixture gives it."""
    a, b = several(60, 6, count=2)
    labels = torch.randint(6, (60,), generator=torch.Generator().manual_seed(3))
    batch = {"labels": labels}
    for first in (Says(a), partly(top(a, 2))):
        second = partly(top(b, 3))
        ensemble = Ensemble([first, second]).fit([batch], labelled)
        even = np.ones((60, 6))
        if isinstance(first.signal.logits, Tensor):
            one = np.exp(log_softmax(a))
            two = spread_by_hand(second.signal.sparse, one)
        else:
            one, two = (spread_by_hand(s.signal.sparse, even) for s in (first, second))
        chances = [p[np.arange(60), labels.numpy()] for p in (one, two)]
        grid = np.linspace(0, 1, 2001)[1:-1]
        best = max(grid, key=lambda w: np.log(w * chances[0] + (1 - w) * chances[1]).sum())
        assert ensemble.weights[0] == pytest.approx(best, abs=1e-3)


def test_what_cannot_be_fitted() -> None:
    """Weights fitted to nothing are equal weights that look learned."""
    small, large = CASES["sequence_classification"].models()
    batch = collate(CASES["sequence_classification"].data())
    del batch["labels"]
    with pytest.raises(ValueError, match="label"):
        Ensemble([small, large]).fit([batch])
    with pytest.raises(ValueError, match="no label"):
        Ensemble([small, large]).fit([])
    with pytest.raises(ValueError, match="route"):
        Ensemble([small, large], route="who").fit([batch])
    with pytest.raises(ValueError, match="items="):
        Ensemble([Says(drawn(2, 3))]).fit([batch])
    with pytest.raises(ValueError, match="every class"):
        Ensemble([partly(top(drawn(2, 3), 1))], average="logits").fit([batch], labelled)


# ---- one head each ---------------------------------------------------------------------------

TWO = (
    0.5 * HardLabels()
    + FromTeacher("large", HiddenStates("last"))
    + FromTeacher("small", HiddenStates())
)
TWO = TWO + 0.3 * FromTeacher("small", ForwardKL(2.0))


def test_from_is_an_objective_of_its_own() -> None:
    """Two terms under one name are one term in the log, and share one projection."""
    names = [name for name, _, _ in TWO.named()]
    assert names == [
        "hard_labels",
        "hidden_states_large",
        "hidden_states_small",
        "forward_kl_small",
    ]
    assert TWO.needs == Needs(
        modules=frozenset({"large/hidden_states", "small/hidden_states", "small/logits"})
    )
    assert TWO.student_needs == Needs(logits=True, hidden_states=True)
    told = TWO.describe()
    assert [part.get("teacher") for part in told] == [None, "large", "small", "small"]
    assert told[3]["settings"]["temperature"] == 2.0
    assert json.loads(json.dumps(told)) == json.loads(json.dumps(told))
    assert str(FromTeacher("a", ForwardKL(2.0))) == "FromTeacher('a', ForwardKL(temperature=2.0))"
    assert FromTeacher("a", ForwardKL()).citation == ForwardKL.citation
    with pytest.raises(ValueError, match="asks nothing"):
        FromTeacher("a", HardLabels())
    with pytest.raises(ValueError, match="name of a member"):
        FromTeacher("a/b", ForwardKL())
    with pytest.raises(ValueError, match="go outside"):
        FromTeacher("a", 0.5 * ForwardKL())


def test_from_is_the_objective_towards_its_member() -> None:
    """A term against the wrong member, or against the average, trains just as well."""
    small, large = named(CASES["sequence_classification"].models())
    turned = permuted(large, [2, 0, 1])
    student = drawn(8, 3, seed=4)
    needs = FromTeacher("large", ForwardKL(2.0)).needs | FromTeacher("small", HiddenStates()).needs
    ensemble = Ensemble({"small": small, "large": turned})
    signal, batch, items = asked(ensemble, "sequence_classification", needs)
    assert signal.logits is None  # nobody asked for the average
    assert signal.members["small"].logits is None
    assert not signal.members["large"].hidden_states
    theirs = ModelTeacher(large)(batch, ALL, items)
    goal = ForwardKL(2.0)
    (expected,) = goal.terms(Signal(student), theirs, items, Context())
    (found,) = FromTeacher("large", goal).terms(Signal(student), signal, items, Context())
    assert found.name == "forward_kl_large"
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)
    assert found.unit == expected.unit
    plain = ModelTeacher(small)(batch, Needs(hidden_states=True), items)
    for ours, expected_states in zip(
        signal.members["small"].hidden_states["hidden"], plain.hidden_states["hidden"], strict=True
    ):
        assert torch.equal(ours, expected_states)
    with pytest.raises(
        ValueError, match=r"member 'medium', got a teacher with \['large', 'small'\]"
    ):
        FromTeacher("medium", ForwardKL()).terms(Signal(student), signal, items, Context())
    with pytest.raises(ValueError, match="none"):
        FromTeacher("large", ForwardKL()).terms(Signal(student), theirs, items, Context())


def test_members_are_asked_for_no_more() -> None:
    """Hidden states of every member cost memory for one that is looked at."""
    everything = ALL | Needs(hidden_states=True, attentions=True, modules=frozenset({"x", "a.b"}))
    first, second = (
        Says(Signal(drawn(2, 3), modules={"a.b": drawn(2, 2)}), everything) for _ in range(2)
    )
    ensemble = Ensemble({"first": first, "second": second})
    goal = FromTeacher("first", HiddenStates("a.b:c")) + ForwardKL()
    needs = goal.needs & ensemble.provides
    assert not goal.needs.missing_from(ensemble.provides)
    signal = ensemble({}, needs, EVEN)
    assert first.asked == [Needs(logits=True, modules=frozenset({"a.b"}))]
    assert second.asked == [Needs(logits=True)]
    assert list(signal.members) == ["first"]
    assert signal.logits is not None
    plain = HiddenStates("a.b:c").needs | Needs(hidden_states=True)
    assert plain.missing_from(ensemble.provides) == ["hidden_states", "a.b"]
    inner = Ensemble({"deep": first, "other": second})
    outer = Ensemble({"inner": inner, "second": second})
    nested = FromTeacher("inner", FromTeacher("deep", ForwardKL()))
    assert not nested.needs.missing_from(outer.provides)
    assert outer({}, nested.needs, EVEN).members["inner"].members["deep"].logits is not None


def test_training_with_one_head_each(tmp_path: Path) -> None:
    """Projections that are made, trained and logged for one member alone would be half of it."""
    small, large = models()
    wide = CASES["sequence_classification"].models(torch.float32)[1]
    teacher = Ensemble({"small": copy.deepcopy(small), "large": large})
    record = Recorder()
    run = trainer(tmp_path, objective=TWO, teacher_model=teacher, callbacks=[record])
    built = dict(run.projections.named_parameters())
    assert {name.split(".")[0] for name in built} == {"hidden_states_large"}
    before = {name: p.detach().clone() for name, p in built.items()}
    theirs = weights(large)
    run.train()
    assert all(not torch.equal(before[name], p) for name, p in built.items())
    assert all(torch.equal(theirs[name], value) for name, value in large.state_dict().items())
    wanted = {"hard_labels", "hidden_states_large", "hidden_states_small", "forward_kl_small"}
    assert wanted <= set(record.steps[0])
    figures = run.evaluate()
    assert {f"eval_{name}" for name in wanted} | {"eval_agreement"} <= set(figures)
    two_wide = Ensemble({"large": large, "wide": wide})
    goal = FromTeacher("large", HiddenStates("last")) + FromTeacher("wide", HiddenStates("last"))
    run = trainer(tmp_path, objective=goal, teacher_model=two_wide)
    heads = {name.split(".")[0] for name, _ in run.projections.named_parameters()}
    assert heads == {"hidden_states_large", "hidden_states_wide"}


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        (HiddenStates(), "needs .'hidden_states'., which this teacher"),
        (FromTeacher("medium", ForwardKL()), "medium/logits.*Near names"),
        (Jacobian(), "inputs"),
        (
            FromTeacher("large", HiddenStates("bert.encoder.layer.9:bert.encoder.layer.1")),
            r"layer\.9",
        ),
    ],
    ids=str,
)
def test_missing_members_are_told_at_once(tmp_path: Path, goal: Any, words: str) -> None:
    """An objective without its teacher must not train on nothing."""
    small, large = models()
    teacher = Ensemble({"small": copy.deepcopy(small), "large": large})
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, objective=goal, teacher_model=teacher)


# ---- with the trainer ------------------------------------------------------------------------


class Taught(Case):
    """A head whose teacher is an ensemble; the data say who teaches."""

    rule: dict[str, Any]

    def models(self, dtype: torch.dtype = torch.float64) -> Any:
        student, teacher = super().models(dtype)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            other = self.model(self.config()).to(dtype)
        return student, Ensemble({"large": teacher, "other": other}, **self.rule)

    def data(self, rows: int = 8, dtype: torch.dtype = torch.float64) -> Any:
        return [{**e, "who": i % 3 % 2} for i, e in enumerate(super().data(rows, dtype))]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("causal_lm", {"weights": "confidence", "temperature": 2.0}),
        ("sequence_classification", {"route": "who"}),
        ("token_classification", {"weights": "labels"}),
    ],
)
def test_split_changes_nothing(name: str, rule: dict[str, Any]) -> None:
    """Weights that look at the whole batch would make its size a part of the teacher."""
    case = Taught(**vars(CASES[name]))
    object.__setattr__(case, "rule", rule)
    goal = ForwardKL(2.0) + 0.5 * LogitMSE()
    if "route" not in rule:
        goal = (
            goal
            + 0.5 * FromTeacher("large", HiddenStates())
            + 0.2 * FromTeacher("other", ForwardKL())
        )
    figures, gradients = measure(case, (8, 1, 1), {"all": goal})
    others, split = measure(case, (2, 4, 1), {"all": goal})
    assert figures.keys() == others.keys()
    assert "eval_agreement" in figures
    for key, value in figures.items():
        assert others[key] == pytest.approx(value, rel=1e-6, abs=1e-14), key
    difference = (gradients["all"] - split["all"]).norm() / gradients["all"].norm()
    assert difference < 1e-10


def test_trainer_with_an_ensemble(tmp_path: Path) -> None:
    """An ensemble of a teacher and itself is that teacher: every figure must be its."""
    figures = []
    for count in (1, 2):
        large = models()[1]
        teacher = large if count == 1 else Ensemble([large, copy.deepcopy(large)])
        record = Recorder()
        run = trainer(tmp_path, teacher_model=teacher, callbacks=[record], max_steps=3)
        run.train()
        figures.append([*record.steps, run.evaluate()])
    for one, two in zip(*figures, strict=True):
        for key in one:
            if not key.endswith(("runtime", "per_second")):
                assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), key


def test_students_labels_in_another_order(tmp_path: Path) -> None:
    """The trainer brings the ensemble's order into the student's, and that of its members."""
    student, large = named(models())
    turned = permuted(large, [2, 0, 1])
    goal = ForwardKL() + FromTeacher("b", ForwardKL())
    logs = []
    for member in (large, turned):
        pair = Ensemble({"a": copy.deepcopy(member), "b": member})
        record = Recorder()
        own = copy.deepcopy(student)
        run = trainer(
            tmp_path,
            model=own,
            objective=goal,
            teacher_model=pair,
            callbacks=[record],
            train_dataset=data(),
        )
        run.train()
        logs.append(record.steps[0])
    for key in ("forward_kl", "forward_kl_b"):
        assert logs[0][key] == pytest.approx(logs[1][key], rel=1e-5)
        assert logs[0][key] > 1e-3


class Follows(Says, TrainerCallback):
    """A teacher that follows the training, with something to keep."""

    def __init__(self) -> None:
        super().__init__(drawn(4, 3))
        self.steps, self.kept = 0, torch.zeros(2)

    def tensors(self) -> dict[str, Tensor]:
        return {"kept": self.kept}

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        assert others["model"] is not None
        self.steps += 1


def test_cached_members(tmp_path: Path) -> None:
    """A member that is read from disk comes in other classes, dtypes and temperatures than one
    that runs; the mean must be that of the models all the same."""
    small, large = models("causal_lm")
    rows = data("causal_lm")
    teacher, batch = ModelTeacher(large), collate(rows)
    items = teacher.task_model.items(batch)
    mask = items.masks["items"]
    live = Ensemble([small, large], [1, 3])(batch, ALL, items).logits
    assert live is not None
    caches = {}
    for kind, settings in (("full", {}), ("top_k", {"k": 8}), ("sampled", {"draws": 12})):
        folder = write_cache(
            tmp_path / kind, teacher, rows, collate, format={"kind": kind, **settings}, say=str
        )
        caches[kind] = CachedTeacher(folder)
    whole = Ensemble([small, caches["full"]], [1, 3])
    found = whole(batch, ALL & whole.provides, items).logits
    assert found is not None
    assert torch.equal(found[mask], live[mask])
    some = Ensemble([small, caches["top_k"]], [1, 3])
    found = some(batch, ALL & some.provides, items).logits
    assert found is not None
    rest = 1 - teacher(batch, ALL, items).logits.softmax(-1).topk(8).values.sum(-1)
    distance = 0.5 * (found.softmax(-1) - live.softmax(-1)).abs().sum(-1)
    assert (distance[mask] <= 0.75 * rest[mask] + 1e-3).all()  # float16 on disk
    drawn_ones = Ensemble([small, caches["sampled"]], [1, 3])
    run = trainer(
        tmp_path / "run", "causal_lm", teacher_model=drawn_ones, objective=ForwardKL(), max_steps=1
    )
    run.train()
    assert run.evaluate()["eval_forward_kl"] > 0
    assert "eval_reverse_kl_divergence" not in run.evaluate()  # of a few draws: no figure to report
    with pytest.raises(ValueError, match="exact probabilities"):
        trainer(tmp_path, "causal_lm", teacher_model=drawn_ones, objective=ReverseKL())


def test_members_that_follow(tmp_path: Path) -> None:
    """A moving member that hears nothing of the training stays where it was."""
    moving = Follows()
    ensemble = Ensemble({"frozen": Says(drawn(4, 3, seed=1)), "moving": moving})
    assert ensemble.tensors()["moving.kept"] is moving.kept
    trainer(tmp_path, teacher_model=ensemble, objective=ForwardKL(), eval_dataset=None).train()
    assert moving.steps == 2
    told = json.loads(json.dumps(ensemble.describe()))
    assert told["weights"] == {"frozen": 0.5, "moving": 0.5}
    assert told["members"]["moving"] == {"name": "says"}
    assert ensemble.columns() == {"input_ids"}
