"""Temperatures and weights that change, shares of the loss, gradient norms, and what is refused."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from task_values import components
from task_values import trainer as trainer_of
from tiny_models import CASES, collate, quiet_arguments
from tiny_trainers import Recorder, data, models, trainer
from torch import nn

from hf_distill import (
    CKA,
    RKD,
    AdaptiveTemperature,
    DecoupledKD,
    Dist,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HardTeacherLabels,
    HiddenStates,
    Jacobian,
    LearnedTemperature,
    LogitMSE,
    LogitStandardizedKL,
    LossShare,
    MarginMSE,
    Needs,
    Schedule,
    WeightedSum,
    objective_from,
)
from hf_distill.losses import forward_kl
from hf_distill.objectives.base.loss_shares import DECAY, LossShares
from hf_distill.objectives.base.schedules import Progress
from hf_distill.objectives.base.temperature import FLOOR, temperature_at, temperature_from

# ---- temperature -------------------------------------------------------------------------------

LOGITS = torch.tensor([[4.0, 0.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.5, 0.0]])
OTHERS = torch.tensor([[0.0, 3.0, 0.0], [1.0, 2.0, 0.0], [5.0, 0.5, 0.0]])


def test_temperature_from_a_recipe() -> None:
    assert temperature_from("2") == 2.0
    assert temperature_from([1, 2, 4]) == (1.0, 2.0, 4.0)
    assert temperature_from({"schedule": "linear", "start": "4", "end": 1}) == Schedule(
        "linear", 4.0, 1.0
    )
    assert temperature_from({"rule": "cwsm", "base": 3}) == AdaptiveTemperature("cwsm", 3.0)
    assert temperature_from({"rule": "learned", "end": 5}) == LearnedTemperature(end=5.0)
    rows = [{"name": "forward_kl", "temperature": {"rule": "flsw", "strength": 2}}]
    assert objective_from(rows) == 1.0 * ForwardKL(AdaptiveTemperature("flsw", strength=2.0))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "temperature above 0, got 0"),
        ([1, -1], "temperature above 0, got -1"),
        (math.inf, "above 0, got inf"),
        ({"schedule": "linear", "start": 4, "end": 0}, "above 0, got 0"),
        ({"rule": "warm"}, r"rule` of \['cwsm', 'flsw', 'learned'\], got"),
        ({"rule": "cwsm", "basis": 3}, r"\['basis'\] in a temperature; known are"),
        ({"rule": "learned", "over": 2}, r"share of the training in \(0, 1\], got over=2"),
    ],
)
def test_bad_temperatures(value: Any, message: str) -> None:
    """A temperature of 0 at the end of a schedule is NaN in the last step of a run."""
    with pytest.raises(ValueError, match=message):
        ForwardKL(value)


def test_temperature_per_class_follows_the_teachers_choice() -> None:
    found = temperature_at((1.0, 2.0, 3.0), LOGITS, OTHERS, Progress(), None)
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [2.0, 2.0, 1.0]
    with pytest.raises(ValueError, match="Expected 3 temperatures"):
        temperature_at((1.0, 2.0), LOGITS, OTHERS, Progress(), None)


def test_temperature_per_example() -> None:
    """Both rules by hand; computed from values, so that no gradient goes through them."""
    sure = [
        max(math.exp(v) for v in row) / sum(math.exp(v) for v in row) for row in LOGITS.tolist()
    ]
    cwsm = AdaptiveTemperature("cwsm", 4.0, 2.0).of(LOGITS.requires_grad_(), OTHERS)
    expected = [4 + 2 * (1 - 1 / (p + 1e-3)) for p in sure]
    torch.testing.assert_close(cwsm, torch.tensor(expected).clamp(min=FLOOR))
    assert not cwsm.requires_grad
    flsw = AdaptiveTemperature("flsw", 4.0, 1.0, 2.0).of(LOGITS, OTHERS)
    cosine = [
        sum(a * b for a, b in zip(s, t, strict=True)) / math.hypot(*s) / math.hypot(*t)
        for s, t in zip(LOGITS.tolist(), OTHERS.tolist(), strict=True)
    ]
    torch.testing.assert_close(flsw, torch.tensor([5 - (1 - c) ** 2 for c in cosine]))
    assert flsw[1] == pytest.approx(5.0)
    LOGITS.requires_grad_(False)


def test_scheduled_temperature_is_the_one_of_the_step(tmp_path: Path) -> None:
    """A schedule that is read once, or by micro-batch, is another loss."""
    values = []
    for temperature in (Schedule("linear", 4.0, 2.0, over=2), 4.0, 3.0, 2.0):
        record = Recorder()
        trainer(
            tmp_path,
            objective=ForwardKL(temperature),
            learning_rate=0.0,
            max_steps=3,
            callbacks=[record],
            train_sampling_strategy="sequential",
            per_device_train_batch_size=8,
        ).train()
        values.append([step["forward_kl"] for step in record.steps])
    assert values[0] == pytest.approx([values[1][0], values[2][1], values[3][2]], rel=1e-6)


def test_learned_temperature_works_against_the_student() -> None:
    """Without the reversed gradient the temperature simply makes the loss small."""
    temperature = LearnedTemperature(1.0, 9.0, over=0.5)
    module = temperature.module()
    at_start = temperature.of(module, Progress(0, 0.0, 10))
    assert at_start.item() == 5.0
    for step, share in ((0, 0.0), (5, 1.0), (9, 1.0)):
        module.zero_grad()
        loss = forward_kl(LOGITS, OTHERS, temperature.of(module, Progress(step, 0.0, 10))).sum()
        loss.backward()
        plain = torch.tensor(0.0, requires_grad=True)
        forward_kl(LOGITS, OTHERS, 1 + 8 * plain.sigmoid()).sum().backward()
        assert plain.grad is not None
        assert module.p.grad is not None
        torch.testing.assert_close(module.p.grad, -share * plain.grad)


def test_t_squared_can_be_switched_off() -> None:
    """D2, D8: without it the weight of a paper means another one at each temperature."""
    case = CASES["sequence_classification"]
    student, teacher = case.models()
    batch = collate(case.data())
    with_it = components(ForwardKL(4.0), student, batch, teacher)["forward_kl"]
    without = components(ForwardKL(4.0, t_squared=False), student, batch, teacher)["forward_kl"]
    assert with_it == pytest.approx(16 * without, rel=1e-9)


# ---- shares of the loss ------------------------------------------------------------------------


def test_weights_follow_the_running_means() -> None:
    """Two steps by hand: bias-corrected means, then share * total / mean."""
    balance = LossShares({"a": None, "b": 0.25})
    assert balance.weights()["b"] == 0
    for a, b in ((1.0, 100.0), (3.0, 300.0)):
        halves = {"a": torch.tensor(a / 2), "b": torch.tensor(-b / 2)}
        balance.observe(halves, False, lambda x: x)
        balance.observe(halves, True, lambda x: x)
    mean = (DECAY * 1 + 3) / (DECAY + 1)
    total = mean / 0.75
    assert balance.weights()["b"].item() == pytest.approx(0.25 * total / (100 * mean), rel=1e-9)
    alone = LossShares({"a": 0.5, "b": 0.5})
    alone.observe({"a": torch.tensor(2.0), "b": torch.tensor(50.0)}, True, lambda x: x)
    assert [w.item() for w in alone.weights().values()] == pytest.approx([0.25, 0.01])


@pytest.mark.parametrize(
    "shares", [{"a": None, "b": 1.0}, {"a": 0.5, "b": 0.4}, {"a": 0.7, "b": 0.7}]
)
def test_shares_that_do_not_add_up(shares: dict[str, float | None]) -> None:
    with pytest.raises(ValueError, match="Expected shares that add up to 1, or to less beside"):
        LossShares(shares)
    with pytest.raises(ValueError, match=r"share of the total loss in \(0, 1\], got 1.5"):
        LossShare(1.5)
    with pytest.raises(ValueError, match="is a LossShare cannot be multiplied by 2"):
        2.0 * (LossShare(0.5) * ForwardKL())


BALANCED = ForwardKL(2.0) + LossShare(0.4) * (HiddenStates())


def balanced(folder: Path, batch: int, accumulation: int, **options: Any) -> tuple[Any, Recorder]:
    record = Recorder()
    made = trainer(
        folder,
        objective=BALANCED,
        learning_rate=1e-5,
        max_steps=4,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        callbacks=[record],
        train_sampling_strategy="sequential",
        **options,
    )
    return made, record


def test_a_share_makes_up_its_part_of_the_loss(tmp_path: Path) -> None:
    """Hidden losses may be 1000 times off; and the weight must not depend on the split."""
    runs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        ours, record = balanced(tmp_path, batch, accumulation)
        ours.train()
        runs.append(record.steps)
    for row in runs[0][1:]:
        part = 1 - row["forward_kl"] / row["loss"]
        assert part == pytest.approx(0.4, abs=0.06)
    first = runs[0][0]
    assert first["loss"] == pytest.approx(first["forward_kl"], rel=1e-4)  # it measures
    for whole, split in zip(*runs, strict=True):
        assert split["loss"] == pytest.approx(whole["loss"], rel=1e-4)


def test_shares_resume_exactly(tmp_path: Path) -> None:
    """Running means that start anew after a stop give the loss another balance."""
    whole, _ = balanced(tmp_path / "whole", 4, 2, save_strategy="steps", save_steps=2)
    whole.train()
    resumed, _ = balanced(tmp_path / "resumed", 4, 2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_shares_in_a_recipe() -> None:
    rows = [{"name": "forward_kl"}, {"name": "hidden_states", "weight": {"share": "3e-1"}}]
    objective = objective_from(rows)
    assert objective == 1.0 * ForwardKL() + LossShare(0.3) * HiddenStates()
    assert objective.describe()[1]["weight"] == {"share": 0.3}
    assert "share(0.3) * HiddenStates()" in str(objective)


# ---- gradient norms ------------------------------------------------------------------------------


def test_gradient_norms_of_the_components(tmp_path: Path) -> None:
    """Compared with a backward of each component alone."""
    record = Recorder()
    objective = 0.3 * HardLabels() + 0.7 * ForwardKL(2.0)
    ours = trainer(
        tmp_path,
        objective=objective,
        log_gradient_norms=True,
        max_steps=1,
        per_device_train_batch_size=8,
        callbacks=[record],
        train_sampling_strategy="sequential",
        learning_rate=0.0,
    )
    ours.train()
    for part, name in ((HardLabels(), "hard_labels"), (ForwardKL(2.0), "forward_kl")):
        alone = Recorder()
        trainer(
            tmp_path,
            objective=part,
            max_steps=1,
            per_device_train_batch_size=8,
            callbacks=[alone],
            train_sampling_strategy="sequential",
            learning_rate=0.0,
            max_grad_norm=1e9,
        ).train()
        expected = alone.steps[0]["grad_norm"]
        assert record.steps[0][f"grad_norm_{name}"] == pytest.approx(expected, rel=1e-5)


# ---- guards --------------------------------------------------------------------------------------


def two_labels(objective: Any, folder: Path) -> DistillationTrainer:
    case = CASES["sequence_classification"]
    config = case.config()
    config.num_labels = 2
    rows = [{**row, "labels": row["labels"] % 2} for row in data()]
    return DistillationTrainer(
        case.model(config),
        quiet_arguments(folder, max_steps=1),
        collate,
        rows,
        teacher_model=case.model(config),
        objective=objective,
    )


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (LogitStandardizedKL(), "three classes or more, got 2: two standardised"),
        (Dist(), r"needs three classes or more, got 2.*Dist\(beta=0\)"),
        (DecoupledKD(), "three classes or more, got 2.*always 0"),
    ],
)
def test_two_classes(tmp_path: Path, objective: Any, message: str) -> None:
    """D14-D16: with two classes these have no gradient: SST-2, MRPC and RTE would learn nothing."""
    with pytest.raises(ValueError, match=message):
        two_labels(objective, tmp_path)
    two_labels(Dist(beta=0.0), tmp_path)


@pytest.mark.parametrize("objective", [RKD(), CKA(), Dist()])
def test_a_batch_of_one_is_refused(tmp_path: Path, objective: Any) -> None:
    """D17: relations of one example are NaN elsewhere."""
    with pytest.raises(ValueError, match=r"compares the examples of a batch.*is 1"):
        trainer(tmp_path, objective=objective, per_device_train_batch_size=1)


def test_a_last_batch_of_one_does_not_kill_the_run(tmp_path: Path) -> None:
    """D17: nine rows in batches of four: the last is alone; it gives 0 and a warning."""
    ours = trainer(
        tmp_path,
        objective=HardLabels() + RKD(),
        train_dataset=data(rows=9),
        max_steps=-1,
        num_train_epochs=1,
    )
    with pytest.warns(UserWarning, match="drop_last"):
        ours.train()
    assert all(torch.isfinite(p).all() for p in ours.model.parameters())


class Says(nn.Module):
    """Replaces a teacher's head by one that gives the same logits for whatever it sees."""

    def __init__(self, row: list[float], by_first: bool = False):
        super().__init__()
        self.row, self.by_first = torch.tensor(row), by_first

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = self.row.expand(len(hidden), -1)
        if self.by_first:
            return rows * torch.linspace(0.5, 1, len(hidden))[:, None]
        return rows


