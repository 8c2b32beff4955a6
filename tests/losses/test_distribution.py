"""What is particular to single functions of `hf_distill.losses.distribution`.

Named after the peers' defects where one is excluded (D2, D8, ... as in the survey of peers).
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import distribution_rows as brute
import numpy as np
import pytest
import torch
from loss_contracts import DTYPES, HALVES, Loss, pair, value_and_grad, variants
from torch import Tensor

from hf_distill.losses import distribution as d

BY_NAME = {row.name: row for row in brute.ROWS}
# Takes (..., C) student and teacher, and nothing else that is required.
PLAIN = [
    row
    for row in brute.ROWS
    if set(row.inputs(0)) == {"student", "teacher"} and row.name != "logit_standardized_kl"
]
every_plain = pytest.mark.parametrize(("loss", "options"), variants(PLAIN))


def gradient(function: Callable[..., Tensor], student: Tensor, *others: Any) -> Tensor:
    student = student.clone().requires_grad_()
    return torch.autograd.grad(function(student, *others).sum(), student)[0]


# Shapes, sizes and dtypes
@every_plain
def test_shapes(loss: Loss, options: dict[str, Any]) -> None:
    """Items would leak into each other, or classes be averaged instead of summed."""
    for shape in ((5,), (3, 4), (2, 3, 7), (2, 2, 3, 2), (0, 4)):
        student, teacher = pair(*shape)
        values = loss.function(student, teacher, **options)
        assert values.shape == shape[:-1]
        expected = loss.brute(student, teacher, **options)
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)


@every_plain
def test_many_classes(loss: Loss, options: dict[str, Any]) -> None:
    """Over a large vocabulary in half precision, roundings add up."""
    if loss.name == "top_k_kl":
        return  # rounded to half precision, several classes are the k-th
    for dtype in HALVES:
        student, teacher = (x.to(dtype) for x in pair(4, 300, seed=4))
        values = loss.function(student, teacher, **options)
        expected = loss.brute(student, teacher, **options).float()
        torch.testing.assert_close(values, expected, rtol=2e-5, atol=2e-6)


@every_plain
def test_zero_at_equality_of_many(loss: Loss, options: dict[str, Any]) -> None:
    """A student that already is the teacher would still be moved, by a rounding at each step."""
    if not loss.zero_at_equality:
        return
    for dtype in DTYPES:
        equal = pair(64, 11, seed=2, scale=5.0)[0].to(dtype)
        values, grad = value_and_grad(
            partial(loss.function, **options), equal, teacher=equal.clone()
        )
        assert torch.equal(values, torch.zeros_like(values))
        limit = 1e-14 if dtype == torch.float64 else 1e-5
        assert grad.abs().max() < limit * max(options.get("temperature", 1.0), 1.0) ** 2


@every_plain
def test_saturated_logits_with_ties(loss: Loss, options: dict[str, Any]) -> None:
    """One over-confident batch would turn the loss, or only its gradient, into inf or NaN."""
    student = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0], [1e4, 1e4, -1e4]])
    teacher = torch.tensor([[-1e4, 1e4, 0], [-1e4, 1e4, 0], [0.0, 1.0, 1e4]])
    for dtype in DTYPES:
        s, t = student.to(dtype), teacher.to(dtype)
        values, grad = value_and_grad(partial(loss.function, **options), s, teacher=t)
        expected = loss.brute(s, t, **options).to(values.dtype)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
        assert torch.isfinite(grad).all()


# Golden values: the originals' own code on one common draw
def golden_pair() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1234)
    student, teacher = (
        torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student, teacher, torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda s, t, y: d.forward_kl(s, t, 4.0), 0.883914424218232),
        (lambda s, t, y: d.decoupled_kd(s, t, y), 8.369506087766577),
        # torchdistill's, which has no eps beside the lengths
        (lambda s, t, y: d.dist(s, t, eps=0.0), 2.961674886030961),
        (lambda s, t, y: d.logit_standardized_kl(s, t), 1.22337295557178),
        (lambda s, t, y: d.nkd(s, t, y), 3.3020611005698646),
    ],
    ids=["kl", "dkd", "dist", "logit_std", "nkd"],
)
def test_golden_values(function: Callable[..., Tensor], expected: float) -> None:
    """With our defaults, a weight from a paper would mean something else than in its code."""
    assert function(*golden_pair()).mean().item() == pytest.approx(expected, rel=1e-9)


# The peers' defects
def test_d8_gradient_keeps_its_size_over_temperatures() -> None:
    """D8, TextBrewer: without T² the gradient falls from .32 to .006 between T = 1 and 8."""
    student, teacher = pair(64, 10, seed=3, scale=0.5)
    norms = [
        gradient(partial(d.forward_kl, temperature=t), student, teacher).norm().item()
        for t in (1.0, 4.0, 8.0)
    ]
    assert max(norms) < 1.3 * min(norms)
    without = gradient(partial(d.forward_kl, temperature=8.0, t_squared=False), student, teacher)
    assert without.norm().item() == pytest.approx(norms[2] / 64, rel=1e-9)


def test_d9_log_probabilities_are_taken_of_logits() -> None:
    """D9, KD_Lib: probabilities given as log-probabilities to KLDivLoss made the loss -47.9."""
    student, teacher, _ = golden_pair()
    assert (d.forward_kl(student, teacher, 20.0) > 0).all()
    shifted = d.forward_kl(student + 7, teacher - 3, 20.0)
    torch.testing.assert_close(shifted, d.forward_kl(student, teacher, 20.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_d14_decoupled_kd_of_a_sure_student(dtype: torch.dtype) -> None:
    """D14, DKD: log(softmax) is -inf for a student that is sure: infinite loss, NaN gradient."""
    student = torch.tensor([[200.0, 0, 0], [0, 1e4, 0], [0, 0, -1e4]]).to(dtype)
    teacher = torch.tensor([[0.0, 1, 2], [3.0, 1, 0], [0, 1e4, 0]]).to(dtype)
    labels = torch.tensor([0, 0, 2])
    values, grad = value_and_grad(
        partial(d.decoupled_kd, temperature=1.0), student, teacher=teacher, labels=labels
    )
    expected = BY_NAME["decoupled_kd"].brute(student, teacher, labels, temperature=1.0)
    torch.testing.assert_close(values, expected.to(values.dtype), rtol=1e-5, atol=1e-6)
    assert torch.isfinite(grad).all()


def test_d14_decoupled_kd_of_two_classes() -> None:
    """D14: with a single class beside the label, there is nothing to distribute (β is without
    effect), and what remains is the forward KL."""
    student, teacher = pair(4, 2)
    values = d.decoupled_kd(student, teacher, torch.tensor([0, 1, 1, 0]), temperature=2.0)
    torch.testing.assert_close(values, d.forward_kl(student, teacher, 2.0))


def test_d15_standardised_logits_of_two_classes() -> None:
    """D15: z-scores of two logits are constants; SST-2, MRPC, RTE, QQP would learn nothing."""
    with pytest.raises(ValueError, match=r"three classes or more, got 2.*gradient is 0.*use forw"):
        d.logit_standardized_kl(*pair(4, 2))
    assert gradient(d.logit_standardized_kl, *pair(4, 3)).abs().max() > 1e-3


def test_d16_dist_of_two_classes_or_one_item() -> None:
    """D16: the correlation of two probabilities, or of one item's, is a constant: no gradient."""
    with pytest.raises(ValueError, match=r"beta > 0, got 2; .* set beta=0"):
        d.dist(*pair(4, 2))
    assert gradient(partial(d.dist, beta=0.0), *pair(4, 2)).abs().max() > 1e-3
    with pytest.warns(UserWarning, match=r"larger batch per device, and dataloader_drop_last=True"):
        alone = d.dist(*pair(1, 5), beta=0.0)
    assert alone.tolist() == [0.0]
    with pytest.warns(UserWarning, match="has one"):
        grad = gradient(partial(d.dist, beta=0.0), *pair(1, 5))
    assert torch.equal(grad, torch.zeros_like(grad))
    d.dist(*pair(1, 5), gamma=0.0)  # no warning


