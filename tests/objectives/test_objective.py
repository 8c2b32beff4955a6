"""The algebra of objectives: weights, names, schedules, and the one place that divides."""

import math
from typing import ClassVar

import pytest
import torch

from hf_distill import (
    BatchItems,
    ForwardKL,
    HardLabels,
    HiddenStates,
    LogitMSE,
    Objective,
    Schedule,
    Signal,
    Term,
    WeightDecay,
    WeightedSum,
    objective_from,
)
from hf_distill.objectives.base.objective import Context
from hf_distill.objectives.base.schedules import Progress
from hf_distill.training.reduction import reduce

ITEMS = BatchItems({"items": torch.tensor([True, True, False]), "batches": torch.tensor(True)})


class Constant(Objective):
    """One value per item, and one per batch."""

    name: ClassVar[str] = "constant"

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        per_item = Term(self.name, torch.tensor([1.0, 2.0, 40.0]), "items", items.masks["items"])
        return [per_item, Term(f"{self.name}_extra", torch.tensor(5.0), "batches", weight=2.0)]


def terms_of(
    objective: Objective | WeightedSum, progress: Progress | None = None
) -> dict[str, float]:
    """Name -> weight of every term."""
    context = Context(progress=progress or Progress())
    found = (1.0 * objective if isinstance(objective, Objective) else objective).terms(
        Signal(), None, ITEMS, context
    )
    assert len({t.name for t in found}) == len(found)
    return {t.name: t.weight for t in found}


# ---- arithmetic ------------------------------------------------------------------------------


def test_weights_are_plain_arithmetic() -> None:
    """A weight that is lost or applied twice trains towards something else without a word."""
    a, b, c = HardLabels(), ForwardKL(2.0), LogitMSE()
    assert (0.3 * a + 0.7 * b).parts == ((0.3, a), (0.7, b))
    assert (a * 0.3 + b * 0.7).parts == ((0.3, a), (0.7, b))
    assert (a + b).parts == ((1.0, a), (1.0, b))
    assert (0.5 * (a + 0.5 * (b + 4 * c))).parts == ((0.5, a), (0.25, b), (1.0, c))
    assert (a + (b + c)).parts == ((a + b) + c).parts
    assert (0 * a + b).parts == ((0.0, a), (1.0, b))


def test_terms_carry_the_weights_of_the_objective_and_their_own() -> None:
    """A term's own weight that replaces the objective's would switch the objective's off."""
    assert terms_of(Constant()) == {"constant": 1.0, "constant_extra": 2.0}
    assert terms_of(0.5 * Constant()) == {"constant": 0.5, "constant_extra": 1.0}


def test_duplicates_get_names_of_their_own() -> None:
    """Two components of one name are one line in the log, and one overwrites the other."""
    twice = Constant() + 3.0 * Constant() + Constant()
    assert terms_of(twice) == {
        "constant": 1.0,
        "constant_extra": 2.0,
        "constant_2": 3.0,
        "constant_2_extra": 6.0,
        "constant_3": 1.0,
        "constant_3_extra": 2.0,
    }
    hidden = HiddenStates() + ForwardKL() + HiddenStates("last")
    assert [n for n, _, _ in hidden.named()] == ["hidden_states", "forward_kl", "hidden_states_2"]


def test_duplicates_keep_their_own_projections() -> None:
    """Two layer maps that share projections by name would train one matrix for two things."""
    states = {"hidden": tuple(torch.randn(2, 5, 4) for _ in range(3))}
    wide = {"hidden": tuple(torch.randn(2, 5, 6) for _ in range(5))}
    objective = HiddenStates(((1, 2),)) + HiddenStates(((1, 2), (2, 4)))
    built = objective.build(Signal(hidden_states=states), Signal(hidden_states=wide))
    assert {name for name, _ in built.named_parameters()} == {
        f"{part}.{pair}.{kind}"
        for part, pair in (
            ("hidden_states", "hidden_1_2"),
            ("hidden_states_2", "hidden_1_2"),
            ("hidden_states_2", "hidden_2_4"),
        )
        for kind in ("weight", "bias")
    }


def test_scheduled_weights() -> None:
    """A schedule that is read once at construction never moves."""
    ramp = Schedule("linear", 0.0, 2.0)
    for objective in (ramp * 0.5 * Constant(), Constant() * ramp * 0.5, 0.5 * (Constant() * ramp)):
        for step, weight in ((0, 0.0), (5, 0.5), (10, 1.0)):
            at = terms_of(objective, Progress(step=step, max_steps=10))
            assert at == {"constant": weight, "constant_extra": 2 * weight}
    ramped = Constant() * ramp
    with pytest.raises(ValueError, match="is a Schedule cannot be multiplied by linear"):
        _ = ramped * ramp
    with pytest.raises(TypeError):
        _ = ramp * ramp


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_bad_weights_are_refused_where_they_are_written(weight: float) -> None:
    """A negative weight pushes the student away from the teacher; NaN destroys it."""
    for make in (
        lambda: weight * HardLabels(),
        lambda: HardLabels() * weight,
        lambda: (HardLabels() + ForwardKL()) * weight,
        lambda: Schedule("linear", weight, 1.0),
        lambda: Schedule("linear", 1.0, weight),
        lambda: WeightDecay(weight),
        lambda: objective_from([{"name": "hard_labels", "weight": weight}]),
    ):
        with pytest.raises(ValueError, match=r"Expected a (weight of at least 0|finite number)"):
            make()


