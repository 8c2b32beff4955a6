"""What is particular to relations, attention, decisions and input gradients.

The contracts that all losses share are in test_contracts.py, over the rows in rows_relations.py.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_contracts import DTYPES, HALVES, pair, value_and_grad
from relation_rows import (
    brute_rkd_angle,
    brute_rkd_distance,
    dot,
    flat,
    model,
    probabilities,
    scores,
    vectors,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_distill.losses import attention, decision, distribution, gradients, relations

IN_BATCH = [
    relations.rkd,
    relations.similarity_preserving,
    relations.in_batch_similarity,
]
MAPS: list[tuple[Callable[..., Tensor], Callable[[int], dict[str, Tensor]]]] = [
    (attention.attention_mse, scores),
    (attention.attention_kl, probabilities),
    (attention.attention_ce, scores),
    (partial(attention.relation_kl, relation_heads=3), vectors),
]
each_in_batch = pytest.mark.parametrize("function", IN_BATCH, ids=lambda f: f.__name__)
each_map = pytest.mark.parametrize(
    ("function", "inputs"), MAPS, ids=["mse", "kl", "ce", "relations"]
)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


# Relations between examples.
def golden() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tensors of the golden values: logits, then feature maps, of student and teacher."""
    generator = torch.Generator().manual_seed(1234)
    shapes = [(6, 5), (6, 5), (6, 8, 4, 4), (6, 8, 4, 4)]
    s, t, fs, ft = (torch.randn(x, generator=generator, dtype=torch.float64) for x in shapes)
    return s, t, fs, ft


def test_golden_values() -> None:
    """The published weights (3000; 25 and 50) would mean something else here."""
    s, t, fs, ft = golden()
    sp = relations.similarity_preserving(fs, ft).mean().item()
    assert sp == pytest.approx(0.016755875295859625, rel=1e-9)
    rkd = relations.rkd(s, t).mean().item()
    assert rkd == pytest.approx(7.7106158015938675, rel=1e-9)


def test_similarity_is_normalised_by_l2_rows() -> None:
    """Defect D1: torchdistill's rows of L1 norm 1 are another, smaller loss."""
    _, _, fs, ft = golden()

    def of_l1_rows(rows: list[list[float]]) -> list[float]:
        gram = [[dot(a, b) for b in rows] for a in rows]
        return [x / sum(map(abs, row)) for row in gram for x in row]

    defect = sum((a - b) ** 2 for a, b in zip(*map(of_l1_rows, map(flat, (fs, ft))), strict=True))
    ours = relations.similarity_preserving(fs, ft).mean().item()
    assert defect / len(fs) ** 2 < 0.7 * ours


@each_in_batch
@each_dtype
def test_batch_of_one(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Defect D17: the last, incomplete batch would turn the whole run into NaN."""
    student, teacher = (x.to(dtype) for x in pair(1, 5))
    with pytest.warns(UserWarning, match=r"larger per-device batch, and dataloader_drop_last=True"):
        values, grad = value_and_grad(function, student, teacher=teacher)
    assert values.tolist() == [0.0]
    assert torch.equal(grad, torch.zeros_like(grad))


def test_one_other_example_is_no_distribution() -> None:
    """With batches of two, the softmax over the only other example is 1: nothing is learnt."""
    student, teacher = pair(2, 5)
    with pytest.warns(UserWarning, match=r"at least 3, got 2"):
        assert relations.in_batch_similarity(student, teacher).tolist() == [0.0, 0.0]


@each_in_batch
def test_sizes_of_student_and_teacher_differ(function: Callable[..., Tensor]) -> None:
    """Relations need no projection; a flattening mistake would relate channels, not examples."""
    student, teacher = pair(4, 6)[0], pair(4, 9, seed=1)[1]
    values = function(student, teacher)
    assert values.shape == (4,)
    assert torch.equal(function(student.view(4, 2, 3), teacher.view(4, 3, 3)), values)
    rotation = torch.linalg.qr(pair(6, 6, seed=2)[0])[0]
    torch.testing.assert_close(function(student @ rotation, teacher), values)


@each_in_batch
@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4, 3)), ((4, 3), (1, 3))], ids=str)
def test_other_examples(function: Callable[..., Tensor], shapes: tuple[Any, Any]) -> None:
    """Broadcasting would relate every example to the same one."""
    with pytest.raises(ValueError, match=r"expected student and teacher .* of one batch, got"):
        function(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@each_in_batch
@each_dtype
def test_equal_and_zero_examples(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """A duplicate in the batch, or a dead unit, would send NaN or 1e8 into the student."""
    teacher = pair(5, 4, seed=1)[1].to(dtype)
    for case in ("two equal", "all equal", "one zero", "all zero"):
        student = pair(5, 4)[0].to(dtype)
        if case == "two equal":
            student[1] = student[0]
        elif case == "all equal":
            student[:] = student[0].clone()
        else:
            student[slice(0, 1) if case == "one zero" else slice(None)] = 0
        values, grad = value_and_grad(function, student, teacher=teacher)
        assert torch.isfinite(values).all(), case
        assert grad.abs().max() < 1e3, case


def test_rkd_of_equal_examples_counts_them_in_the_mean() -> None:
    """A mean over d > 0 alone would jump when two examples become equal; the code's does not."""
    student, teacher = pair(5, 4)
    student[1] = student[0]
    for weights, brute in (((1.0, 0.0), brute_rkd_distance), ((0.0, 1.0), brute_rkd_angle)):
        found = relations.rkd(student, teacher, *weights)
        torch.testing.assert_close(found, brute(student, teacher))


def test_rkd_of_near_examples() -> None:
    """Far from the origin, |a|² + |b|² - 2ab leaves no digit of a small distance in float32."""
    student, teacher = (1e-2 * x.float() + 1e3 for x in pair(5, 4))
    expected = brute_rkd_distance(student, teacher)
    values = relations.rkd(student, teacher, 1.0, 0.0)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-7, 1e12])
