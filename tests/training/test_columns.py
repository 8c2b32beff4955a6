"""Which columns of the data reach a model, against the stock `Trainer` and plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from tiny_models import LABELS, collate
from tiny_trainers import Recorder, accuracy, data, models, trainer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from hf_distill import (
    AuxiliaryHead,
    CachedTeacher,
    ForwardKL,
    HardLabels,
    HardTeacherLabels,
    ModelTeacher,
    register_task,
    write_cache,
)
from hf_distill.models.tasks import CUSTOM_TASKS

tf: Any = transformers
PICTURES = "image_classification"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_distill.models.tasks.CUSTOM_TASKS", dict(CUSTOM_TASKS))


def first_loss(ours: Any) -> float:
    recorder = Recorder()
    ours.add_callback(recorder)
    ours.train()
    return recorder.steps[0]["loss"]


class PassesOn(tf.BertForSequenceClassification):  # type: ignore[misc]
    """A subclass that passes everything on."""

    def forward(self, **inputs: Any) -> Any:
        return super().forward(**inputs)


class TakesAll(nn.Module):
    """A module whose inputs have no names."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(40, 8)
        self.classifier = nn.Linear(8, LABELS)
        self.classifier.weight.data.mul_(3)

    def forward(self, **inputs: Tensor) -> Tensor:
        assert set(inputs) == {"input_ids", "attention_mask"}  # no labels
        mask = inputs["attention_mask"][..., None]
        states = (self.embeddings(inputs["input_ids"]) * mask).sum(1) / mask.sum(1)
        logits: Tensor = self.classifier(states)
        return logits


def passing_on(role: int = 0) -> Any:
    like = models()[role]
    model = PassesOn(like.config)
    model.load_state_dict(like.state_dict())
    return model


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("listed", [True, False])
def test_a_forward_that_passes_everything_on(tmp_path: Path, remove: bool, listed: bool) -> None:
    """By its signature it takes nothing, and gets nothing: the stock `Trainer` without removal of
    columns says what is right."""
    rows = [{**row, "text": "no input"} for row in data()]
    given = rows if listed else datasets.Dataset.from_list(rows)

    def tensors(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        return collate([{k: v for k, v in e.items() if k != "text"} for e in examples])

    options = {"remove_unused_columns": remove, "train_dataset": given, "eval_dataset": given}
    options |= {"data_collator": tensors, "train_sampling_strategy": "sequential"}
    ours = trainer(tmp_path, model=passing_on(), objective=1.0 * HardLabels(), **options)
    arguments = TrainingArguments(
        str(tmp_path / "stock"),
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=4,
        max_steps=1,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        disable_tqdm=True,
    )
    stock = Trainer(passing_on(), arguments, train_dataset=given, data_collator=tensors)
    assert first_loss(ours) == pytest.approx(stock.train().training_loss, rel=1e-6)
    taught = trainer(tmp_path, model=passing_on(), teacher_model=passing_on(1), **options)
    plain = trainer(tmp_path, **options)
    assert first_loss(taught) == first_loss(plain)


@pytest.mark.parametrize("remove", [True, False])
def test_a_module_that_takes_anything(tmp_path: Path, remove: bool) -> None:
    """All columns that are no labels are its inputs, for a student, a teacher and a cache."""
    register_task(TakesAll, "sequence_classification")
    rows = data()
    batch = collate(rows[:4])
    student, teacher = TakesAll(), TakesAll()
    ours, theirs = (
        m(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).double().detach()
        for m in (student, teacher)
    )
    kl = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="none")
    expected = float(kl.sum(-1).mean())
    folder = write_cache(tmp_path / "cache", ModelTeacher(teacher), rows, collate, say=len)
    for each in (teacher, CachedTeacher(folder)):
        found = trainer(
            tmp_path / "out",
            model=TakesAll(),
            teacher_model=each,
            objective=1.0 * ForwardKL(1.0),
            remove_unused_columns=remove,
            train_sampling_strategy="sequential",
        )
        found.model.load_state_dict(student.state_dict())
        assert first_loss(found) == pytest.approx(expected, rel=1e-5)


def deit(kind: str = "DeiTForImageClassificationWithTeacher", layers: int = 2) -> Any:
    config = tf.DeiTConfig(
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=32,
        patch_size=16,
        num_labels=LABELS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = getattr(tf, kind)(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    return model


def test_labels_are_kept_whatever_the_forward_takes(tmp_path: Path) -> None:
    """DeiT with a teacher takes no labels: they would be dropped, and then be asked for."""
    rows = datasets.Dataset.from_list(
        [{**r, "pixel_values": r["pixel_values"].tolist()} for r in data(PICTURES)]
    ).with_format("torch")
    student = deit()
    ours = trainer(
        tmp_path,
        PICTURES,
        model=student,
        objective=1.0 * HardLabels(),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=accuracy,
        train_sampling_strategy="sequential",
    )
    batch = collate(data(PICTURES)[:4])
    logits = student.eval()(pixel_values=batch["pixel_values"]).logits
    expected = F.cross_entropy(logits, batch["labels"]).item()
    assert first_loss(ours) == pytest.approx(expected, rel=1e-5)


def test_each_head_has_its_own_loss(tmp_path: Path) -> None:
    """DeiT's hard distillation (arXiv 2012.12877, equation 3): the class token learns the labels,
    the distillation token the teacher's decision. On the mean of both it is another loss."""
    student, teacher = deit(), models(PICTURES)[1].eval()
    rows = data(PICTURES)
    goal = 0.5 * AuxiliaryHead("cls_classifier", HardLabels())
    goal = goal + 0.5 * AuxiliaryHead("distillation_classifier", HardTeacherLabels())
    options: dict[str, Any] = {"train_dataset": rows, "eval_dataset": rows}
    ours = trainer(
        tmp_path,
        PICTURES,
        model=student,
        teacher_model=teacher,
        objective=goal,
        train_sampling_strategy="sequential",
        **options,
    )
    batch = collate(rows[:4])
    with torch.no_grad():
        out = student.eval()(pixel_values=batch["pixel_values"])
        decided = teacher(pixel_values=batch["pixel_values"]).logits.argmax(-1)
    expected = 0.5 * F.cross_entropy(out.cls_logits, batch["labels"])
    expected = expected + 0.5 * F.cross_entropy(out.distillation_logits, decided)
    assert first_loss(ours) == pytest.approx(expected.item(), rel=1e-5)
    figures = ours.evaluate()
    assert {"eval_hard_labels_cls_classifier", "eval_agreement"} <= figures.keys()
    with pytest.raises(ValueError, match=r"Expected logits \(4, 3\) from 'deit'.*got \(4, 6, 16\)"):
        trainer(
            tmp_path,
            PICTURES,
            model=deit(),
            objective=1.0 * AuxiliaryHead("deit", HardLabels()),
            **options,
        )
