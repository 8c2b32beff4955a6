"""The loss functions against original implementations, float64 loops and finite differences.

A new loss is one row of LOSSES (and, if it has one, its brute force written as the paper has it).
"""

import doctest
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill import losses
from hf_distill.losses import distribution, features

DATA = Path(__file__).parent / "data"
Row = Sequence[float]
HALVES = [torch.float16, torch.bfloat16]
DTYPES = [torch.float64, torch.float32, *HALVES]


# Brute force: one item, Python floats, explicit loops.
def log_probs(logits: Row, temperature: float) -> list[float]:
    scaled = [x / temperature for x in logits]
    top = max(scaled)
    log_sum = top + math.log(sum(math.exp(x - top) for x in scaled))
    return [x - log_sum for x in scaled]


def kl(log_p: Row, log_q: Row) -> float:
    return sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def brute_forward_kl(s: Row, t: Row, temperature: float = 1.0) -> float:
    return temperature**2 * kl(log_probs(t, temperature), log_probs(s, temperature))


def brute_reverse_kl(s: Row, t: Row, temperature: float = 1.0) -> float:
    return temperature**2 * kl(log_probs(s, temperature), log_probs(t, temperature))


def brute_jensen_shannon(s: Row, t: Row, beta: float = 0.5, temperature: float = 1.0) -> float:
    log_s, log_t = log_probs(s, temperature), log_probs(t, temperature)
    if beta in (0, 1):
        return temperature**2 * (kl(log_t, log_s) if beta == 0 else kl(log_s, log_t))
    total = 0.0
    for a, b in zip(log_s, log_t, strict=True):
        p_s, p_t = math.exp(a), math.exp(b)
        mixed = (1 - beta) * p_s + beta * p_t
        if p_t > 0:
            total += beta * p_t * (b - math.log(mixed))
        if p_s > 0:
            total += (1 - beta) * p_s * (a - math.log(mixed))
    return temperature**2 * total


def brute_logit_mse(s: Row, t: Row) -> float:
    return sum((a - b) ** 2 for a, b in zip(s, t, strict=True))


def brute_hidden_mse(s: Row, t: Row) -> float:
    return brute_logit_mse(s, t) / len(s)


def brute_hidden_cosine(s: Row, t: Row) -> float:
    dot = sum(a * b for a, b in zip(s, t, strict=True))
    return 1 - dot / (math.hypot(*s) * math.hypot(*t))


@dataclass(frozen=True)
class Loss:
    """One loss with its settings; `reference` is the target of its cases in the reference index."""

    function: Callable[..., Tensor]
    brute: Callable[..., float]
    reference: str
    settings: tuple[dict[str, float], ...] = field(default=({},))


TEMPERATURES = ({"temperature": 1.0}, {"temperature": 4.0}, {"temperature": 0.5})
BETAS = tuple({"beta": b, "temperature": t} for b in (0.0, 0.1, 0.5, 0.7, 1.0) for t in (1.0, 3.0))
LOSSES = [
    Loss(losses.forward_kl, brute_forward_kl, "distribution.forward_kl", TEMPERATURES),
    Loss(losses.reverse_kl, brute_reverse_kl, "distribution.reverse_kl", TEMPERATURES),
    Loss(
        losses.jensen_shannon,
        brute_jensen_shannon,
        "distribution.jensen_shannon",
        (*BETAS, {"beta": 0.3, "temperature": 0.5}),
    ),
    Loss(losses.logit_mse, brute_logit_mse, "distribution.logit_mse"),
    Loss(losses.hidden_mse, brute_hidden_mse, "features.hidden_mse"),
    Loss(losses.hidden_cosine, brute_hidden_cosine, "features.cosine"),
]
BY_TARGET = {loss.reference: loss for loss in LOSSES}
# How each original goes from our value per item to its scalar (`reduction` in the index): what it
# multiplies our values by, and whether it divides by the number of items it kept.
ORIGINALS: dict[str, tuple[Callable[[float, int], float], bool]] = {
    "DistillKL": (lambda t, c: 1.0, True),
    "kd_mse_loss": (lambda t, c: 1 / (c * t**2), True),
    "generalized_jsd_loss": (lambda t, c: 1 / t**2, True),
    "VariousDivergence.forward_kl": (lambda t, c: 1 / t**2, False),
    "VariousDivergence.reverse_kl": (lambda t, c: 1 / t**2, False),
    "VariousDivergence.js_divergence": (lambda t, c: 1 / t**2, False),
    "hid_mse_loss": (lambda t, c: 1.0, True),
    "cos_loss": (lambda t, c: 1.0, True),
}
INDEX: list[dict[str, Any]] = json.loads((DATA / "reference_index.json").read_text())