def test_d18_one_reduction() -> None:
    """D18: [4, 128, 9] gives 98.6 (batchmean), .770 (per token), .0856 (mean): the most asked
    question of all. Ours is one value per token, summed over classes."""
    student, teacher = pair(4, 128, 9, scale=0.7)
    per_token = d.forward_kl(student, teacher)
    assert per_token.shape == (4, 128)
    theirs = torch.nn.KLDivLoss(reduction="none")(student.log_softmax(-1), teacher.softmax(-1))
    torch.testing.assert_close(per_token.sum(-1).mean(), theirs.sum() / 4)  # "batchmean"
    torch.testing.assert_close(per_token.mean() / 9, theirs.mean())  # "mean"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (d.forward_kl, math.log(10)),
        (d.soft_cross_entropy, math.log(10)),
        (d.binary_kl, 10 * math.log(2)),
        (d.logit_mse, 10 * 50.0**2),
    ],
)
def test_d19_classes_are_summed(function: Callable[..., Tensor], expected: float) -> None:
    """D19, TinyBERT and DeiT: divided by C, a weight depends on the number of classes."""
    if function in (d.forward_kl, d.soft_cross_entropy):
        teacher = 50.0 * torch.eye(10)[:3]  # sure of one class
    else:
        teacher = torch.full((3, 10), 50.0)  # sure of every one
    values = function(torch.zeros(3, 10), teacher)
    assert values.tolist() == pytest.approx([expected] * 3)


