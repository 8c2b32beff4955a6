"""Components in the log: their means, what changes during training, and broken numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_models import collate
from tiny_trainers import config, data, models, trainer
from torch import Tensor
from transformers import TrainerCallback

from hf_distill import (
    ForwardKL,
    HardLabels,
    HiddenStates,
    LearnedTemperature,
    LogitMSE,
    LossShare,
    ModelTeacher,
    OnlineDistillationTrainer,
    Schedule,
)
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.training.component_log import ComponentLog, LossSums
from hf_distill.training.reduction import StepResult

PLANNED = HardLabels() + Schedule("linear", 1.0, 0.0) * ForwardKL(Schedule("linear", 4.0, 1.0))


# ---- sums ----------------------------------------------------------------------------------------


class Windows:
    """A count that a trainer adds to its log, and corrects a component by."""

    def __init__(self) -> None:
        self.seen = 0

    def figures(self) -> dict[str, float]:
        return {"windows": float(self.seen)}

    def adjust(self, means: dict[str, float]) -> dict[str, float]:
        return {name: 10 * value for name, value in means.items()}

    def state(self) -> dict[str, Tensor]:
        return {"windows.seen": torch.tensor(self.seen)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.seen = int(state["windows.seen"])

    def clear(self) -> None:
        self.seen = 0


def added(log: ComponentLog, first_step: int, values: Any) -> ComponentLog:
    """The log after one micro-batch per value, two of them a step."""
    for n, value in enumerate(values):
        number = torch.tensor(value)
        result = StepResult(number, {"kl": number}, {}, [], BatchItems({}), scheduled={"w": n})
        log.sums.add(first_step + n // 2, result)
    return log


def empty_log() -> ComponentLog:
    return ComponentLog(lambda values: 3 * values, "Teacher")  # as the sum of three processes


VALUES = np.random.default_rng(0).normal(size=6)


def test_an_entry_is_the_mean_per_step() -> None:
    """Means per micro-batch, or of one process, would look like lower losses."""
    log = added(empty_log(), 4, VALUES)
    expected = 3 * VALUES.sum() / 3  # processes, steps
    assert log.mean(7) == log.mean(7) == {"kl": pytest.approx(expected)}
    assert log.figures(7) == {"kl": pytest.approx(expected), "w": 5.0}
    assert log.figures(7) == {"w": 5.0}, "values that were logged count for the next entry"
    assert added(log, 7, VALUES[:2]).mean(8) == {"kl": pytest.approx(3 * VALUES[:2].sum())}


def test_further_counts_are_in_the_entry() -> None:
    """A trainer's own counts would never start anew, or its correction be left out."""
    log, windows = empty_log(), Windows()
    log.extra, windows.seen = windows, 2
    found = added(log, 0, VALUES[:2]).figures(1)
    assert list(found) == ["windows", "kl", "w"]
    assert found == {"windows": 2, "kl": pytest.approx(30 * VALUES[:2].sum()), "w": 1}
    assert windows.seen == 0


def test_sums_continue_from_a_checkpoint(tmp_path: Path) -> None:
    """The first entry after a resume would be the mean of a part of its steps."""
    whole, first, second = (empty_log() for _ in range(3))
    for log in (whole, first, second):
        log.extra = Windows()
    added(whole, 0, VALUES)
    added(first, 0, VALUES[:4])
    first.extra = Windows()
    first.extra.seen = 7
    accelerator = Accelerator(cpu=True)
    first.save(tmp_path, LossSums(torch.tensor(2.5), 12.0, 3), accelerator)
    second.load(tmp_path, accelerator)
    assert second.extra is not None
    assert second.extra.figures() == {"windows": 7}
    assert second.resumed
    assert second.resumed_losses() == (2.5, 12.0, 3)
    assert second.resumed_losses() is None, "losses would be added twice"
    assert added(second, 2, VALUES[4:]).mean(3) == pytest.approx(whole.mean(3))
    (file,) = tmp_path.iterdir()
    assert load_file(file)["processes"] == 1


def test_sums_of_other_processes_are_left_out(tmp_path: Path) -> None:
    """Sums of a process that is gone would be missing, and the mean too low."""
    accelerator = Accelerator(cpu=True)
    added(empty_log(), 0, VALUES).save(tmp_path, LossSums(torch.tensor(1.0), 1.0, 1), accelerator)
    log = empty_log()
    log.load(tmp_path / "nowhere", accelerator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(accelerator), "num_processes", 2)
        log.load(tmp_path, accelerator)
    assert log.mean(3) == {}
    assert not log.resumed


# ---- what is logged ------------------------------------------------------------------------------


