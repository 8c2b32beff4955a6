"""What is particular to the losses over features.

The contracts that all losses share are in test_contracts.py, over the rows in rows_features.py.
"""

import itertools
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from feature_rows import (
    ROWS,
    brute_attention_transfer,
    brute_fsp,
    brute_nst,
    brute_pkd,
    brute_review_hcl,
    by_map,
    two_layers,
    two_like_layers,
    with_scale,
)
from loss_contracts import DTYPES, HALVES, Loss, bound, floating, pair, value_and_grad, variants
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hf_distill.losses import features

IN_BATCH: list[Callable[..., Tensor]] = [
    features.pkt,
    features.correlation_congruence,
    partial(features.correlation_congruence, form="paper"),
    features.cka,
    features.info_nce,
]
IN_BATCH_NAMES = ["pkt", "correlation_congruence", "correlation_congruence-paper", "cka", "nce"]
each_in_batch = pytest.mark.parametrize("function", IN_BATCH, ids=IN_BATCH_NAMES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_row = pytest.mark.parametrize(("loss", "options"), variants(ROWS))
MASKED = [
    pytest.param(features.fsp, two_layers, id="fsp"),
    pytest.param(features.mmd, two_like_layers, id="mmd"),
]


# The originals.
def golden() -> dict[str, Tensor]:
    """The tensors of the golden values of the peers' own code (notes, 2.10)."""
    generator = torch.Generator().manual_seed(1234)
    shapes = {
        "S": (6, 5),
        "T": (6, 5),
        "fs": (6, 8, 4, 4),
        "ft": (6, 8, 4, 4),
        "hs": (6, 7, 16),
        "ht": (6, 7, 16),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("function", "names", "expected"),
    [
        (features.attention_transfer, ("fs", "ft"), 0.02729219408034902),
        (features.pkt, ("S", "T"), 0.02315896265526988),
        (features.nst, ("fs", "ft"), 0.24769303106877832),
        (
            lambda s, t: features.fsp(s, t, s.flip(1), t.flip(1)),
            ("fs", "ft"),
            0.1464491077074149,
        ),
        (features.correlation_congruence, ("S", "T"), 7.138764742328126),
        (features.hint_mse, ("fs", "ft"), 1.9008038217374417),
        (lambda s, t: features.pkd(s, t) / 16, ("hs", "ht"), 0.11192773646987658),
        (features.pkd, ("hs", "ht"), 1.7908437835180255),
        (features.cosine, ("hs", "ht"), 1.0261383141859397),
    ],
    ids=["AT", "PKT", "NST", "FSP", "CC", "hint", "PKD-official", "PKD-TextBrewer", "cosine"],
)
def test_golden_values(function: Callable[..., Tensor], names: Any, expected: float) -> None:
    """The published weight of a loss would mean something else here."""
    tensors = golden()
    values = function(*(tensors[name] for name in names))
    assert values.mean().item() == pytest.approx(expected, rel=1e-10)


def test_attention_transfer_ignores_the_order_of_channels() -> None:
    """D12: without the mean over channels, a permutation of the teacher's is far from it."""
    teacher, _ = pair(3, 8, 4, 4)
    student = teacher[:, torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    assert features.attention_transfer(student, teacher).max() < 1e-30
    assert features.attention_transfer(student.flip(-1), teacher).min() > 1e-3


def test_textbrewer_mmd_over_unequal_lengths() -> None:
    """TextBrewer's weight would not be ours: it divides by the sum of squared lengths."""
    inputs = two_like_layers(3)
    mask = inputs["mask"].double()
    grams = [
        inputs[side] @ inputs[f"{side}_other"].transpose(1, 2) / inputs[side].shape[-1]
        for side in ("student", "teacher")
    ]
    squares = (grams[0] - grams[1]) ** 2 * mask[:, None] * mask[:, :, None]
    expected = squares.sum() / (mask.sum(1) ** 2).sum()
    values, lengths = features.mmd(**inputs), mask.sum(1)
    ours = (values.sum(1) * lengths).sum() / (lengths**2).sum()
    torch.testing.assert_close(ours, expected)


def test_mmd_of_a_layer_with_itself() -> None:
    """Left out, the other layer would be zero, or another one."""
    inputs = two_like_layers(4)
    itself = {f"{side}_other": inputs[side] for side in ("student", "teacher")}
    expected = features.mmd(**{**inputs, **itself})
    assert torch.equal(
        features.mmd(inputs["student"], inputs["teacher"], mask=inputs["mask"]), expected
    )


def test_correlation_congruence_pairs_neighbours() -> None:
    """A mean over B instead of B - 1 pairs, or a pair of the last with the first."""
    student, teacher = pair(5, 3)
    delta = (student - teacher).abs()
    values = features.correlation_congruence(student, teacher)
    assert values[-1] == 0
    torch.testing.assert_close(values.mean(), (delta[:-1] * delta[1:]).sum(1).mean())


def test_paper_forms() -> None:
    """A form that gives the same numbers as the code's is no choice."""
    student, teacher = pair(4, 3, 6)
    code = features.attention_transfer(student, teacher)
    paper = features.attention_transfer(student, teacher, form="paper")
    torch.testing.assert_close(paper, (6 * code).sqrt())
    vectors = pair(4, 3)
    series = features.correlation_congruence(*vectors, form="paper", order=40)
    kernels = [
        (-0.4 * torch.cdist(*[F.normalize(x)] * 2).square()).exp()  # the Gaussian itself
        for x in vectors
    ]
    torch.testing.assert_close(series, (kernels[0] - kernels[1]).square().mean(1))


# Maps.
@pytest.mark.parametrize(
    "sizes",
    [((4, 6), (2, 3), (4, 6), (2, 3)), ((2, 3), (5, 4), (6, 6), (3, 2)), ((1, 1), (3, 3)) * 2],
    ids=str,
)
def test_fsp_of_maps_of_other_sizes(sizes: Any) -> None:
    """Layers before and after a pooling would not go together, or as if not pooled."""
    names = ("student", "student_other", "teacher", "teacher_other")
    inputs = {
        name: pair(2, 3 if "other" in name else 2, *size, seed=seed)[0].requires_grad_()
        for seed, (name, size) in enumerate(zip(names, sizes, strict=True))
    }
    detached = {name: x.detach() for name, x in inputs.items()}
    torch.testing.assert_close(features.fsp(**detached), brute_fsp(**detached))
    order = ("student", "teacher", "student_other", "teacher_other")
    assert torch.autograd.gradcheck(features.fsp, tuple(inputs[name] for name in order))


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8])
def test_review_hcl_skips_levels(height: int) -> None:
    """Small maps would be pooled to larger ones, and the weights not sum to 1."""
    student, teacher = pair(2, 3, height, 5, seed=height)
    values = features.review_hcl(student, teacher)
    torch.testing.assert_close(values, brute_review_hcl(student, teacher))
    shifted = features.review_hcl(student, student + 2.0)  # the same at all levels
    torch.testing.assert_close(shifted, torch.full_like(shifted, 4.0))