# Mixtures
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_ends_of_beta_are_the_two_kl(temperature: float) -> None:
    """TRL users' `beta` would select the other direction, or a divergence that vanishes."""
    student, teacher = pair(3, 4, 6, seed=6)
    at_0, at_1 = (
        d.jensen_shannon(student, teacher, beta=b, temperature=temperature) for b in (0, 1)
    )
    assert torch.equal(at_0, d.forward_kl(student, teacher, temperature))
    assert torch.equal(at_1, d.reverse_kl(student, teacher, temperature))


def near_the_end(name: str, parameter: str, share: float) -> None:
    student, teacher = (x.float() for x in pair(8, 6, seed=7))
    student[0, 0], teacher[0, 1] = 1e4, 1e4
    options = {parameter: share}
    values, grad = value_and_grad(
        partial(BY_NAME[name].function, **options), student, teacher=teacher
    )
    expected = BY_NAME[name].brute(student, teacher, **options)
    torch.testing.assert_close(values, expected.float(), rtol=1e-4, atol=1e-6)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("beta", [1e-12, 1e-6, 1 - 1e-6])
def test_beta_near_its_ends(beta: float) -> None:
    """In float32 1 - 1e-12 is 1, and log(1 - beta) of the mixture would be -inf."""
    near_the_end("jensen_shannon", "beta", beta)


@pytest.mark.parametrize("alpha", [1e-12, 1e-6, 0.9])
@pytest.mark.parametrize("name", ["skew_kl", "skew_reverse_kl"])
def test_skew_near_its_ends(name: str, alpha: float) -> None:
    """In float32 1 - 1e-12 is 1, and log(1 - alpha) of the mixture would be -inf."""
    near_the_end(name, "alpha", alpha)


def test_skew_is_bounded() -> None:
    """The bound is what the mixture is for: a student without mass where the teacher has all."""
    student, teacher = torch.tensor([[0.0, 1e4]]), torch.tensor([[1e4, 0.0]])
    for function in (d.skew_kl, d.skew_reverse_kl):
        assert function(student, teacher, alpha=0.1).item() == pytest.approx(-math.log(0.1))


@pytest.mark.parametrize("beta", [-0.1, 1.5, math.nan])
def test_bad_beta(beta: float) -> None:
    """A negative share of the mixture has no logarithm: NaN, thousands of steps later."""
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\], got"):
        d.jensen_shannon(*pair(2, 3), beta=beta)


