"""Every loss function against its original, float64 loops, finite differences and its contracts.

A new loss is one row in `tests/helpers/*_rows.py` (see loss_contracts.py), and gets all of these.
"""

import doctest
import importlib
import inspect
import json
import math
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_contracts import DTYPES, HALVES, Loss, bound, floating, value_and_grad, variants
from torch import Tensor

from hf_distill import losses

HERE = Path(__file__).parent
DATA = HERE.parent / "data"
INDEX: list[dict[str, Any]] = json.loads((DATA / "reference_index.json").read_text())
TABLES = [
    importlib.import_module(path.stem)
    for path in sorted((HERE.parent / "helpers").glob("*_rows.py"))
]
ROWS: list[Loss] = [row for table in TABLES for row in table.ROWS]
ORIGINALS = {k: v for table in TABLES for k, v in getattr(table, "ORIGINALS", {}).items()}
PARAMETERS = {k: v for table in TABLES for k, v in getattr(table, "PARAMETERS", {}).items()}
MODULES = [m.name for m in pkgutil.walk_packages(losses.__path__, "hf_distill.losses.")]
SIDES = ("student", "teacher")


def every(keep: Callable[[Loss], bool] = lambda row: True) -> Any:
    """A parametrize mark: every row that is kept, in every one of its settings."""
    return pytest.mark.parametrize(
        ("loss", "options"), variants([row for row in ROWS if keep(row)])
    )


def rows(keep: Callable[[Loss], bool] = lambda row: True) -> Any:
    """A parametrize mark: every row that is kept."""
    kept = [row for row in ROWS if keep(row)]
    return pytest.mark.parametrize("loss", kept, ids=[row.name for row in kept])


def takes(name: str) -> Callable[[Loss], bool]:
    return lambda row: name in inspect.signature(row.function).parameters


def has_teacher(row: Loss) -> bool:
    return "teacher" in row.inputs(0)