def variants(keep: Callable[[Loss], bool] = lambda loss: True) -> Any:
    """A parametrize mark: every loss of the table in every one of its settings."""
    rows = [(loss, settings) for loss in LOSSES if keep(loss) for settings in loss.settings]
    names = ["-".join([r.function.__name__, *(f"{k}={v}" for k, v in s.items())]) for r, s in rows]
    return pytest.mark.parametrize(("loss", "settings"), rows, ids=names)


def takes_logits(loss: Loss) -> bool:
    return loss.reference.startswith("distribution.")


def is_divergence(loss: Loss) -> bool:
    return "temperature" in loss.settings[0]


def pair(*shape: int, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        scale * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student, teacher


def brute_values(loss: Loss, student: Tensor, teacher: Tensor, **settings: float) -> Tensor:
    width = student.shape[-1]
    rows = zip(
        student.double().reshape(-1, width).tolist(),
        teacher.double().reshape(-1, width).tolist(),
        strict=True,
    )
    values = [loss.brute(s, t, **settings) for s, t in rows]
    return torch.tensor(values, dtype=torch.float64).reshape(student.shape[:-1])


def value_and_grad(function: Callable[..., Tensor], s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    s = s.detach().clone().requires_grad_()
    values = function(s, t)
    (grad,) = torch.autograd.grad(values.sum(), s)
    return values.detach(), grad


@pytest.mark.parametrize("case", INDEX, ids=[case["id"] for case in INDEX])
def test_reference_values_and_gradients(case: dict[str, Any]) -> None:
    """A weight taken from a paper would mean something else here than in the original code."""
    with np.load(DATA / "reference_cases.npz") as arrays:
        prefix = case["id"] + "/"
        data = {
            name.removeprefix(prefix): torch.from_numpy(arrays[name])
            for name in arrays.files
            if name.startswith(prefix)
        }
    loss, parameters = BY_TARGET[case["target"]], dict(case["parameters"])
    temperature = parameters.get("temperature", 1.0)
    parameters = parameters if is_divergence(loss) else {}
    if not case["target"].endswith("jensen_shannon"):
        parameters.pop("beta", None)
    student = data["student"].requires_grad_()
    values = loss.function(student, data["teacher"], **parameters)

    kept = torch.ones(values.shape, dtype=torch.bool)
    if "labels" in data:
        kept = data["labels"] != -100
    elif "mask" in data:
        kept = data["mask"] == 1
    scale, averages = ORIGINALS[case["source"]["function"]]
    ours = values[kept].sum() * scale(temperature, student.shape[-1])
    ours = ours / kept.sum() if averages else ours
    (grad,) = torch.autograd.grad(ours, student)
    assert student.dtype == torch.float64
    torch.testing.assert_close(ours.detach(), data["value"], rtol=1e-6, atol=0)
    # atol: one float64 rounding of the largest entry, for entries that cancel to nearly 0.
    atol = 1e-15 * data["grad_student"].abs().max().item()
    torch.testing.assert_close(grad, data["grad_student"], rtol=1e-6, atol=atol)


def test_every_loss_has_a_row_and_reference_cases() -> None:
    """A new function would ship without being held to any of the contracts below."""
    assert {loss.function.__name__ for loss in LOSSES} == set(losses.__all__)
    assert {case["target"] for case in INDEX} == set(BY_TARGET)


@variants()
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 7), (2, 2, 3, 2), (0, 4)], ids=str)
def test_brute_force(loss: Loss, settings: dict[str, float], shape: tuple[int, ...]) -> None:
    """Items would leak into each other, or classes be averaged instead of summed."""
    student, teacher = pair(*shape)
    values = loss.function(student, teacher, **settings)
    assert values.shape == shape[:-1]
    expected = brute_values(loss, student, teacher, **settings)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)