# ---- reduce ----------------------------------------------------------------------------------


def test_reduce_is_sums_over_counts_of_the_window() -> None:
    """A mean within the micro-batch gives ragged micro-batches other weights than one batch."""
    values, mask = torch.rand(4, 3), torch.rand(4, 3) > 0.4
    values[~mask] = math.nan  # what is masked may be anything
    values.requires_grad_()
    per_batch = torch.rand((), requires_grad=True)
    terms = [Term("a", values, "items", mask, 0.25), Term("b", per_batch, "batches", weight=3.0)]
    counts = {"items": torch.tensor(17), "batches": torch.tensor(4)}
    loss, components, sums = reduce(terms, counts, scale=2.0)

    raw = values.detach()
    total = sum(float(raw[i, j]) for i in range(4) for j in range(3) if mask[i, j])
    expected = 2.0 * (0.25 * total / 17 + 3.0 * float(per_batch.detach()) / 4)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert float(components["a"]) == pytest.approx(total / 17, rel=1e-6)
    assert float(components["b"]) == pytest.approx(float(per_batch.detach()) / 4, rel=1e-6)
    assert float(sums["a"]) == pytest.approx(total, rel=1e-6)
    assert not any(v.requires_grad for v in (*components.values(), *sums.values()))
    by_value, by_batch = torch.autograd.grad(loss, [values, per_batch])
    torch.testing.assert_close(by_value, torch.where(mask, 2.0 * 0.25 / 17, 0.0))
    assert float(by_batch) == pytest.approx(2.0 * 3.0 / 4)


def test_reduce_of_nothing() -> None:
    """A window without a labelled item must give 0, not 0/0, which would end the training."""
    values = torch.rand(3, requires_grad=True)
    nothing = Term("a", values, "labels", torch.zeros(3, dtype=torch.bool))
    loss, components, _ = reduce([nothing], {"labels": torch.tensor(0)})
    assert loss.item() == 0 == float(components["a"])
    with pytest.raises(ValueError, match="at least one term"):
        reduce([], {})


# ---- schedules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        (Schedule("linear", 1.0, 0.0), Progress(25, 0.5, 100), 0.75),
        (Schedule("linear", 0.2, 1.0), Progress(0, 0.0, 100), 0.2),
        (Schedule("linear", 0.2, 1.0), Progress(100, 2.0, 100), 1.0),
        (Schedule("linear", 1.0, 0.0), Progress(0, 0.0, 0), 1.0),  # evaluate() before train()
        (Schedule("linear", 1.0, 0.0, over=10), Progress(5, 0.1, 100), 0.5),
        (Schedule("linear", 1.0, 0.5, over=10), Progress(50, 1.0, 100), 0.5),  # stays there
        (Schedule("linear", 1.0, 0.0, over=4, by="epoch"), Progress(90, 1.0, 100), 0.75),
        (Schedule("linear", 1.0, 0.0, by="epoch"), Progress(25, 0.5, 100), 0.75),
        (Schedule("cosine", 1.0, 0.0), Progress(50, 1.0, 100), 0.5),
        (Schedule("cosine", 1.0, 0.0), Progress(25, 0.5, 100), (1 + math.sqrt(0.5)) / 2),
        (Schedule("cosine", 0.0, 3.0, over=3, by="epoch"), Progress(1, 1.0, 100), 0.75),
        (Schedule("linear", 1.0, 0.5) * 4, Progress(50, 1.0, 100), 3.0),
    ],
)
def test_schedules(schedule: Schedule, progress: Progress, expected: float) -> None:
    """A schedule in the wrong unit is over after one epoch, or never starts."""
    assert schedule.at(progress) == pytest.approx(expected, abs=1e-12)


def test_weights_of_recipes() -> None:
    """A recipe's schedule that means something else than the same one in Python."""
    row = {"schedule": "cosine", "start": "1e-1", "end": 2, "over": "3", "by": "epoch"}
    objective = objective_from([{"name": "forward_kl", "weight": row}])
    assert objective.parts == ((Schedule("cosine", 0.1, 2.0, 3.0, "epoch"), ForwardKL()),)