@pytest.mark.parametrize("alpha", [-0.1, 1, 1.5, math.nan])
@pytest.mark.parametrize("function", [d.skew_kl, d.skew_reverse_kl])
def test_bad_skew(function: Callable[..., Tensor], alpha: float) -> None:
    """At 1 the loss is constantly 0."""
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\), got"):
        function(*pair(2, 3), alpha=alpha)


# Families
def test_adaptive_kl_weights_are_detached() -> None:
    """Through its weights the student could learn to be weighted lower, not to be better."""
    student, teacher = pair(4, 6, seed=5)
    forward, reverse = (f(student, teacher) for f in (d.forward_kl, d.reverse_kl))
    weight = ((d.adaptive_kl(student, teacher) - reverse) / (forward - reverse)).unsqueeze(-1)
    assert ((weight > 0) & (weight < 1)).any()
    parts = (gradient(f, student, teacher) for f in (d.forward_kl, d.reverse_kl))
    expected = weight * next(parts) + (1 - weight) * next(parts)
    torch.testing.assert_close(gradient(d.adaptive_kl, student, teacher), expected)


@pytest.mark.parametrize("head", [-0.1, 1.1, math.nan])
def test_bad_head(head: float) -> None:
    """A mass outside [0, 1] would silently choose one of the two KL."""
    with pytest.raises(ValueError, match=r"head must be in \[0, 1\], got"):
        d.adaptive_kl(*pair(2, 3), head=head)


def test_whole_head_is_forward_kl() -> None:
    """The head and the tail would be exchanged."""
    student, teacher = pair(4, 6)
    expected = d.forward_kl(student, teacher)
    torch.testing.assert_close(d.adaptive_kl(student, teacher, head=1.0), expected)


def test_alpha_beta_ends_are_the_two_kl() -> None:
    """The formula divides by 0 there."""
    student, teacher = pair(4, 6)
    at = partial(d.alpha_beta, student, teacher, temperature=2.0)
    assert torch.equal(at(1, 0), d.forward_kl(student, teacher, 2.0))
    assert torch.equal(at(0, 1), d.reverse_kl(student, teacher, 2.0))
    for alpha, beta in ((1, 1e-6), (1e-6, 1), (0.5, 1e-6), (1e-6, 0.5)):
        near = at(alpha, beta)
        exact = at(round(alpha, 3), round(beta, 3))
        torch.testing.assert_close(near, exact, rtol=1e-4, atol=0)
    for alpha, beta in ((1, 1e-3), (1e-3, 1)):  # and without a jump beside the threshold
        exact = at(round(alpha), round(beta))
        torch.testing.assert_close(at(alpha, beta), exact, rtol=2e-2, atol=0)


def test_alpha_beta_at_a_half_is_hellinger() -> None:
    """The factor to the squared Hellinger distance, by which its weights are compared."""
    student, teacher = pair(4, 6)
    roots = student.softmax(-1).sqrt() - teacher.softmax(-1).sqrt()
    hellinger = 0.5 * roots.square().sum(-1)
    torch.testing.assert_close(d.alpha_beta(student, teacher, 0.5, 0.5), 4 * hellinger)


@pytest.mark.parametrize("powers", [(-0.1, 1), (1, -0.1), (0, 0), (math.nan, 1), (1, math.inf)])
def test_bad_alpha_beta(powers: tuple[float, float]) -> None:
    """Negative powers of a probability of 0 are infinite."""
    with pytest.raises(ValueError, match="alpha and beta must be finite, >= 0 and not both 0, got"):
        d.alpha_beta(*pair(2, 3), *powers)


@pytest.mark.parametrize("alpha", [1 - 1e-7, 1 + 1e-7])
def test_renyi_near_kl(alpha: float) -> None:
    """In float32, (log of about 1) / (alpha - 1) would be noise around the KL."""
    student, teacher = (x.float() for x in pair(16, 6))
    values = d.renyi(student, teacher, alpha)
    torch.testing.assert_close(values, d.forward_kl(student, teacher), rtol=1e-5, atol=1e-6)
    assert torch.equal(d.renyi(student, teacher, 1), d.forward_kl(student, teacher))