@each_dtype
@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 2, 9), (2, 4, 4)], ids=str)
def test_nst_at_and_near_equality(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """The difference of three means near 1 loses every digit, and may come out below 0."""
    teacher = pair(*shape)[0].to(dtype)
    values, grad = value_and_grad(features.nst, teacher, teacher=teacher.clone())
    assert torch.equal(values, torch.zeros_like(values))
    assert grad.abs().max() < 1e-6
    near = pair(*shape)[0] + 1e-4 * pair(*shape, seed=1)[0]
    exact = features.nst(near, pair(*shape)[0])
    single = features.nst(near.float(), pair(*shape)[0].float())
    assert exact.max() < 1e-5
    torch.testing.assert_close(single, exact.float(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("positions", [2, 7])
@pytest.mark.parametrize("channels", [(2, 5), (5, 2), (3, 3)], ids=str)
def test_nst_of_other_channels(positions: int, channels: tuple[int, int]) -> None:
    """The two ways to compute it would differ, or one count the padding of the narrower."""
    student, teacher = (pair(3, c, positions, seed=c)[i] for i, c in enumerate(channels))
    torch.testing.assert_close(
        features.nst(student, teacher), by_map(brute_nst)(student, teacher), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(("scale", "p"), [(1e-6, 2), (1e-6, 4), (1e5, 8), (1e4, 4)])
def test_attention_transfer_of_small_and_large_features(scale: float, p: int) -> None:
    """Powers of small features would count as dead, and of large ones overflow."""
    student, teacher = (x.float() for x in pair(3, 4, 6))
    values, grad = value_and_grad(
        partial(features.attention_transfer, p=p), scale * student, teacher=teacher
    )
    expected = by_map(brute_attention_transfer)(student, teacher, p=p).float()
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-7)
    assert torch.isfinite(grad).all()


def test_activation_boundary_wants_signs() -> None:
    """A student that fires like the teacher would be pulled to its strength, or its ReLU."""
    teacher = torch.tensor([[3.0, 0.2, 0.0, -5.0]])
    reached = torch.tensor([[1.0, 7.0, -1.0, -9.0]])
    values, grad = value_and_grad(features.activation_boundary, reached, teacher=teacher)
    assert values.item() == 0
    assert (grad == 0).all()
    values, grad = value_and_grad(features.activation_boundary, -reached, teacher=teacher.relu())
    assert values.item() == pytest.approx((2**2 + 8**2 + 2**2 + 10**2) / 4)
    assert (torch.sign(-grad) == torch.sign(reached)).all()


# States.
@each_dtype
def test_cosine_of_zero_vectors(dtype: torch.dtype) -> None:
    """A dead or padded position would send a gradient of 1e8 (inf in float16) into the student."""
    student = torch.tensor([[0.0, 0, 0], [1, 2, 3], [0, 0, 0]], dtype=dtype)
    teacher = torch.tensor([[1.0, 2, 3], [0, 0, 0], [0, 0, 0]], dtype=dtype)
    values, grad = value_and_grad(features.cosine, student, teacher=teacher)
    assert values.tolist() == pytest.approx([1.0, 1.0, 0.0], abs=1e-6)
    assert torch.equal(grad[[0, 2]], torch.zeros(2, 3, dtype=dtype))
    assert grad[1].abs().max() < 1e-6  # where only the teacher is zero: one rounding


def test_cosine_near_equality() -> None:
    """1 - cos computed as written loses every digit in float32 once the angle is below 1e-4."""
    angle = 1e-5
    student = torch.tensor([math.cos(angle), math.sin(angle)])
    value = features.cosine(3 * student, torch.tensor([2.0, 0.0]))
    assert value.item() == pytest.approx(2 * math.sin(angle / 2) ** 2, rel=1e-4)


def test_pkd_takes_position_0() -> None:
    """Another position than [CLS] would be compared, or all of them."""
    student, teacher = pair(3, 4, 5)
    values, grad = value_and_grad(features.pkd, student, teacher=teacher)
    assert (grad[:, 1:] == 0).all()
    for s, t in itertools.product((student, student[:, 0]), (teacher, teacher[:, 0])):
        assert torch.equal(features.pkd(s, t), values)
        torch.testing.assert_close(features.pkd(s, t), brute_pkd(s, t))
    torch.testing.assert_close(values, 2 * features.cosine(student, teacher)[:, 0])


# Padding.
@pytest.mark.parametrize(("function", "inputs"), MASKED)
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32], ids=str)
def test_more_padding_changes_nothing(
    function: Callable[..., Tensor],
    inputs: Callable[[int], dict[str, Tensor]],
    kind: torch.dtype,
) -> None:
    """The loss of an example would depend on the longest of its batch."""
    given = inputs(0)
    values, grad = value_and_grad(function, **given)
    longer = {
        name: F.pad(x, (1, 2), value=0)
        if name == "mask"
        else F.pad(x, (0, 0, 1, 2), value=math.nan)
        for name, x in given.items()
    }
    longer["mask"] = longer["mask"].to(kind)
    padded, padded_grad = value_and_grad(function, **longer)
    if padded.ndim == 2:
        assert (padded[~longer["mask"].bool()] == 0).all()
        padded = padded[:, 1:-2]
    torch.testing.assert_close(padded, values)
    torch.testing.assert_close(padded_grad[:, 1:-2], grad)
    assert (padded_grad[~longer["mask"].bool()] == 0).all()


@pytest.mark.parametrize(("function", "inputs"), MASKED)
def test_without_a_real_token(
    function: Callable[..., Tensor], inputs: Callable[[int], dict[str, Tensor]]
) -> None:
    """An example that is all padding would be 0 / 0."""
    given = inputs(0)
    given["mask"] = torch.tensor([[0] * 4, [1] * 4, [0] * 4])
    values, grad = value_and_grad(function, **given)
    assert (values[[0, 2]] == 0).all()
    assert torch.isfinite(values).all()
    assert (grad[[0, 2]] == 0).all()
    assert grad[1].abs().min() > 0


def test_without_a_mask() -> None:
    """None would not be the same as all real."""
    for function, inputs in ((features.fsp, two_layers), (features.mmd, two_like_layers)):
        given = inputs(0)
        ones = function(**{**given, "mask": torch.ones(3, 4)})
        del given["mask"]
        torch.testing.assert_close(function(**given), ones)
    student, teacher = pair(5, 4)
    ones = features.cka(student, teacher, mask=torch.ones(5))
    torch.testing.assert_close(features.cka(student, teacher), ones)
    none = features.cka(student, teacher, mask=torch.zeros(5))
    assert (none == 0).all()


# Examples.
@each_in_batch
@each_dtype
def test_batch_of_one(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """D17: an incomplete last batch would end the run with NaN, or teach noise."""
    student, teacher = (x.to(dtype) for x in pair(1, 5))
    both = {"teacher": teacher.requires_grad_()}
    with pytest.warns(UserWarning, match="dataloader_drop_last=True") as caught:
        values, grad = value_and_grad(function, student, **both)
    assert "larger per-device batch" in str(caught[0].message)
    assert caught[0].filename.endswith(("contracts.py", "functools.py"))
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(values, torch.zeros_like(values))
    assert values.shape == (1,)
    assert torch.equal(grad, torch.zeros_like(grad))
    with pytest.warns(UserWarning, match="needs at least 2, got 1"):
        (grad,) = torch.autograd.grad(function(student, teacher).sum(), teacher)
    assert torch.equal(grad, torch.zeros_like(grad))
    with pytest.warns(UserWarning, match="needs at least 2, got 0"):
        assert function(student[:0], teacher[:0]).shape == (0,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(*(x.to(dtype) for x in pair(2, 5)))


@each_in_batch
def test_maps_of_examples_are_flattened(function: Callable[..., Tensor]) -> None:
    """Only the last dimension of a map would be compared."""
    student, teacher = pair(4, 3, 2)
    expected = function(student.flatten(1), teacher.flatten(1))
    assert torch.equal(function(student, teacher), expected)


@pytest.mark.parametrize("eps", [1e-7, 1e-3])
@each_dtype
def test_pkt_at_equality(eps: float, dtype: torch.dtype) -> None:
    """The student that is the teacher would be moved, by more than the original's epsilon."""
    student = pair(8, 5)[0].to(dtype)
    values, grad = value_and_grad(partial(features.pkt, eps=eps), student, teacher=student.clone())
    assert torch.equal(values, torch.zeros_like(values))
    rounding = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert grad.abs().max() < eps + rounding


def test_pkt_of_opposites() -> None:
    """A cosine of -1.0000001 would be a negative probability, and its logarithm NaN."""
    vectors = torch.randn(32, 7, generator=torch.Generator().manual_seed(0))
    student = torch.cat([vectors, -vectors])
    values, grad = value_and_grad(partial(features.pkt, eps=1e-12), student, teacher=student[:, :3])
    assert torch.isfinite(values).all()
    assert torch.isfinite(grad).all()


def test_shapes_of_correlation_congruence() -> None:
    """One teacher vector would be broadcast over the batch, or widths be forced to agree."""
    student, teacher = pair(4, 5)
    for other in (teacher[:, :3], teacher[:1], teacher[0]):
        with pytest.raises(ValueError, match="of one shape"):
            features.correlation_congruence(student, other)
    narrow = features.correlation_congruence(student, teacher[:, :3], form="paper")
    assert narrow.shape == (4,)
    order = torch.tensor([2, 0, 3, 1])
    moved = features.correlation_congruence(student[order], teacher[order, :3], form="paper")
    torch.testing.assert_close(moved, narrow[order])


@each_in_batch
def test_other_batches_are_refused(function: Callable[..., Tensor]) -> None:
    """The student's examples would be compared with others, or with one for all."""
    student, teacher = pair(4, 5)
    for other in (teacher[:3], teacher[:1], teacher[0], torch.zeros(())):
        with pytest.raises(ValueError, match=r"expected .*, got \(4, 5\) and .*; "):
            function(student, other)


def test_cka_ignores_rotation_scale_and_shift() -> None:
    """What CKA is for: features of another basis count as different."""
    teacher = pair(6, 4)[0]
    rotation, _ = torch.linalg.qr(pair(4, 4, seed=1)[0])
    for student in (teacher @ rotation, 1e-6 * teacher, 1e6 * teacher, teacher + 100.0):
        assert features.cka(student, teacher).max() < 1e-18
    single = features.cka((1e-4 * teacher).float(), teacher.float())
    assert single.max() < 1e-10
    assert features.cka(pair(6, 4)[1], teacher).mean() > 0.05


@each_dtype
@pytest.mark.parametrize("constant", [0.0, 1.0, 777.0])
def test_cka_of_constant_features(constant: float, dtype: torch.dtype) -> None:
    """A collapsed layer would be compared by its rounding errors, with huge gradients."""
    teacher = pair(7, 3)[0].to(dtype)
    same = (constant * pair(1, 3, seed=3)[0]).expand(7, 3).to(dtype)
    values, grad = value_and_grad(features.cka, same.clone(), teacher=teacher)
    assert values.mean().item() == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(grad, torch.zeros_like(grad))
    assert (features.cka(same, same) == 0).all()


# Learned.
def test_vid_of_each_example() -> None:
    """Examples would leak into each other (test_contracts permutes log_scale along)."""
    inputs = with_scale(0)
    log_scale = inputs.pop("log_scale")
    values = features.vid(**inputs, log_scale=log_scale)
    for part in (slice(0, 0), slice(1, 2), slice(1, None), torch.tensor([2, 0, 1])):
        given = {name: x[part] for name, x in inputs.items()}
        torch.testing.assert_close(features.vid(**given, log_scale=log_scale), values[part])


def test_vid_learns_the_variance() -> None:
    """The scale of a channel would be learned from another, or not at all."""
    inputs = {name: x.requires_grad_() for name, x in with_scale(1).items()}
    names = ("student", "teacher", "log_scale")
    assert torch.autograd.gradcheck(features.vid, tuple(inputs[name] for name in names))
    student, teacher = inputs["student"].detach(), inputs["teacher"].detach()
    error = (student - teacher).square().mean((0, 2))  # the best σ² of each channel
    log_scale = (error - 1e-5).expm1().log().requires_grad_()
    value = features.vid(student, teacher, log_scale).mean()
    (grad,) = torch.autograd.grad(value, log_scale)
    assert grad.abs().max() < 1e-12
    assert value.item() == pytest.approx((0.5 + 0.5 * error.log().mean()).item())


def test_vid_of_a_very_small_scale() -> None:
    """Without epsilon, a variance that underflows would give inf."""
    student, teacher = (x.half() for x in pair(2, 3, 4))
    values, grad = value_and_grad(
        features.vid, student, teacher=teacher, log_scale=torch.full((3,), -500.0)
    )
    assert torch.isfinite(values).all()
    assert torch.isfinite(grad.float()).all()


def test_info_nce_is_a_classification() -> None:
    """The own teacher would not be the right answer, or the temperature be applied twice."""
    student, teacher = pair(5, 4)
    logits = F.normalize(student) @ F.normalize(teacher).T / 0.2
    expected = F.cross_entropy(logits, torch.arange(5), reduction="none")
    values = features.info_nce(student, teacher, temperature=0.2)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(features.info_nce(3 * student, 0.1 * teacher, 0.2), expected)
    guess = features.info_nce(torch.zeros(5, 4), teacher)
    torch.testing.assert_close(guess, torch.full((5,), math.log(5), dtype=torch.float64))


def test_info_nce_with_a_temperature_for_each_anchor() -> None:
    """The temperatures would go to the teachers, along the other dimension."""
    student, teacher = pair(4, 5)
    temperatures = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    values = features.info_nce(student, teacher, temperatures)
    for i, temperature in enumerate(temperatures.tolist()):
        torch.testing.assert_close(values[i], features.info_nce(student, teacher, temperature)[i])


# All of them.
@each_row
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("which", ["all", "first", "both", "teacher"])
def test_dead_features(loss: Loss, options: dict[str, Any], dtype: torch.dtype, which: str) -> None:
    """A dead channel, token or example would send NaN or 1e8 (inf in float16) into the student."""
    inputs = floating(loss.inputs(0), dtype)
    for name, x in inputs.items():
        dead = name.startswith("teacher") if which == "teacher" else name.startswith("student")
        if dead or (which == "both" and name.startswith("teacher")):
            x[:, 0] = 0.0  # a channel, token or feature
            x[0] = 0.0
            if which == "all":
                x.zero_()
    values, grad = value_and_grad(bound(loss, options), **inputs)
    assert torch.isfinite(values).all()
    assert grad.abs().max() < 1e3
    teacher = inputs.pop("teacher")
    _, grad = (
        value_and_grad(
            lambda student, other, **rest: loss.function(other, student, **rest),
            teacher,
            other=inputs.pop("student"),
            **inputs,
            **options,
        )
        if loss.name != "activation_boundary"
        else (None, teacher)
    )
    assert torch.isfinite(grad).all()


@each_row
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_features_of_10000(loss: Loss, options: dict[str, Any], dtype: torch.dtype) -> None:
    """Massive activations, as some tokens of language models have, would overflow."""
    inputs = loss.inputs(0)
    for name in inputs:
        if name.startswith(("student", "teacher")):
            inputs[name] = (inputs[name].sign() * 1e4).clamp(-6e4, 6e4)
    values, grad = value_and_grad(bound(loss, options), **floating(inputs, dtype))
    assert torch.isfinite(values).all()
    if loss.name not in ("fsp", "mmd"):  # grows with the third power: inf in float16
        assert torch.isfinite(grad).all()


@each_row
def test_autocast_of_the_forward_pass(loss: Loss, options: dict[str, Any]) -> None:
    """As the Trainer runs it: the forward pass under autocast, the backward pass outside."""
    inputs = floating(loss.inputs(5), torch.float32)
    student = inputs.pop("student").requires_grad_()
    plain = loss.function(student, **inputs, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = loss.function(student, **inputs, **options)
    assert torch.equal(values, plain)
    grads = [torch.autograd.grad(x.sum(), student)[0] for x in (plain, values)]
    assert torch.equal(*grads)


class NoWaiting(TorchDispatchMode):
    """Refuses what waits for the device, or has a shape that depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"), name
        if name == "index":
            assert all(x is None or x.dtype != torch.bool for x in args[1]), "boolean index"
        return func(*args, **(kwargs or {}))


@each_row
def test_nothing_waits_for_the_device(loss: Loss, options: dict[str, Any]) -> None:
    """Each step would stall until the GPU has caught up."""
    with NoWaiting():
        value_and_grad(bound(loss, options), **loss.inputs(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, t: features.attention_transfer(s, t, form="papers"), "expected form 'code' or"),
        (lambda s, t: features.attention_transfer(s, t, p=0.5), "expected p >= 1, got 0.5"),
        (lambda s, t: features.attention_transfer(s, t, p=math.nan), "expected p >= 1"),
        (lambda s, t: features.activation_boundary(s, t, margin=0), "expected a margin > 0, got 0"),
        (lambda s, t: features.correlation_congruence(s, t, form=""), "expected form 'code' or"),
        (lambda s, t: features.correlation_congruence(s, t, gamma=0), "expected gamma > 0 and"),
        (lambda s, t: features.correlation_congruence(s, t, order=0), "expected gamma > 0 and"),
        (lambda s, t: features.pkt(s, t, eps=0), "expected eps > 0, got 0"),
        (lambda s, t: features.vid(s, t, torch.zeros(3), eps=0), "expected eps > 0, got 0"),
        (lambda s, t: features.vid(s, t, torch.zeros(2)), r"a log_scale \(3,\), got \(2,\)"),
        (lambda s, t: features.vid(s, t, torch.zeros(())), r"a log_scale \(3,\), got \(\)"),
        (lambda s, t: features.fsp(s, t, s, t, torch.ones(4, 3)), r"a mask \(4, 3\)|no mask"),
        (lambda s, t: features.fsp(s, t, s[:, :1], t[:, :1]), r"the other layers have \(4, 1, 2\)"),
        (lambda s, t: features.fsp(s, t, s[..., 0], t[..., 0]), "the other layers have"),
        (lambda s, t: features.fsp(s, t, s[:1], t[:1]), "the other layers have"),
        (lambda s, t: features.mmd(s, t, s[:, :1]), "the others have"),
        (lambda s, t: features.mmd(s, t, mask=torch.ones(4)), r"a mask \(4, 3\), got \(4,\)"),
        (lambda s, t: features.cka(s, t, mask=torch.ones(3)), r"a mask \(4,\), got \(3,\)"),
        (lambda s, t: features.review_hcl(s, t), r"of one shape \(B, C, h, w\), got"),
        (lambda s, t: features.nst(s, t[..., :1]), "of one shape .* pool the larger"),
        (lambda s, t: features.pkd(s[None], t[None]), r"of one shape \(B, H\) or \(B, T, H\)"),
    ],
)
def test_bad_arguments(call: Callable[..., Tensor], message: str) -> None:
    """A slip in a setting would train another loss, or end in an error of torch."""
    student, teacher = pair(4, 3, 2)
    if "no mask" in message:
        student, teacher = pair(4, 3, 2, 2)
    with pytest.raises(ValueError, match=message):
        call(student, teacher)
