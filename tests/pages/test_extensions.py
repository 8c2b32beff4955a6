"""A subclass and an objective that the pages define: batch splits, processes, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch
from tiny_models import CASES, Case, collate
from tiny_trainers import Recorder, config, models, trainer

from hf_distill import HardLabels
from tests.pages.page_blocks import ROOT, definition

if not (ROOT / "README.md").exists():
    pytest.skip("an installed package comes without its README", allow_module_level=True)

ConfidentStudent = definition("hf_distill/training/README.md", "ConfidentStudent")
TopMargin = definition("hf_distill/objectives/README.md", "TopMargin")
SINGLE = 1e-6  # the models are in float64; transformers adds the loss up in float32


def figures(folder: str, batch: str, accumulation: str, subclass: str) -> None:
    """Train for two steps of eight examples and write what was logged, and the evaluation."""
    record = Recorder()
    name = "sequence_classification" if subclass == "yes" else "token_classification"
    case: Case = CASES[name]
    student, teacher = case.models()
    options: dict[str, Any] = {"cls": ConfidentStudent}
    if subclass == "no":
        options = {"objective": 0.5 * HardLabels() + 2.0 * TopMargin()}
    ours = trainer(
        Path(folder),
        name,
        model=student,
        teacher_model=teacher,
        train_dataset=case.data(),
        eval_dataset=case.data(),
        callbacks=[record],
        args=config(
            Path(folder),
            per_device_train_batch_size=int(batch),
            gradient_accumulation_steps=int(accumulation),
            per_device_eval_batch_size=4,
            train_sampling_strategy="sequential",
        ),
        **options,
    )
    ours.train()
    kept = ("loss", "grad_norm", "eval_loss", "top_margin", "hard_labels", "forward_kl")
    kept = (*kept, "eval_top_margin")
    logs = [*record.steps, ours.evaluate()]
    found = [{key: log[key] for key in kept if key in log} for log in logs]
    if ours.is_world_process_zero():
        (Path(folder) / "figures.json").write_text(json.dumps(found))


def _read(folder: Path) -> list[float]:
    return [v for log in json.loads((folder / "figures.json").read_text()) for v in log.values()]


@pytest.mark.parametrize("subclass", ["yes", "no"])
def test_the_split_into_batches_does_not_matter(tmp_path: Path, subclass: str) -> None:
    """A term divided by the micro-batch grows with the accumulation."""
    found = []
    for batch, accumulation in (("8", "1"), ("2", "4")):
        figures(str(tmp_path), batch, accumulation, subclass)
        found.append(_read(tmp_path))
    assert found[0] == pytest.approx(found[1], rel=SINGLE)


@pytest.mark.slow
def test_the_subclass_with_two_processes(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    launch(figures, tmp_path / "two", "2", "2", "yes", processes=2)
    figures(str(tmp_path), "8", "1", "yes")
    assert _read(tmp_path / "two") == pytest.approx(_read(tmp_path), rel=SINGLE)


def test_the_added_term_is_in_the_evaluation_once(tmp_path: Path) -> None:
    """Batches of 3, 3 and 2: a mean of the batches' means would be another number."""
    student, teacher = models()
    plain = trainer(tmp_path, model=student, teacher_model=teacher).evaluate()
    added = trainer(tmp_path, model=student, teacher_model=teacher, cls=ConfidentStudent)
    batch = collate(CASES["sequence_classification"].data(dtype=torch.float32))
    batch.pop("labels")
    with torch.no_grad():
        logits = student(**batch).logits.double()
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()
    wanted = (plain["eval_hard_labels"] + plain["eval_forward_kl"]) / 2 + 0.1 * float(entropy)
    assert added.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-6)


def test_the_objective_is_what_it_says(tmp_path: Path) -> None:
    student, teacher = models()
    ours = trainer(tmp_path, model=student, teacher_model=teacher, objective=2.0 * TopMargin(3.0))
    batch = collate(CASES["sequence_classification"].data(dtype=torch.float32))
    batch.pop("labels")
    margins = []
    for model in (student, teacher):
        with torch.no_grad():
            top = model(**batch).logits.double().sort(-1).values
        margins.append(3 * (top[:, -1] - top[:, -2]))
    wanted = float((margins[0] - margins[1]).square().mean())
    found = ours.evaluate()
    assert found["eval_top_margin"] == pytest.approx(wanted, rel=1e-4)
    assert found["eval_loss"] == pytest.approx(2 * wanted, rel=1e-4)