def test_what_changes_is_logged_as_it_was_used(tmp_path: Path) -> None:
    """A curve of the weights of another step explains a loss that they did not make."""
    objective = PLANNED + LossShare(0.2) * HiddenStates()
    ours = trainer(tmp_path, objective=objective, max_steps=5)
    ours.train()
    steps = [entry for entry in ours.state.log_history if "loss" in entry]
    for step, entry in enumerate(steps):
        assert entry["forward_kl_weight"] == pytest.approx(1 - step / 5)
        assert entry["forward_kl_temperature"] == pytest.approx(4 - 3 * step / 5)
        total = entry["hard_labels"] + entry["forward_kl_weight"] * entry["forward_kl"]
        total += entry["hidden_states_weight"] * entry["hidden_states"]
        assert entry["loss"] == pytest.approx(total, rel=1e-5)
    assert len({entry["hidden_states_weight"] for entry in steps}) == 5


class Before(TrainerCallback):
    """Notes a learned number before each step."""

    def __init__(self) -> None:
        self.number: Callable[[], Tensor]
        self.seen: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seen.append(self.number().item())


def test_a_learned_temperature_is_logged(tmp_path: Path) -> None:
    """Nobody sees a curriculum that runs away to its end."""
    learned = ForwardKL(LearnedTemperature(start=1.0, end=5.0))
    before = Before()
    ours = trainer(tmp_path, objective=learned, max_steps=4, callbacks=[before])
    before.number = lambda: ours.projections["forward_kl"].p
    ours.train()
    logged = [e["forward_kl_temperature"] for e in ours.state.log_history if "loss" in e]
    assert logged == pytest.approx([1 + 4 / (1 + math.exp(-p)) for p in before.seen])
    assert logged[0] != logged[-1]


def test_what_stays_is_not_logged(tmp_path: Path) -> None:
    """A flat curve for every constant hides those that move."""
    ours = trainer(tmp_path)
    ours.train()
    assert not [k for e in ours.state.log_history for k in e if k.endswith(("_weight", "ature"))]


def test_a_joint_training_logs_the_students_weights(tmp_path: Path) -> None:
    """The learned parts of a joint training lie elsewhere: the log would end the training."""
    student, teacher = models()
    ours = OnlineDistillationTrainer(
        student,
        config(tmp_path, max_steps=3),
        peers=teacher,
        objective=0.5 * HardLabels() + LossShare(0.5) * ForwardKL(Schedule("linear", 4.0, 1.0)),
        train_dataset=data(),
        data_collator=collate,
    )
    ours.train()
    first, second, third = (e for e in ours.state.log_history if "loss" in e)
    assert [e["forward_kl_temperature"] for e in (first, second, third)] == pytest.approx([4, 3, 2])
    assert first["forward_kl_weight"] == 0 < second["forward_kl_weight"]


# ---- broken numbers ------------------------------------------------------------------------------


class Breaking(ModelTeacher):
    """Is broken from its fourth answer on: the first are for the constructor and the first step."""

    calls, value, where = 0, math.nan, "logits"

    def __call__(self, batch: Any, needs: Needs, items: BatchItems) -> Signal:
        signal = super().__call__(batch, needs, items)
        self.calls += 1
        if self.calls < 4:
            return signal
        if self.where == "logits":
            assert signal.logits is not None
            logits = signal.logits.clone()
            logits[0, 0] = self.value
            return replace(signal, logits=logits)
        states = {g: tuple(s * self.value for s in own) for g, own in signal.hidden_states.items()}
        return replace(signal, hidden_states=states)


@pytest.mark.parametrize(
    ("where", "value", "goal"),
    [
        ("logits", math.nan, ForwardKL()),
        ("logits", math.inf, ForwardKL()),
        ("logits", -math.inf, LogitMSE()),
        ("hidden_states", math.nan, HiddenStates()),
    ],
)
def test_a_broken_teacher_is_named(tmp_path: Path, where: str, value: float, goal: Any) -> None:
    """'Lower the learning rate' sends its reader to look for days in the wrong place."""
    teacher = Breaking(models()[1])
    teacher.where, teacher.value = where, value
    run = trainer(tmp_path, teacher_model=teacher, objective=goal, max_steps=5)
    with pytest.raises(FloatingPointError, match=r"The teacher \(Breaking\) gave NaN") as told:
        run.train()
    assert "learning rate" not in str(told.value)


def test_a_broken_student_is_not_blamed_on_the_teacher(tmp_path: Path) -> None:
    """The teacher is named only where it is the cause."""
    run = trainer(tmp_path, objective=ForwardKL(), learning_rate=1e30, max_steps=8)
    with pytest.raises(FloatingPointError) as told:
        run.train()
    assert "teacher" not in str(told.value)