def test_similarity_of_small_and_large_features(scale: float) -> None:
    """The Gram matrix has the square of the features' scale, which float32 or a bound may lose."""
    student, teacher = (x.float() for x in pair(5, 4))
    expected = relations.similarity_preserving(student, teacher)
    scaled = relations.similarity_preserving(scale * student, teacher)
    torch.testing.assert_close(scaled, expected, rtol=1e-4, atol=0)


def test_temperature_of_similarities() -> None:
    """The temperature would be the same for all anchors, or bring a factor of 1/400 along."""
    student, teacher = pair(4, 6)
    each = torch.tensor([0.05, 0.1, 0.5, 2.0], dtype=torch.float64)
    for t_squared in (False, True):
        function = partial(relations.in_batch_similarity, student, teacher, t_squared=t_squared)
        alone = [function(temperature=t)[i] for i, t in enumerate(each.tolist())]
        torch.testing.assert_close(function(temperature=each), torch.stack(alone))
    with pytest.raises(ValueError, match=r"temperature must be > 0"):
        relations.in_batch_similarity(student, teacher, temperature=0.0)


def test_margin_mse_of_one_negative() -> None:
    """sentence-transformers' MarginMSELoss takes the two margins."""
    student, teacher = pair(6, 2)
    expected = F.mse_loss(student[:, 0] - student[:, 1], teacher[:, 0] - teacher[:, 1])
    torch.testing.assert_close(relations.margin_mse(student, teacher).mean(), expected)
    torch.testing.assert_close(relations.margin_mse(student + 7, teacher).mean(), expected)
    with pytest.raises(ValueError, match=r"at least one negative candidate .* \(6, 1\)"):
        relations.margin_mse(student[:, :1], teacher[:, :1])


# Attention.
@each_map
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_has_no_effect(
    function: Callable[..., Tensor],
    inputs: Callable[[int], dict[str, Tensor]],
    causal: bool,
    garbage: float,
) -> None:
    """How long a batch is padded, and with what, would change the loss or make it NaN."""
    given = inputs(0)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    function = partial(function, causal=causal)

    def spoil(x: Tensor) -> Tensor:
        real = mask.bool()
        if x.ndim == 3:
            return x.masked_fill(~real[..., None], garbage)
        return x.masked_fill(~(real[:, None, :, None] & real[:, None, None, :]), garbage)

    student, teacher = spoil(given["student"]), spoil(given["teacher"])
    values, grad = value_and_grad(function, student, teacher=teacher, mask=mask)
    assert (values[mask == 0] == 0).all()
    for b, size in enumerate(mask.sum(-1).tolist()):
        cut = (slice(b, b + 1), slice(None, size))
        if student.ndim == 4:
            cut = (slice(b, b + 1), slice(None), slice(None, size), slice(None, size))
        alone, alone_grad = value_and_grad(function, given["student"][cut], teacher=teacher[cut])
        torch.testing.assert_close(values[b : b + 1, :size], alone)
        torch.testing.assert_close(grad[cut], alone_grad)
    torch.testing.assert_close(grad, grad.masked_fill(spoil(torch.zeros_like(grad)) != 0, 0.0))
    other = function(student, teacher, mask=mask.bool())
    assert torch.equal(other, values)