@pytest.mark.parametrize("alpha", [0, -1.0, math.inf, math.nan])
def test_bad_order(alpha: float) -> None:
    """An order of 0 is constantly 0."""
    with pytest.raises(ValueError, match="alpha must be > 0 and finite, got"):
        d.renyi(*pair(2, 3), alpha)


# Logits
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_standardised_equal_logits(dtype: torch.dtype) -> None:
    """Divided by a standard deviation of 1e-7, an undecided student gets a gradient of 1e7."""
    student = torch.tensor([[0.0, 0, 0], [3.3, 3.3, 3.3], [-1e4, -1e4, -1e4]]).to(dtype)
    teacher = torch.tensor([[1.0, 2, 3]] * 3).to(dtype)
    values, grad = value_and_grad(d.logit_standardized_kl, student, teacher=teacher)
    assert torch.isfinite(values).all()
    assert torch.equal(grad, torch.zeros_like(grad))


def test_standardised_logits_ignore_scale() -> None:
    """The student's scale of logits would still be learned."""
    student, teacher = pair(4, 6)
    expected = d.logit_standardized_kl(student, teacher)
    values = d.logit_standardized_kl(3 * student + 1, teacher)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)


# Labels
@pytest.mark.parametrize("function", [d.decoupled_kd, d.nkd])
def test_ignored_labels(function: Callable[..., Tensor]) -> None:
    """-100 as an index is the 100th class from the end, or a crash of the device."""
    student, teacher = pair(2, 3, 5)
    labels = torch.tensor([[0, -100, 2], [-100, 4, 1]])
    values, grad = value_and_grad(function, student, teacher=teacher, labels=labels)
    assert torch.equal(values == 0, labels == -100)
    assert torch.equal((grad == 0).all(-1), labels == -100)
    assert torch.equal(function(student, teacher, labels.to(torch.int32)), values)


@pytest.mark.parametrize("function", [d.decoupled_kd, d.nkd])
@pytest.mark.parametrize("labels", [torch.zeros(3, 1).long(), torch.zeros(2).long(), torch.ones(3)])
def test_bad_labels(function: Callable[..., Tensor], labels: Tensor) -> None:
    """Mixed or one-hot labels would be read as classes 0 and 1."""
    with pytest.raises(ValueError, match=r"expected labels of shape \(3,\)"):
        function(*pair(3, 4), labels)


def test_decoupled_kd_adds_up_to_kl() -> None:
    """With β = 1 - p_t,y the two parts are the classical loss, as the paper shows."""
    student, teacher = pair(1, 5)
    labels = torch.tensor([2])
    rest = 1 - (teacher / 2).softmax(-1)[0, 2].item()
    values = d.decoupled_kd(student, teacher, labels, 1.0, rest, temperature=2.0)
    torch.testing.assert_close(values, d.forward_kl(student, teacher, 2.0))


def test_nkd_t_squared() -> None:
    """T² belongs to the second part only, which is the one with a temperature."""
    student, teacher = pair(3, 5)
    labels = torch.tensor([0, 1, 4])
    at = partial(d.nkd, student, teacher, labels, temperature=3.0)
    first = at(gamma=0.0)
    torch.testing.assert_close(at() - first, 9 * (at(t_squared=False) - first))


# DIST
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)], ids=str)
def test_dist_is_the_correlation(shape: tuple[int, ...]) -> None:
    """The mean over the items that count has to be the original's, whatever they are split in."""
    student, teacher = pair(*shape)
    mask = torch.ones(shape[:-1], dtype=torch.int64)
    mask.view(-1)[2] = 0
    values = d.dist(student, teacher, 2.0, 3.0, mask=mask, eps=0.0)
    assert values.flatten()[2] == 0
    p_s, p_t = (x.softmax(-1)[mask.bool()].numpy() for x in (student, teacher))
    items = [np.corrcoef(a, b)[0, 1] for a, b in zip(p_s, p_t, strict=True)]
    classes = [np.corrcoef(a, b)[0, 1] for a, b in zip(p_s.T, p_t.T, strict=True)]
    expected = 2 * (1 - np.mean(items)) + 3 * (1 - np.mean(classes))
    assert values.sum().item() / mask.sum().item() == pytest.approx(expected)