@variants()
def test_gradients_match_finite_differences(loss: Loss, settings: dict[str, float]) -> None:
    """A wrong gradient trains towards something else; a hidden detach stops joint training."""
    student, teacher = (x.requires_grad_() for x in pair(2, 3, 5, seed=1))
    assert torch.autograd.gradcheck(partial(loss.function, **settings), (student, teacher))


@variants()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_at_equality(loss: Loss, settings: dict[str, float], dtype: torch.dtype) -> None:
    """A student that already is the teacher would still be moved, by a rounding at each step."""
    equal = pair(64, 11, seed=2, scale=5.0)[0].to(dtype)
    values, grad = value_and_grad(partial(loss.function, **settings), equal, equal.clone())
    assert torch.equal(values, torch.zeros_like(values))
    bound = 1e-14 if dtype == torch.float64 else 1e-5
    assert grad.abs().max() < bound * settings.get("temperature", 1.0) ** 2


@variants(takes_logits)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saturated_logits(loss: Loss, settings: dict[str, float], dtype: torch.dtype) -> None:
    """One over-confident batch would turn the loss, or only its gradient, into inf or NaN."""
    student = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0], [1e4, 1e4, -1e4]]).to(dtype)
    teacher = torch.tensor([[-1e4, 1e4, 0], [-1e4, 1e4, 0], [0.0, 1.0, 1e4]]).to(dtype)
    values, grad = value_and_grad(partial(loss.function, **settings), student, teacher)
    expected = brute_values(loss, student, teacher, **settings).to(values.dtype)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(grad).all()


def check_phantoms(function: Callable[..., Tensor], student: Tensor, teacher: Tensor) -> None:
    values, grad = value_and_grad(function, student, teacher)
    padded_values, padded_grad = value_and_grad(
        function,
        *(F.pad(x, (0, 3), value=torch.finfo(x.dtype).min) for x in (student, teacher)),
    )
    torch.testing.assert_close(padded_values, values)
    torch.testing.assert_close(padded_grad[:, :-3], grad)
    assert (padded_grad[:, -3:] == 0).all()


@variants(takes_logits)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_phantom_classes(loss: Loss, settings: dict[str, float], dtype: torch.dtype) -> None:
    """Vocabularies padded to another size would add noise, or NaN at temperatures below 1."""
    student, teacher = (x.to(dtype) for x in pair(6, 5, seed=3))
    check_phantoms(partial(loss.function, **settings), student, teacher)


@variants(takes_logits)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_phantom_classes_of_two_dtypes(
    loss: Loss, settings: dict[str, float], dtype: torch.dtype
) -> None:
    """A half precision teacher and a float32 student mask with two numbers: inf or NaN."""
    student, teacher = pair(6, 5, seed=3)
    function = partial(loss.function, **settings)
    check_phantoms(function, student.float(), teacher.to(dtype))
    check_phantoms(function, student.to(dtype), teacher.float())


@variants()
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_inputs(loss: Loss, settings: dict[str, float], dtype: torch.dtype) -> None:
    """Computed in half precision, the loss keeps two or three digits and the rest is noise."""
    student, teacher = (x.to(dtype) for x in pair(4, 300, seed=4))
    function = partial(loss.function, **settings)
    values, grad = value_and_grad(function, student, teacher)
    assert values.dtype == torch.float32
    assert grad.dtype == dtype
    expected = brute_values(loss, student, teacher, **settings).float()
    torch.testing.assert_close(values, expected, rtol=2e-5, atol=1e-6)
    exact_grad = value_and_grad(function, student.double(), teacher.double())[1]
    torch.testing.assert_close(grad, exact_grad.to(dtype), rtol=1e-2, atol=1e-6)
    mixed = function(student.float(), teacher)
    torch.testing.assert_close(mixed, expected, rtol=2e-5, atol=1e-6)