@each_map
def test_all_padding(
    function: Callable[..., Tensor], inputs: Callable[[int], dict[str, Tensor]]
) -> None:
    """An example without a token, as the last of a padded batch, has no key: 0/0."""
    given = inputs(0)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]])
    values, grad = value_and_grad(function, given["student"], teacher=given["teacher"], mask=mask)
    assert (values[1] == 0).all()
    assert torch.isfinite(grad).all()
    assert (grad[1] == 0).all()


@each_map
@pytest.mark.parametrize("causal", [False, True])
def test_heads_one_by_one(
    function: Callable[..., Tensor],
    inputs: Callable[[int], dict[str, Tensor]],
    causal: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Long sequences are compared in another way than the short ones of the tests."""
    given = inputs(0)
    leaves = [given[name].requires_grad_() for name in ("student", "teacher")]
    results = []
    for chunk in (2**24, 1):
        monkeypatch.setattr(attention, "_CHUNK", chunk)
        values = function(**given, causal=causal)
        upstream = torch.linspace(1, 2, values.numel(), dtype=values.dtype).view_as(values)
        results.append((values, *torch.autograd.grad(values, leaves, upstream)))
    for plain, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, plain)


class Largest(TorchDispatchMode):
    """The largest number of entries of any tensor that is made."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self.size = max(self.size, x.numel())
        return result


def memory(function: Callable[..., Tensor], student: Tensor, teacher: Tensor) -> tuple[int, int]:
    """Bytes held for the backward pass beyond the inputs; entries of the largest tensor made."""
    student = student.clone().requires_grad_()
    given = {x.untyped_storage().data_ptr() for x in (student, teacher)}
    held: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        values = function(student, teacher)
        values.sum().backward()
    return sum(n for pointer, n in held.items() if pointer not in given), largest.size


@each_map
@pytest.mark.parametrize("chunked", [False, True])
def test_memory_grows_like_the_maps(
    function: Callable[..., Tensor],
    inputs: Callable[[int], dict[str, Tensor]],
    chunked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At 512 tokens, one tensor per pair of tokens and feature would not fit into any GPU."""
    if chunked:
        monkeypatch.setattr(attention, "_CHUNK", 1)
    relation = inputs is vectors
    width, heads, batch = 96, 3, 2
    for tokens in (16, 32, 64):
        mask = torch.ones(batch, tokens, dtype=torch.bool)
        shape = (batch, tokens, width) if relation else (batch, heads, tokens, tokens)
        student, teacher = (x.float() for x in pair(*shape))
        if inputs is probabilities:
            student, teacher = student.softmax(-1), teacher.softmax(-1)
        held, largest = memory(partial(function, mask=mask), student, teacher)
        maps = batch * heads * tokens * tokens
        vector_entries = batch * tokens * width if relation else 0
        assert largest <= max(maps, vector_entries, student.numel())
        if chunked:  # recomputed: only a mask per example, and vectors
            assert held <= batch * tokens * (tokens + 8) + 16 * vector_entries
        else:
            assert held <= 4 * 6 * maps + batch * tokens * (tokens + 8) + 32 * vector_entries
        if chunked and relation and maps > 3 * vector_entries:
            assert largest <= maps / heads  # no map of all heads is ever made


@pytest.mark.parametrize("heads", ["mean", "sum"])
@pytest.mark.parametrize(
    "function", [attention.attention_mse, attention.attention_kl, attention.attention_ce]
)
def test_other_numbers_of_heads(function: Callable[..., Tensor], heads: str) -> None:
    """A student with fewer heads could not be distilled, or heads be paired at random."""
    student, teacher = pair(2, 2, 4, 4)[0].softmax(-1), pair(2, 6, 4, 4, seed=1)[1].softmax(-1)
    reduced = [getattr(x, heads)(1, keepdim=True) for x in (student, teacher)]
    torch.testing.assert_close(function(student, teacher, heads=heads), function(*reduced))
    with pytest.raises(ValueError, match=r"of one shape .* use heads='mean'"):
        function(student, teacher)
    with pytest.raises(ValueError, match=r"expected heads 'each', 'mean' or 'sum', got 'last'"):
        function(student, student, heads="last")
    with pytest.raises(ValueError, match=r"expected a mask \(2, 4\) .* got \(2, 5\)"):
        function(student, student, mask=torch.ones(2, 5))


@each_dtype
def test_attention_that_the_student_does_not_give(dtype: torch.dtype) -> None:
    """log 0: one key that a sure head underflows would make the loss inf, its gradient NaN."""
    student = torch.tensor([[[[1.0, 0, 0], [0, 1, 0], [0.5, 0.5, 0]]]]).to(dtype)
    teacher = torch.tensor([[[[0.5, 0.5, 0], [0, 0, 1], [0.5, 0.5, 0]]]]).to(dtype)
    values, grad = value_and_grad(attention.attention_kl, student, teacher=teacher)
    floor = -math.log(torch.finfo(dtype).tiny)
    expected = torch.tensor([[0.5 * floor - math.log(2), floor, 0.0]], dtype=values.dtype)
    torch.testing.assert_close(values, expected)
    assert torch.isfinite(grad).all()
    assert grad.dtype == dtype


def test_attention_is_scaled_to_the_real_keys() -> None:
    """Mass on padding (a model without mask) would make it a divergence of no distributions."""
    given = probabilities(0)
    mask, scale = given["mask"], torch.tensor([0.3, 1.0, 0.7], dtype=torch.float64)
    values = attention.attention_kl(**given)
    scaled = attention.attention_kl(
        given["student"] * scale[:, None, None, None], given["teacher"], mask
    )
    torch.testing.assert_close(scaled, values)


@each_dtype
def test_cross_entropy_of_masked_and_saturated_scores(dtype: torch.dtype) -> None:
    """BERT adds -1e4 (or finfo.min) to the scores of padded keys, and 0 · inf is NaN."""
    given = scores(0)
    mask = given.pop("mask")
    padded = mask[:, None, None, :] == 0
    plain = attention.attention_ce(**{k: x.to(dtype) for k, x in given.items()}, mask=mask)
    for low in (-1e4, torch.finfo(dtype).min):
        masked = {k: x.to(dtype).masked_fill(padded, low) for k, x in given.items()}
        for form in ("masked", "code"):
            values = attention.attention_ce(**masked, mask=mask, form=form)
            torch.testing.assert_close(values, plain)
    student = torch.tensor([[[[1e4, -1e4], [-1e4, 1e4]]]]).to(dtype)
    teacher = torch.tensor([[[[-1e4, 1e4], [-1e4, 1e4]]]]).to(dtype)
    values, grad = value_and_grad(attention.attention_ce, student, teacher=teacher)
    expected = 2 * float(student.max())
    torch.testing.assert_close(values, torch.tensor([[expected, 0.0]], dtype=values.dtype))
    assert torch.isfinite(grad).all()
    with pytest.raises(ValueError, match=r"expected form 'masked' or 'code', got 'paper'"):
        attention.attention_ce(student, teacher, form="paper")


@pytest.mark.parametrize("causal", [False, True])
def test_relations_are_attention_of_vectors_with_themselves(causal: bool) -> None:
    """MiniLM compares softmax(V Vᵀ / sqrt(d)) per head, MiniLMv2 per relation head."""
    given = vectors(0)
    heads, mask = 3, given["mask"]

    def maps(x: Tensor) -> Tensor:
        split = x.reshape(3, 4, heads, -1).transpose(1, 2)
        return (split @ split.mT / math.sqrt(split.shape[-1])).softmax(-1)

    maps_s, maps_t = maps(given["student"]), maps(given["teacher"])
    expected = attention.attention_kl(maps_s, maps_t, mask, causal=causal)
    values = attention.relation_kl(**given, relation_heads=heads, causal=causal)
    torch.testing.assert_close(values, expected)


@each_dtype
def test_relations_of_any_widths(dtype: torch.dtype) -> None:
    """A student of another width needs no projection, but both need whole heads."""
    student, teacher = pair(2, 4, 6)[0].to(dtype), pair(2, 4, 12, seed=1)[1].to(dtype)
    values, grad = value_and_grad(
        attention.relation_kl, 100 * student, teacher=100 * teacher, relation_heads=3
    )
    assert values.shape == (2, 4)
    assert torch.isfinite(grad).all()
    with pytest.raises(ValueError, match=r"of one shape .* \(2, 4, 6\) and \(1, 4, 12\)"):
        attention.relation_kl(student, teacher[:1], relation_heads=3)
    for heads in (0, 4, 12):
        with pytest.raises(ValueError, match=rf"both widths 6 and 12, got {heads}; .* is 6"):
            attention.relation_kl(student, teacher, relation_heads=heads)


# Decisions.
def test_confidence_is_detached() -> None:
    """A teacher that learns would lower the loss by being unsure of everything."""
    student, teacher = (x.requires_grad_() for x in pair(3, 5))
    weighted = decision.confidence_weighted_kl(student, teacher, 2.0, power=1.5)
    plain = distribution.forward_kl(student, teacher, 2.0)
    weight = teacher.detach().softmax(-1).amax(-1) ** 1.5
    ours = torch.autograd.grad(weighted.sum(), (student, teacher))
    expected = torch.autograd.grad((weight * plain).sum(), (student, teacher))
    torch.testing.assert_close(weighted, weight * plain)
    torch.testing.assert_close(ours, expected)
    function = partial(decision.confidence_weighted_kl, teacher=teacher.detach(), power=2.0)
    assert torch.autograd.gradcheck(function, (student,))
    with pytest.raises(ValueError, match=r"power must be >= 0, got -1"):
        decision.confidence_weighted_kl(student, teacher, power=-1)


@pytest.mark.parametrize("function", [decision.confidence_weighted_kl, decision.probability_mse])
@pytest.mark.parametrize("t_squared", [True, False])
def test_temperature_per_item(function: Callable[..., Tensor], t_squared: bool) -> None:
    """A temperature for each item would be broadcast over the classes."""
    student, teacher = pair(4, 4)
    each = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    items = zip(student, teacher, each.tolist(), strict=True)
    alone = torch.stack(
        [function(s, t, temperature, t_squared=t_squared) for s, t, temperature in items]
    )
    torch.testing.assert_close(function(student, teacher, each, t_squared=t_squared), alone)


@pytest.mark.parametrize("function", [decision.hard_teacher_labels, decision.label_agreement])
def test_choices_teach_the_teacher_nothing(function: Callable[..., Tensor]) -> None:
    """A gradient to the teacher could only come from a soft choice, which these are not."""
    student, teacher = (x.requires_grad_() for x in pair(3, 5))
    function(student, teacher).sum().backward()
    assert teacher.grad is None
    ties = torch.zeros(2, 3)
    assert torch.equal(
        function(torch.eye(3)[:2], ties), function(torch.eye(3)[:2], torch.eye(3)[[0, 0]])
    )


@each_dtype
def test_agreement_and_reconstruction_are_bounded(dtype: torch.dtype) -> None:
    """Rounding beyond 1 (or 2) would give negative probabilities to whoever takes them as such."""
    student = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0], [0.0, 0, 0]]).to(dtype)
    teacher = torch.tensor([[-1e4, 1e4, 0], [-1e4, 1e4, 0], [5.0, 0, 0]]).to(dtype)
    agreement = decision.label_agreement(student, teacher)
    expected = torch.tensor([1.0, 0.0, 2 / 3], dtype=agreement.dtype)
    torch.testing.assert_close(agreement, expected)
    assert ((agreement >= 0) & (agreement <= 1)).all()
    assert decision.probability_mse(student, teacher)[:2].tolist() == [2.0, 0.0]


def test_boundary_asks_for_no_more_than_the_teacher_has() -> None:
    """A student that agrees would be pushed further for ever, or an unsure teacher overruled."""
    teacher = torch.tensor([[3.0, 0.0, 2.8], [3.0, 0.0, 0.0]])
    surer = torch.tensor([[9.0, 0.0, 1.0], [2.0, 1.0, -4.0]])
    values, grad = value_and_grad(decision.boundary, surer, teacher=teacher)
    assert values.tolist() == [0.0, 0.0]
    assert torch.equal(grad, torch.zeros_like(grad))
    unsure = torch.tensor([[0.0, -5.0, 0.0]])
    expected = torch.tensor([0.2**2])
    torch.testing.assert_close(decision.boundary(unsure, teacher[:1]), expected)
    with pytest.raises(ValueError, match=r"margin must be > 0, got 0"):
        decision.boundary(surer, teacher, margin=0)
    with pytest.raises(ValueError, match=r"at least 2 classes"):
        decision.margin(surer[:, :1], teacher[:, :1])


@each_dtype
def test_saturated_boundary(dtype: torch.dtype) -> None:
    """One over-confident batch, or a vocabulary masked with finfo.min, would give inf or NaN."""
    size = 5e3 if dtype == torch.float16 else 1e4
    student = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [1, 1, -1]]).mul(size).to(dtype)
    teacher = torch.tensor([[-1.0, 1, 0], [-1, 1, 0], [0, 0, 1]]).mul(size).to(dtype)
    values, grad = value_and_grad(decision.boundary, student, teacher=teacher)
    one, two = 1 + float(student[0, 0]), 1 + 2 * float(student[0, 0])
    expected = torch.tensor([two**2 + one**2, 0.0, 2 * two**2], dtype=values.dtype)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)
    assert torch.isfinite(grad).all()
    for other in (dtype, torch.float32):
        ours, theirs = student, teacher.to(other)
        lows = (torch.finfo(x.dtype).min for x in (ours, theirs))
        padded = [F.pad(x, (0, 2), value=low) for x, low in zip((ours, theirs), lows, strict=True)]
        padded_values, padded_grad = value_and_grad(decision.boundary, padded[0], teacher=padded[1])
        assert torch.equal(padded_values, values)
        assert torch.equal(padded_grad, F.pad(grad, (0, 2)))


# Input gradients.
def test_input_gradient_is_that_of_finite_differences() -> None:
    """Rows or examples would be mixed up, and the student follow another example's gradient."""
    weight, images = pair(6, 5, scale=0.5)[0], pair(3, 2, 6)[0]  # two rows per example
    labels = torch.tensor([[0, 4], [-100, 2], [-100, -100]])
    random = gradients.projection(torch.zeros(3, 2, 5, dtype=torch.float64), "unit")

    def logits(x: Tensor) -> Tensor:
        mixed = x + x.roll(1, dims=1) ** 2
        return torch.tanh(mixed @ weight)

    def projected(x: Tensor, b: int, direction: Tensor) -> float:
        rows = logits(x)[b].tolist()
        total = 0.0
        for r, row in enumerate(rows):
            if direction is labels:
                total += row[labels[b, r]] if labels[b, r] >= 0 else 0.0
            else:
                total += dot(row, direction[b, r].tolist())
        return total

    for direction in (labels, random):
        x = images.clone().requires_grad_()
        gradient = gradients.input_gradient(logits(x), x, direction)
        for b, r, h in itertools.product(range(3), range(2), range(6)):
            step = torch.zeros_like(images)
            step[b, r, h] = 1e-6
            up, down = (projected(images + sign * step, b, direction) for sign in (1, -1))
            assert gradient[b, r, h].item() == pytest.approx((up - down) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("normalize", [True, False])
def test_student_learns_through_its_input_gradient(normalize: bool) -> None:
    """Without a graph of the gradient the loss would be a constant for the student."""
    weight, other = pair(6, 3, scale=0.5)
    images, labels = pair(4, 6)[1], torch.tensor([0, 2, 1, 1])

    def loss(w: Tensor) -> Tensor:
        x = images.clone().requires_grad_()
        ours = gradients.input_gradient(model(w, x), x, labels, create_graph=True)
        theirs = gradients.input_gradient(model(other, x), x, labels, create_graph=False)
        assert not theirs.requires_grad
        return gradients.jacobian(ours, theirs, normalize=normalize)

    assert torch.autograd.gradcheck(loss, (weight.requires_grad_(),))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_input_gradient_in_half_precision(dtype: torch.dtype) -> None:
    """Summed in half precision, the projection of a long batch would be inf."""
    x = torch.full((300, 4), 100.0, dtype=dtype).requires_grad_()
    labels = torch.zeros(300, dtype=torch.long)
    gradient = gradients.input_gradient(2 * x, x, labels)
    assert gradient.dtype == dtype
    assert gradient[:, 0].tolist() == [2.0] * 300
    assert gradients.saliency(gradient).dtype == torch.float32


def test_input_gradient_that_cannot_be() -> None:
    """Torch's own errors name neither the tensor nor what to do about it."""
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"requires_grad=False and False; call inputs"):
        gradients.input_gradient(x * 2, x, torch.tensor([0, 1]))
    x.requires_grad_()
    with pytest.raises(ValueError, match=r"logits that do not depend on them"):
        gradients.input_gradient(torch.ones(2, 3, requires_grad=True), x, torch.tensor([0, 1]))
    for wrong in (torch.zeros(3, dtype=torch.long), torch.zeros(2), torch.zeros(2, 4)):
        with pytest.raises(ValueError, match=r"expected integer labels \(2,\) for logits \(2, 3\)"):
            gradients.input_gradient(x * 2, x, wrong)


@pytest.mark.parametrize("kind", ["rademacher", "unit"])
def test_random_projections(kind: str) -> None:
    """Student and teacher would be projected on other directions, or on directions of bias."""
    logits = torch.zeros(2000, 3, dtype=torch.float64)
    draw = [
        gradients.projection(logits, kind, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    outer = draw[0].T @ draw[0] / len(logits)  # its expectation makes the square that of J
    expected = torch.eye(3, dtype=torch.float64) / (1 if kind == "rademacher" else 3)
    torch.testing.assert_close(outer, expected, rtol=0, atol=0.08)
    if kind == "rademacher":
        assert set(draw[0].flatten().tolist()) == {-1.0, 1.0}
    else:
        torch.testing.assert_close(draw[0].norm(dim=-1), torch.ones(2000, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"expected kind 'label', 'rademacher' or 'unit', got"):
        gradients.projection(logits, "gaussian")
    with pytest.raises(ValueError, match=r"expected integer labels \(2000,\) .* got None"):
        gradients.projection(logits, "label")


@each_dtype
def test_gradients_of_zero(dtype: torch.dtype) -> None:
    """An example at a flat place of a model would send NaN or 1e12 through a second derivative."""
    student = torch.tensor([[0.0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]], dtype=dtype)
    teacher = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=dtype)
    values, grad = value_and_grad(gradients.jacobian, student, teacher=teacher)
    assert values.tolist() == pytest.approx([0.25, 0.25, 0.0], abs=1e-6)
    assert torch.equal(grad[[0, 2]], torch.zeros(2, 4, dtype=dtype))
    positions = torch.stack([student, teacher], dim=1).requires_grad_()
    lengths = gradients.saliency(positions)
    assert lengths.shape == (3, 2)
    (grad,) = torch.autograd.grad(lengths.sum(), positions)
    assert torch.isfinite(grad).all()
    assert (grad[2] == 0).all()


def test_small_gradients_have_a_direction() -> None:
    """Where a model is sure its input gradient is 1e-9, and would count as none."""
    student, teacher = (x.float() for x in pair(3, 8))
    expected = gradients.jacobian(student, teacher)
    torch.testing.assert_close(gradients.jacobian(1e-10 * student, 1e6 * teacher), expected)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("garbage", [math.nan, 1e30])
def test_padded_positions_of_a_gradient(normalize: bool, garbage: float) -> None:
    """What the model does in padding would be part of the direction."""
    student, teacher = pair(1, 3, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    padded = [F.pad(x, (0, 0, 0, 2), value=garbage) for x in (student, teacher)]
    function = partial(gradients.jacobian, normalize=normalize)
    values, grad = value_and_grad(function, padded[0], teacher=padded[1], mask=mask)
    expected, expected_grad = value_and_grad(function, student, teacher=teacher)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(grad, F.pad(expected_grad, (0, 0, 0, 2)))
    with pytest.raises(ValueError, match=r"expected a mask \(1, 3\)"):
        function(student, teacher, mask=mask)


def test_saliency_of_other_widths() -> None:
    """A teacher of another embedding width has no comparable gradient, but lengths per token."""
    student, teacher = pair(2, 3, 4)[0], pair(2, 3, 8, seed=1)[1]
    with pytest.raises(ValueError, match=r"of one shape .* saliency"):
        gradients.jacobian(student, teacher)
    lengths = [[[math.hypot(*v) for v in b] for b in x.tolist()] for x in (student, teacher)]
    ours = gradients.jacobian(gradients.saliency(student), gradients.saliency(teacher))
    expected = []
    for s, t in zip(*lengths, strict=True):
        norms = math.hypot(*s), math.hypot(*t)
        parts = zip(s, t, strict=True)
        expected.append(sum((a / norms[0] - b / norms[1]) ** 2 for a, b in parts) / 3)
    assert ours.tolist() == pytest.approx(expected, rel=1e-9)