def changed(inputs: dict[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The inputs with what belongs to student or teacher changed."""
    return {k: change(v) if k.startswith(SIDES) else v for k, v in inputs.items()}


def saturated(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits of +-1e4 (no ties in the teacher), among them a student that agrees with it."""
    generator = torch.Generator().manual_seed(8)
    student, teacher = inputs["student"].clone(), inputs["teacher"].clone()
    width = student.shape[-1]
    levels = torch.tensor([1e4, -1e4, *range(width)], dtype=torch.float64)[:width]
    for index, (s, t) in enumerate(zip(student.view(-1, width), teacher.view(-1, width))):  # noqa: B905
        t.copy_(levels[torch.randperm(width, generator=generator)])
        s.copy_(t if index == 1 else levels[torch.randperm(width, generator=generator)])
        if index == 2:
            s[:2] = 1e4
    return {**inputs, "student": student, "teacher": teacher}


@pytest.mark.parametrize("case", INDEX, ids=[case["id"] for case in INDEX])
def test_reference_values_and_gradients(case: dict[str, Any]) -> None:
    """A weight taken from a paper would mean something else here than in the original code."""
    with np.load(DATA / "reference_cases.npz") as stored:
        prefix = case["id"] + "/"
        arrays = {
            name.removeprefix(prefix): torch.from_numpy(stored[name])
            for name in stored.files
            if name.startswith(prefix)
        }
    value, grad = arrays.pop("value"), arrays.pop("grad_student")
    student = arrays["student"].requires_grad_()
    (loss,) = (row for row in ROWS if row.target == case["target"])
    if case["target"] in PARAMETERS:
        keywords = PARAMETERS[case["target"]](case["parameters"], arrays)
    else:
        known = inspect.signature(loss.function).parameters
        keywords = {k: v for k, v in {**case["parameters"], **arrays}.items() if k in known}
    values = loss.function(**keywords)
    ours = ORIGINALS[case["source"]["function"]](values, case["parameters"], arrays)
    (our_grad,) = torch.autograd.grad(ours, student)
    assert student.dtype == torch.float64
    torch.testing.assert_close(ours.detach(), value, rtol=1e-6, atol=0)
    # atol: one float64 rounding of the largest entry, for entries that cancel to nearly 0.
    atol = 1e-15 * grad.abs().max().item()
    torch.testing.assert_close(our_grad, grad, rtol=1e-6, atol=atol)


def test_every_loss_has_a_row_and_reference_cases() -> None:
    """A new function would ship without being held to any of the contracts below."""
    parameters = {
        name: list(inspect.signature(getattr(losses, name)).parameters) for name in losses.__all__
    }
    assert len(parameters) == len(losses.__all__)  # no name twice
    assert {row.name for row in ROWS} == {k for k, v in parameters.items() if v[0] == "student"}
    assert {case["target"] for case in INDEX} <= {row.target for row in ROWS}
    assert {case["source"]["function"] for case in INDEX} <= set(ORIGINALS)
    for row in ROWS:
        module, _, name = row.target.rpartition(".")
        if module:
            assert getattr(getattr(losses, module), name) is row.function


@every()
def test_brute_force(loss: Loss, options: dict[str, Any]) -> None:
    """Items would leak into each other, or classes be averaged instead of summed."""
    for seed in range(2):
        inputs = loss.inputs(seed)
        values = loss.function(**inputs, **options)
        assert values.dtype == torch.float64
        expected = loss.brute(**inputs, **options)
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-12)


@every(lambda row: row.smooth)
def test_gradients_match_finite_differences(loss: Loss, options: dict[str, Any]) -> None:
    """A wrong gradient trains towards something else; a hidden detach stops joint training."""
    inputs = loss.inputs(1)
    names = [name for name in inputs if name.startswith(SIDES)]

    def function(*tensors: Tensor) -> Tensor:
        values = loss.function(**{**inputs, **dict(zip(names, tensors, strict=True))}, **options)
        return values if values.requires_grad else values + 0 * sum(x.sum() for x in tensors)

    tensors = tuple(inputs[name].clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


@every(lambda row: row.zero_at_equality and has_teacher(row))
def test_zero_at_equality(loss: Loss, options: dict[str, Any]) -> None:
    """A student that already is the teacher would still be moved, by a rounding at each step."""
    for dtype in DTYPES:
        inputs = floating(loss.inputs(2), dtype)
        for name in [name for name in inputs if name.startswith("student")]:
            inputs[name.replace("student", "teacher")] = inputs[name].clone()
        values, grad = value_and_grad(bound(loss, options), **inputs)
        assert torch.equal(values, torch.zeros_like(values))
        limit = 1e-13 if dtype == torch.float64 else 1e-5
        assert grad.abs().max() < limit * max(options.get("temperature", 1.0), 4.0) ** 2


@every(lambda row: row.takes_logits)
def test_saturated_logits(loss: Loss, options: dict[str, Any]) -> None:
    """One over-confident batch would turn the loss, or only its gradient, into inf or NaN."""
    for dtype in DTYPES:
        inputs = floating(saturated(loss.inputs(0)), dtype)
        values, grad = value_and_grad(bound(loss, options), **inputs)
        expected = loss.brute(**inputs, **options).to(values.dtype)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
        assert torch.isfinite(grad).all()
        _, teacher_grad = value_and_grad(
            lambda student, other, **rest: loss.function(student=other, teacher=student, **rest),
            inputs["teacher"],
            other=inputs["student"],
            **{k: v for k, v in inputs.items() if k not in SIDES},
            **options,
        )
        assert torch.isfinite(teacher_grad).all()


def check_phantoms(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> None:
    values, grad = value_and_grad(function, **inputs)
    padded = changed(inputs, lambda x: F.pad(x, (0, 3), value=torch.finfo(x.dtype).min))
    padded_values, padded_grad = value_and_grad(function, **padded)
    # Sums over another number of classes are rounded in another order, and T² multiplies that.
    torch.testing.assert_close(padded_values, values, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(padded_grad[..., :-3], grad)
    assert (padded_grad[..., -3:] == 0).all()


@every(lambda row: row.takes_logits and row.phantoms)
def test_phantom_classes(loss: Loss, options: dict[str, Any]) -> None:
    """Vocabularies padded to another size would add noise, or NaN at temperatures below 1."""
    for dtype in DTYPES:
        check_phantoms(bound(loss, options), floating(loss.inputs(3), dtype))


@every(lambda row: row.takes_logits and row.phantoms)
def test_phantom_classes_of_two_dtypes(loss: Loss, options: dict[str, Any]) -> None:
    """A half precision teacher and a float32 student mask with two numbers: inf or NaN."""
    inputs = loss.inputs(3)
    student, teacher = inputs["student"], inputs["teacher"]
    for half in HALVES:
        for s, t in ((torch.float32, half), (half, torch.float32)):
            both = {"student": student.to(s), "teacher": teacher.to(t)}
            check_phantoms(bound(loss, options), {**inputs, **both})


@every()
def test_half_precision_inputs(loss: Loss, options: dict[str, Any]) -> None:
    """Computed in half precision, the loss keeps two or three digits and the rest is noise."""
    function = bound(loss, options)
    for dtype in HALVES:
        inputs = floating(loss.inputs(4), dtype)
        values, grad = value_and_grad(function, **inputs)
        assert values.dtype == torch.float32
        assert grad.dtype == dtype
        expected = loss.brute(**floating(inputs, torch.float64), **options).float()
        torch.testing.assert_close(values, expected, rtol=5e-5, atol=2e-6)
        exact_grad = value_and_grad(function, **floating(inputs, torch.float64))[1]
        torch.testing.assert_close(grad, exact_grad.to(dtype), rtol=2e-2, atol=1e-5)
        mixed = function(**{**inputs, "student": inputs["student"].float()})
        torch.testing.assert_close(mixed, expected, rtol=5e-5, atol=2e-6)


@every()
def test_autocast_changes_nothing(loss: Loss, options: dict[str, Any]) -> None:
    """With bf16=True the loss itself would silently be computed in bfloat16."""
    inputs = floating(loss.inputs(5), torch.float32)
    plain, grad = value_and_grad(bound(loss, options), **inputs)

    def cast(**keywords: Tensor) -> Tensor:  # the backward pass runs outside of it, as in training
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss.function(**keywords, **options)

    values, cast_grad = value_and_grad(cast, **inputs)
    assert torch.equal(values, plain)
    assert torch.equal(cast_grad, grad)


@rows()
def test_waits_for_nothing(loss: Loss) -> None:
    """A look at a value in between makes the GPU idle at every step; meta tensors have none."""
    for options in loss.settings:
        loss.function(**{k: v.to("meta") for k, v in loss.inputs(0).items()}, **options)


@every(lambda row: row.non_negative)
def test_never_negative(loss: Loss, options: dict[str, Any]) -> None:
    """A divergence below 0 would be a formula that can be lowered by moving away."""
    for seed in range(10):
        assert (loss.function(**loss.inputs(seed), **options) > -1e-12).all()


@every()
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), exponent=st.floats(-6, 3), offset=st.floats(-50, 50))
def test_any_inputs(
    loss: Loss, options: dict[str, Any], seed: int, exponent: float, offset: float
) -> None:
    """Values that are never drawn by the other tests (tiny, large, shifted) would give NaN."""
    inputs = loss.inputs(seed)
    scale = 10.0**exponent
    if loss.takes_logits:
        inputs = changed(inputs, lambda x: x * scale + offset)
    inputs = floating(inputs, torch.float32)
    values, grad = value_and_grad(bound(loss, options), **inputs)
    assert torch.isfinite(values).all()
    assert torch.isfinite(grad).all()
    if loss.non_negative:
        magnitude = max(options.get("temperature", 1.0), 1.0) ** 2 * max(1.0, scale)
        assert (values > -1e-5 * magnitude).all()


@every(lambda row: row.order_invariant)
def test_order_of_the_items(loss: Loss, options: dict[str, Any]) -> None:
    """The order of a batch, which means nothing, would change what is learned."""
    inputs = loss.inputs(6)
    order = torch.randperm(inputs["student"].shape[0], generator=torch.Generator().manual_seed(1))
    expected = loss.function(**inputs, **options)[order]
    values = loss.function(**{k: v[order] for k, v in inputs.items()}, **options)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-14)


@every(lambda row: row.decomposable)
def test_splitting_the_batch(loss: Loss, options: dict[str, Any]) -> None:
    """Accumulating gradients over micro-batches would train another loss than one batch."""
    inputs = loss.inputs(7)
    whole = loss.function(**inputs, **options)
    parts = [
        loss.function(**{k: v[part] for k, v in inputs.items()}, **options)
        for part in (slice(0, 0), slice(0, 1), slice(1, None))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-14)


@every(lambda row: takes("mask")(row) and "mask" in row.inputs(0))
def test_what_stands_in_padding(loss: Loss, options: dict[str, Any]) -> None:
    """What a model computes for padding, be it NaN, would reach the loss or its gradient."""
    inputs = loss.inputs(0)
    mask = inputs["mask"].bool()
    values, grad = value_and_grad(bound(loss, options), **inputs)

    def poisoned(x: Tensor, poison: float) -> Tensor:
        if x.shape[: mask.ndim] != mask.shape:
            return x
        return x.masked_fill(~mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim)), poison)

    compared = mask if values.shape == mask.shape else ...
    for poison in (math.nan, math.inf, 1e30):
        bad = changed(inputs, lambda x: poisoned(x, poison))  # noqa: B023
        bad_values, bad_grad = value_and_grad(bound(loss, options), **bad)
        torch.testing.assert_close(bad_values[compared], values[compared])
        torch.testing.assert_close(bad_grad, grad)