def test_dist_of_a_class_nobody_predicts() -> None:
    """Classes without any probability have no correlation; their gradient would be 1e8."""
    student, teacher = (x.float() for x in pair(4, 5))
    student[:, 0] = -1e4
    teacher[:, 1] = -1e4
    values, grad = value_and_grad(d.dist, student, teacher=teacher)
    assert torch.isfinite(values).all()
    assert grad.abs().max() < 10
    assert torch.equal(grad[:, 0], torch.zeros(4))


def test_dist_of_items_that_are_all_alike() -> None:
    """What rounding leaves of a constant, at length 1, would be a correlation with noise."""
    student = pair(1, 5)[0].float().expand(7, 5).clone()
    teacher = pair(7, 5)[1].float()
    values, grad = value_and_grad(partial(d.dist, beta=0.0), student, teacher=teacher)
    assert values.tolist() == [1.0] * 7
    assert torch.equal(grad, torch.zeros_like(grad))


def test_dist_of_nothing() -> None:
    """A micro-batch of padding only would give 0 / 0."""
    values, grad = value_and_grad(d.dist, pair(3, 5)[0], teacher=pair(3, 5)[1], mask=torch.zeros(3))
    assert values.tolist() == [0, 0, 0]
    assert torch.equal(grad, torch.zeros_like(grad))


def test_bad_mask() -> None:
    """A mask of another shape would be broadcast."""
    with pytest.raises(ValueError, match=r"dist: expected a mask of shape \(3,\)"):
        d.dist(*pair(3, 5), mask=torch.ones(3, 1))


# Peers, several answers
def test_mutual_is_the_mean_over_peers() -> None:
    """More peers would mean a larger weight against the labels."""
    inputs = brute.peers(0)
    values = d.mutual(**inputs, temperature=2.0)
    torch.testing.assert_close(values, brute.mutual(**inputs, temperature=2.0))
    each = [d.forward_kl(inputs["student"], peer, 2.0) for peer in inputs["teacher"]]
    torch.testing.assert_close(values, (each[0] + each[1]) / 2)
    with pytest.raises(ValueError, match="K >= 1 peers"):
        d.mutual(inputs["student"], inputs["teacher"][:0])
    with pytest.raises(ValueError, match="K >= 1 peers"):
        d.mutual(inputs["student"], inputs["teacher"][..., :-1])


def test_binary_kl_against_binary_cross_entropy() -> None:
    """The factor to code that takes BCEWithLogitsLoss of the teacher's probabilities."""
    student, teacher = pair(4, 3)
    q = (teacher / 2).sigmoid()
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    difference = bce(student / 2, q) - bce(teacher / 2, q)
    values = d.binary_kl(student, teacher, 2.0)
    torch.testing.assert_close(values.mean() / (3 * 4), difference)


def test_soft_cross_entropy_has_the_gradient_of_kl() -> None:
    """It differs from the forward KL by the teacher's entropy only."""
    student, teacher = pair(4, 5)
    torch.testing.assert_close(
        gradient(d.soft_cross_entropy, student, teacher, 3.0),
        gradient(d.forward_kl, student, teacher, 3.0),
    )


# Sparse
def test_top_k_grows_to_kl() -> None:
    """A bucket for the rest that loses mass would let the student ignore the other classes."""
    student, teacher = pair(8, 6)
    full = d.forward_kl(student, teacher, 2.0)
    values = [d.top_k_kl(student, teacher, k, 2.0) for k in range(1, 9)]
    for smaller, larger in pairwise(values):
        assert (smaller <= larger + 1e-12).all()
    for exact in values[4:]:  # from C - 1 on
        torch.testing.assert_close(exact, full)
    with pytest.raises(ValueError, match="k must be at least 1"):
        d.top_k_kl(student, teacher, 0)