def test_broken_teachers_are_refused_or_warned_of(tmp_path: Path) -> None:
    """A teacher that says NaN ruins the student; one that says one thing teaches nothing."""
    student, teacher = models()
    teacher.classifier = Says([math.nan, 0.0, 0.0])
    with pytest.raises(ValueError, match="finite logits of the teacher, got NaN"):
        trainer(tmp_path, model=student, teacher_model=teacher)
    teacher.classifier = Says([1.0, 0.0, 0.0])
    with pytest.warns(UserWarning, match="the same for every example"):
        trainer(tmp_path, model=student, teacher_model=teacher)
    teacher.classifier = Says([200.0, 0.0, 0.0], by_first=True)
    with pytest.warns(UserWarning, match="one-hot.*Raise the temperature"):
        trainer(tmp_path, model=student, teacher_model=teacher)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(tmp_path)


def test_labels_are_asked_for_by_name(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "labels"} for row in data()]
    for objective in (DecoupledKD(), Jacobian(saliency=True)):
        with pytest.raises(ValueError, match=f"{type(objective).__name__} needs the label column"):
            trainer(tmp_path, objective=objective, train_dataset=rows)
    trainer(tmp_path, objective=HardTeacherLabels(), train_dataset=rows).train()


def test_inputs_of_other_widths_need_saliency(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Jacobian\(saliency=True\)"):
        trainer(tmp_path, objective=Jacobian("teacher"))


def test_margins_need_whole_queries(tmp_path: Path) -> None:
    """Rows of two queries mixed would be compared with each other."""
    with pytest.raises(ValueError, match="whole queries, 3 rows each, got 8"):
        trainer_of(
            tmp_path,
            "regression",
            MarginMSE(3),
            train_dataset=CASES["regression"].data(8),
            args=quiet_arguments(tmp_path, per_device_train_batch_size=8),
        )


def test_map_objectives_refuse_padded_sequences(tmp_path: Path) -> None:
    from hf_distill import AttentionTransfer

    with pytest.raises(ValueError, match=r"sequence with padding.*Use HiddenStates"):
        trainer(tmp_path, objective=AttentionTransfer())


def test_needs_are_named() -> None:
    assert Needs(qkv=True, modules=frozenset({"a"})).missing_from(Needs()) == ["qkv", "a"]
    assert not Needs()
    assert Needs(modules=frozenset({"a"})) & Needs(modules=frozenset({"b"})) == Needs()


def test_sums_keep_their_shares_apart() -> None:
    total = LogitMSE() + LossShare(0.2) * HiddenStates() + LossShare(0.1) * HiddenStates("last")
    balance = total.balance()
    assert balance is not None
    assert balance.shares == {"logit_mse": None, "hidden_states": 0.2, "hidden_states_2": 0.1}
    assert WeightedSum(()).balance() is None