@rows(takes("temperature"))
@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_bad_temperature(loss: Loss, temperature: float) -> None:
    """Temperature 0 would give NaN, a negative one would align to the teacher's opposite."""
    with pytest.raises(ValueError, match=r"temperature must be > 0, got"):
        loss.function(**loss.inputs(0), temperature=temperature)


@rows(lambda row: takes("t_squared")(row) and row.name != "nkd")  # see test_nkd_t_squared
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_t_squared(loss: Loss, temperature: float) -> None:
    """Of peers that drop T² in some branch, no weight can be taken over (D2, D8)."""
    inputs = {**loss.inputs(0), "temperature": temperature}
    with_t, without = (loss.function(**inputs, t_squared=on) for on in (True, False))
    torch.testing.assert_close(with_t, temperature**2 * without, rtol=1e-12, atol=0)


@rows(takes("temperature"))
def test_temperature_of_each_item(loss: Loss) -> None:
    """A learned temperature would be applied to other items, or not be learned."""
    inputs = loss.inputs(0)
    plain = loss.function(**inputs, temperature=2.0)
    same = torch.full(plain.shape, 2.0, requires_grad=True)
    values = loss.function(**inputs, temperature=same)
    assert values.dtype == torch.float64
    torch.testing.assert_close(values.detach(), plain, rtol=1e-12, atol=1e-14)
    (grad,) = torch.autograd.grad(values.sum(), same)
    assert torch.isfinite(grad).all()
    assert grad.abs().sum() > 0
    if not loss.decomposable:
        return
    number = len(plain)
    several = 0.5 + torch.arange(number, dtype=torch.float64)
    values = loss.function(**inputs, temperature=several.view(-1, *[1] * (plain.ndim - 1)))
    for item, temperature in enumerate(several.tolist()):
        alone = loss.function(**inputs, temperature=temperature)[item]
        torch.testing.assert_close(values[item], alone, rtol=1e-12, atol=1e-14)


