"""Modules without a config as students and teachers, against plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plain_zoo import (
    FORMS,
    Perceptron,
    Recurrent,
    Tagger,
    Writer,
)
from small import Recorder, data, models, trainer
from torch import nn
from torch.nn import functional as F
from zoo import collate

from hf_distill import (
    register_task,
)
from hf_distill.tasks import HEADS


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_distill.tasks.HEADS", dict(HEADS))
    register_task(Recurrent, "sequence_classification")
    register_task(Tagger, "token_classification")
    register_task(Writer, "causal_lm")
    register_task("Convolutional", "image_classification")
    register_task(Perceptron, "sequence_classification")


def first_loss(ours: Any) -> float:
    """What the first training step logs."""
    recorder = Recorder()
    ours.add_callback(recorder)
    ours.train()
    return recorder.steps[0]["loss"]


def logits_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    found: Any = model.eval()(**{k: v for k, v in batch.items() if k != "labels"})
    if isinstance(found, dict):
        found = found["logits"]
    return (found if isinstance(found, torch.Tensor) else found[0]).detach()


def mixture(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> float:
    """(1 - alpha) CE + alpha T^2 KL of the default arguments, alpha 0.5 and T 2, by hand."""
    t, s = ((x.double() / 2).log_softmax(-1) for x in (teacher, student))
    kl = (t.exp() * (t - s)).sum(-1).mean() * 4
    return float(0.5 * F.cross_entropy(student.double(), labels) + 0.5 * kl)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("role", ["student", "teacher", "both"])
def test_every_form_of_answer(tmp_path: Path, form: str, role: str) -> None:
    """A tuple's or dict's logits that are not found are an AttributeError about `logits`."""
    student, teacher = models()
    student = Recurrent(form) if role != "teacher" else student
    teacher = Recurrent(form, width=12) if role != "student" else teacher
    batch = collate(data()[:4])
    expected = mixture(logits_of(student, batch), logits_of(teacher, batch), batch["labels"])
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        alpha=0.5,
        temperature=2.0,
        train_sampling_strategy="sequential",
    )
    assert first_loss(ours) == pytest.approx(expected, abs=1e-6)
    assert 0 <= ours.evaluate()["eval_agreement"] <= 1