@variants()
def test_autocast_changes_nothing(loss: Loss, settings: dict[str, float]) -> None:
    """With bf16=True the loss itself would silently be computed in bfloat16."""
    student, teacher = (x.float() for x in pair(4, 9, seed=5))
    plain = loss.function(student, teacher, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss.function(student, teacher, **settings), plain)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_ends_of_beta_are_the_two_kl(temperature: float) -> None:
    """TRL users' `beta` would select the other direction, or a divergence that vanishes."""
    student, teacher = pair(3, 4, 6, seed=6)
    at_0, at_1 = (
        losses.jensen_shannon(student, teacher, beta=b, temperature=temperature) for b in (0, 1)
    )
    assert torch.equal(at_0, losses.forward_kl(student, teacher, temperature))
    assert torch.equal(at_1, losses.reverse_kl(student, teacher, temperature))


@pytest.mark.parametrize("beta", [1e-12, 1e-6, 1 - 1e-6])
def test_beta_near_its_ends(beta: float) -> None:
    """In float32 1 - 1e-12 is 1, and log(1 - beta) of the mixture would be -inf."""
    student, teacher = (x.float() for x in pair(8, 6, seed=7))
    student[0, 0], teacher[0, 1] = 1e4, 1e4
    function = partial(losses.jensen_shannon, beta=beta)
    values, grad = value_and_grad(function, student, teacher)
    expected = brute_values(BY_TARGET["distribution.jensen_shannon"], student, teacher, beta=beta)
    torch.testing.assert_close(values, expected.float(), rtol=1e-4, atol=1e-6)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_of_zero_vectors(dtype: torch.dtype) -> None:
    """A dead or padded position would send a gradient of 1e8 (inf in float16) into the student."""
    student = torch.tensor([[0.0, 0, 0], [1, 2, 3], [0, 0, 0]], dtype=dtype)
    teacher = torch.tensor([[1.0, 2, 3], [0, 0, 0], [0, 0, 0]], dtype=dtype)
    values, grad = value_and_grad(losses.hidden_cosine, student, teacher)
    assert values.tolist() == pytest.approx([1.0, 1.0, 0.0], abs=1e-6)
    assert torch.equal(grad[[0, 2]], torch.zeros(2, 3, dtype=dtype))
    assert grad[1].abs().max() < 1e-6  # where only the teacher is zero: one rounding


def test_cosine_near_equality() -> None:
    """1 - cos computed as written loses every digit in float32 once the angle is below 1e-4."""
    angle = 1e-5
    student = torch.tensor([math.cos(angle), math.sin(angle)])
    value = losses.hidden_cosine(3 * student, torch.tensor([2.0, 0.0]))
    assert value.item() == pytest.approx(2 * math.sin(angle / 2) ** 2, rel=1e-4)


@variants(is_divergence)
@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_bad_temperature(loss: Loss, settings: dict[str, float], temperature: float) -> None:
    """Temperature 0 would give NaN, a negative one would align to the teacher's opposite."""
    with pytest.raises(ValueError, match=r"temperature must be > 0, got"):
        loss.function(*pair(2, 3), **{**settings, "temperature": temperature})


@pytest.mark.parametrize("beta", [-0.1, 1.5, math.nan])
def test_bad_beta(beta: float) -> None:
    """A negative share of the mixture has no logarithm: NaN, thousands of steps later."""
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\], got"):
        losses.jensen_shannon(*pair(2, 3), beta=beta)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.function.__name__)
@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [((2, 3), (2, 4)), ((2, 3), (3,)), ((2, 3), (1, 3)), ((),) * 2],
)
def test_shape_mismatch(
    loss: Loss, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> None:
    """Broadcasting would compare every item with the same teacher output."""
    with pytest.raises(ValueError, match=r"expected student and teacher .* of one shape") as error:
        loss.function(torch.zeros(student_shape), torch.zeros(teacher_shape))
    assert str(student_shape) in str(error.value)
    assert str(teacher_shape) in str(error.value)


@pytest.mark.parametrize("module", [distribution, features], ids=lambda module: module.__name__)
def test_doctests(module: Any) -> None:
    """The examples in the documentation would show numbers that the code does not give."""
    results = doctest.testmod(module)
    public = [name for name in losses.__all__ if hasattr(module, name)]
    assert results.failed == 0
    assert results.attempted >= len(public)