@rows(lambda row: takes("temperature")(row) and row.takes_logits and row.phantoms)
def test_phantom_classes_and_a_learned_temperature(loss: Loss) -> None:
    """The gradient of the temperature would be NaN once a class is masked."""
    inputs = floating(loss.inputs(0), torch.float32)
    shape = loss.function(**inputs).shape
    gradients = []
    for width in (0, 3):
        temperature = torch.full(shape, 0.5, requires_grad=True)
        padded = changed(inputs, lambda x: F.pad(x, (0, width), value=torch.finfo(x.dtype).min))  # noqa: B023
        values = loss.function(**padded, temperature=temperature)
        gradients += torch.autograd.grad(values.sum(), temperature)
    torch.testing.assert_close(*gradients)


@rows(takes("temperature"))
def test_temperature_of_another_shape(loss: Loss) -> None:
    """One temperature per class would silently be spread over the items."""
    with pytest.raises(ValueError, match="expected one temperature per item"):
        loss.function(**loss.inputs(0), temperature=torch.ones(7))


@rows(lambda row: not row.broadcasts and has_teacher(row))
def test_shape_mismatch(loss: Loss) -> None:
    """Broadcasting would compare every item with the same teacher output."""
    inputs = loss.inputs(0)
    teacher = inputs["teacher"]
    for other in (teacher[..., :-1], teacher[:1], teacher[0], torch.zeros(())):
        with pytest.raises(ValueError, match=r"expected .*, got .*; ") as error:
            loss.function(**{**inputs, "teacher": other})
        assert str(tuple(other.shape)) in str(error.value)


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    """The examples in the documentation would show numbers that the code does not give."""
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs={"torch": torch})
    defined = [
        public
        for public in losses.__all__
        if getattr(getattr(module, public, None), "__module__", None) == name
    ]
    assert results.failed == 0
    assert results.attempted >= len(defined)
