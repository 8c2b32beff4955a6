"""Every objective with every kind of model: it trains, resumes, saves clean, and keeps the core's
invariances. The rows are in `objective_table.py`."""

from __future__ import annotations

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_splits import measure
from objective_table import MODELS, ROWS, VARIANTS, Row
from safetensors.torch import load_file
from tiny_models import collate, quiet_arguments
from torch import nn

from hf_distill import OBJECTIVES, DistillationTrainer, WeightedSum
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.objective import Context
from hf_distill.training.reduction import reduce

GRADIENTS = 1e-6  # of the norm, in float64; T5 and attention have parts in float32
EVERY = {**ROWS, **VARIANTS}


def few() -> dict[str, list[str]]:
    """Two models for each objective, those that fewest have yet.

    A head changes the units and the masks of the items: each meets many objectives, and each
    objective two heads. The other pairs are slow tests.
    """
    used: Counter[str] = Counter()
    found = {}
    for name, row in EVERY.items():
        found[name] = sorted(row.models, key=lambda model: used[model])[:2]
        used.update(found[name])
    return found


FEW = few()
PAIRS = [
    pytest.param(name, model, marks=[] if model in FEW[name] else pytest.mark.slow)
    for name, row in EVERY.items()
    for model in row.models
]


def test_every_objective_has_a_row() -> None:
    """A new objective would ship without being held to any of the contracts below."""
    assert {name: type(row.objective) for name, row in ROWS.items()} == OBJECTIVES


def run(folder: Path, name: str, model: str, **options: Any) -> DistillationTrainer:
    case, row = MODELS[model], EVERY[name]
    student, teacher = case.models(torch.float32)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_only_model": False,
    }
    return DistillationTrainer(
        student,
        quiet_arguments(folder, **{**settings, **options}),
        collate,
        case.data(8, torch.float32),
        case.data(4, torch.float32),
        teacher_model=teacher,
        compute_metrics=lambda prediction: {"rows": float(len(prediction.predictions))},
        objective=1.0 * row.objective,
    )


@pytest.mark.parametrize(("name", "model"), PAIRS, ids=str)
def test_trains_resumes_and_saves_clean(tmp_path: Path, name: str, model: str) -> None:
    """A loss that works as a function and not in a run: no gradient, a state that is lost, learned
    parts that end in the published student."""
    whole = run(tmp_path / "whole", name, model)
    before = {n: p.detach().clone() for n, p in whole.model.named_parameters()}
    keys = set(whole.model.state_dict())
    whole.train()
    logs = [row for row in whole.state.log_history if "loss" in row]
    assert len(logs) == 3
    assert all(math.isfinite(v) for row in logs for v in row.values())
    assert any(k.startswith(EVERY[name].objective.name) for k in logs[0])
    moved = sum((p - before[n]).abs().sum().item() for n, p in whole.model.named_parameters())
    assert moved > 0
    assert set(whole.model.state_dict()) == keys
    assert all(math.isfinite(v) for v in whole.evaluate().values())
    whole.model.save_pretrained(tmp_path / "plain")
    saved, plain = (
        set(load_file(tmp_path / folder / "model.safetensors"))
        for folder in ("whole/checkpoint-2", "plain")
    )
    assert saved == plain
    if model != FEW[name][0]:  # what is resumed is the objective's, with any model
        return
    resumed = run(tmp_path / "resumed", name, model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (n, p), (_, q) in zip(
        whole.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        assert torch.equal(p, q), n


def decomposable(model: str, which: str) -> dict[str, WeightedSum]:
    rows = {
        n: r.objective
        for n, r in ROWS.items()
        if model in r.models and not r.objective.compares_examples
        if which == "every" or model in FEW[n]
    }
    found = {name: 1.0 * objective for name, objective in rows.items()}
    found["all"] = WeightedSum(tuple((1.0, objective) for objective in rows.values()))
    return found


@pytest.mark.parametrize("which", ["few", pytest.param("every", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", [m for m in MODELS if len(decomposable(m, "every")) > 1])
def test_the_split_changes_nothing(model: str, which: str) -> None:
    """A mean per micro-batch weighs a short text like a long one; a sum forgets the window."""
    goals = decomposable(model, which)
    whole, parts = (measure(MODELS[model], (*split, 1), goals) for split in ((8, 1), (2, 4)))
    assert list(whole[0]) == list(parts[0])
    for name, value in whole[0].items():
        assert parts[0][name] == pytest.approx(value, rel=1e-6, abs=1e-12), name
    for name, gradient in whole[1].items():
        assert gradient.norm() > 0, name
        assert (parts[1][name] - gradient).norm() <= GRADIENTS * gradient.norm(), name


def gradient(row: Row, model: str, teacher: nn.Module | None = None) -> tuple[float, float]:
    """Value and gradient norm on one batch, for a teacher (default: the student itself)."""
    case = MODELS[model]
    student = case.models()[0].eval()
    teacher = copy.deepcopy(student) if teacher is None else teacher.eval()
    teacher.requires_grad_(False)
    goal = 1.0 * row.objective
    ours, theirs = TaskModel(student), TaskModel(teacher)
    batch = ours.task.share(collate(case.data()), ours.model)
    items = ours.items(batch)
    signal = ours.ask(student, batch, goal.student_needs, items)[1]
    target = theirs.ask(teacher, batch, goal.needs, items)[1].detach()
    built = goal.build(signal, target).double()
    loss, _, _ = reduce(goal.terms(signal, target, items, Context(built)), items.counts())
    gradients = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    norm = sum(g.square().sum().item() for g in gradients if g is not None) ** 0.5
    return loss.item(), norm


@pytest.mark.parametrize(
    ("name", "model"), [pair for pair in PAIRS if EVERY[pair.values[0]].zero], ids=str
)
def test_zero_at_equality(name: str, model: str) -> None:
    """A student that is the teacher would still be moved; and 0 elsewhere would teach nothing."""
    row = EVERY[name]
    value, norm = gradient(row, model)
    other, moving = gradient(row, model, MODELS[model].models()[1])
    # T5 picks another attention kernel where nothing is trained: the two differ in float32
    value_bound, bound = (1e-4, 1e-2) if model == "seq2seq" else (1e-9, 1e-6)
    assert abs(value) <= value_bound * max(1.0, abs(other))
    if name != "total_variation" or model != "seq2seq":  # its slope is 1 at any distance
        assert norm <= bound * max(1.0, moving)
    assert other != 0
    assert moving > 0
