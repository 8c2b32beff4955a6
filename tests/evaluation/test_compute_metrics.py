"""What a script's `compute_metrics` may return, keep and be named like."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny_models import CASES, collate
from tiny_trainers import Recorder, accuracy, config, data, models, trainer
from torch import nn
from transformers import BertForSequenceClassification, EvalPrediction, Trainer

from hf_distill import (
    ForwardKL,
    HardLabels,
    Needs,
    Objective,
    Seq2SeqDistillationConfig,
    Seq2SeqDistillationTrainer,
    Term,
)


def decided() -> tuple[Any, Any]:
    """Both models with logits far apart, so that their decisions differ between examples."""
    pair = models()
    for model in pair:
        model.classifier.weight.data.mul_(40)
    return pair


def stock(folder: Path, model: Any, metric: Any, **options: Any) -> Trainer:
    """The judge: transformers' own trainer."""
    rows: Any = data()
    return Trainer(model, config(folder, **options), collate, rows, rows, compute_metrics=metric)


# ---- values of any kind --------------------------------------------------------------------------

WRITABLE: dict[str, Any] = {
    "confusion_matrix": [[1, 2], [3, 4]],
    "report": {"0": {"precision": 0.5}, "accuracy": 0.25},
    "pair": (1, 2),
    "nothing": None,
    "text": "fine",
    "passed": True,
    "recall": np.float32(0.5),
    "correct": np.int64(3),
    "precision": torch.tensor(0.75),
    "f1": float("nan"),
}
ANY = {**WRITABLE, "map": np.array([0.5, 0.25]), "auc": np.array(0.5), "score": torch.ones(2)}


@pytest.mark.parametrize("name", [*ANY, "all"])
def test_values_of_any_kind(tmp_path: Path, name: str) -> None:
    """`'<' not supported between instances of 'int' and 'list'` ended the run at the first
    evaluation."""
    given = ANY if name == "all" else {name: ANY[name]}

    def metric(prediction: EvalPrediction) -> dict[str, Any]:
        return {"accuracy": 0.5, **given}

    student, teacher = models()
    expected = stock(tmp_path, student, metric).evaluate()
    ours = trainer(tmp_path, model=student, teacher_model=teacher, compute_metrics=metric)
    found = ours.evaluate()
    for key in given:
        for side in ("", "teacher_"):
            value = found[f"eval_{side}{key}"]
            assert type(value) is type(expected[f"eval_{key}"])
            assert str(value) == str(expected[f"eval_{key}"])
    shares = {k.removeprefix("eval_retention_") for k in found if k.startswith("eval_retention_")}
    numbers = {"recall", "correct", "precision", "auc"}
    assert shares == {"accuracy", *(numbers & given.keys())}
    assert all(found[f"eval_retention_{key}"] == 1 for key in shares)


def test_a_run_with_values_of_any_kind(tmp_path: Path) -> None:
    """Logged, saved, drawn, resumed from and written into a card."""

    def metric(prediction: EvalPrediction) -> dict[str, Any]:
        return {**accuracy(prediction), **{k: v for k, v in WRITABLE.items() if k != "f1"}}

    options: dict[str, Any] = {
        "compute_metrics": metric,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "metric_for_best_model": "accuracy",
        "load_best_model_at_end": True,
    }
    trainer(tmp_path, **options).train()
    ours = trainer(tmp_path, **options)
    ours.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "eval_report" in entry]
    assert len(logged) == 2
    assert logged[-1]["eval_teacher_confusion_matrix"] == [[1, 2], [3, 4]]
    ours.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "accuracy" in card
    assert "confusion_matrix" not in card


def test_a_search_by_what_is_a_number(tmp_path: Path) -> None:
    """The default score is the sum of the metrics."""
    ours = trainer(tmp_path, compute_metrics=lambda p: {"accuracy": 0.25, "f1": 0.5, "matrix": [1]})
    found = ours.evaluate()  # transformers adds up this time as well
    assert ours._comparison.score(found) == pytest.approx(
        0.75 + found["eval_model_preparation_time"]
    )


# ---- what it keeps -------------------------------------------------------------------------------


def test_the_student_is_measured_last(tmp_path: Path) -> None:
    """A file of predictions was the teacher's."""
    student, teacher = decided()
    file = tmp_path / "predictions.json"

    def metric(prediction: EvalPrediction) -> dict[str, float]:
        chosen = np.asarray(prediction.predictions).argmax(-1)
        file.write_text(json.dumps(chosen.tolist()))
        return accuracy(prediction)

    ours = trainer(tmp_path, model=student, teacher_model=teacher, compute_metrics=metric)
    ours.evaluate()
    found = json.loads(file.read_text())
    rows: Any = data()
    for model in (student, teacher):
        theirs: Any = stock(tmp_path, model, None).predict(rows).predictions
        assert (theirs.argmax(-1).tolist() == found) == (model is student)


class Counted(nn.Module):
    """Counts what a model is asked."""

    def __init__(self, model: Any):
        super().__init__()
        self.calls = 0
        self.generations = 0
        model.register_forward_hook(self._count)
        if model.can_generate():
            self._generate, model.generate = model.generate, self._count_texts

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def _count_texts(self, *args: Any, **options: Any) -> Any:
        self.generations += 1
        return self._generate(*args, **options)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_evaluation_without_the_teacher(tmp_path: Path, alpha: float) -> None:
    """Where the loss needs no teacher, none is run; where it does, once a batch, for the loss."""
    student, teacher = decided()
    options: dict[str, Any] = {"model": student, "compute_metrics": accuracy, "alpha": alpha}
    whole = trainer(tmp_path, teacher_model=teacher, **options).evaluate()
    ours = trainer(tmp_path, teacher_model=teacher, eval_teacher=False, **options)
    counted, seen = Counted(teacher), []
    ours.compute_metrics = lambda p: (seen.append(1), accuracy(p))[1]
    found = ours.evaluate()
    assert counted.calls == (3 if alpha else 0)
    assert len(seen) == 1
    about = ("teacher_", "retention_", "agreement", "kl_")
    assert not [key for key in found if key.removeprefix("eval_").startswith(about)]
    assert found.keys() < whole.keys()
    for key in found.keys() - {key for key in found if "time" in key or "second" in key}:
        assert found[key] == pytest.approx(whole[key]), key
    ours.predict(data())
    assert counted.calls == (6 if alpha else 0)


@pytest.mark.parametrize("eval_teacher", [True, False])
def test_generated_text_without_the_teacher(tmp_path: Path, eval_teacher: bool) -> None:
    """The teacher wrote a text for every example; "gen_len" was retained as if longer were
    better."""
    case = CASES["seq2seq_lm"]
    student, teacher = case.models(torch.float32)
    rows = case.data(4, torch.float32)
    arguments = config(tmp_path).to_dict()
    kept = ("per_device_eval_batch_size", "use_cpu", "disable_tqdm", "report_to")
    args = Seq2SeqDistillationConfig(
        str(tmp_path),
        predict_with_generate=True,
        generation_max_length=5,
        eval_teacher=eval_teacher,
        dataloader_pin_memory=False,
        **{name: arguments[name] for name in kept},
    )

    def lengths(prediction: EvalPrediction) -> dict[str, float]:
        tokens = np.asarray(prediction.predictions)
        return {"gen_len": float((tokens > 0).sum(-1).mean()), "rougeL": 0.5}

    ours = Seq2SeqDistillationTrainer(
        student, args, collate, rows, rows, teacher_model=teacher, compute_metrics=lengths
    )
    counted = Counted(teacher)
    found = ours.evaluate()
    assert counted.generations == (2 if eval_teacher else 0)
    assert ("eval_teacher_gen_len" in found) == eval_teacher
    assert ("eval_retention_rougeL" in found) == eval_teacher
    assert "eval_retention_gen_len" not in found


# ---- its names -----------------------------------------------------------------------------------

NAMES = ("ece", "agreement", "forward_kl_divergence", "hard_labels", "forward_kl", "loss")
TAKEN = dict.fromkeys((*NAMES, "teacher_accuracy", "retention_accuracy"), 0.123)


@pytest.mark.parametrize("prefix", ["", "eval_"])
@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_the_trainer_uses_too(
    tmp_path: Path, name: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The user's 0.123 was replaced without a word."""

    def metric(prediction: EvalPrediction) -> dict[str, float]:
        return {**accuracy(prediction), prefix + name: 0.123}

    student, teacher = decided()
    plain = trainer(tmp_path, model=student, teacher_model=teacher, compute_metrics=accuracy)
    whole = plain.evaluate()
    ours = trainer(tmp_path, model=student, teacher_model=teacher, compute_metrics=metric)
    with caplog.at_level(logging.WARNING):
        found = ours.evaluate()
        ours.evaluate()
    assert found[f"eval_{name}"] == 0.123
    for key in whole.keys() - {f"eval_{name}"}:
        if not key.endswith(("time", "second")):
            assert found[key] == whole[key], key
    said = [message for message in caplog.messages if "what compute_metrics gives" in message]
    assert len(said) == 1
    assert repr(name) in said[0]


def test_all_of_its_names_are_kept_in_training(tmp_path: Path) -> None:
    """Also with a prefix of a set's own, and in the search for the best checkpoint."""
    record = Recorder()
    ours = trainer(
        tmp_path,
        objective=0.5 * HardLabels() + 0.5 * ForwardKL(),
        compute_metrics=lambda p: dict(TAKEN),
        eval_dataset={"one": data(), "two": data()},
        callbacks=[record],
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="two_ece",
        load_best_model_at_end=True,
        save_strategy="steps",
        save_steps=1,
    )
    ours.train()
    for name in ("one", "two"):
        logged = [logs for logs in record.logs if f"eval_{name}_ece" in logs]
        assert len(logged) == 2
        for logs in logged:
            assert {key: logs[f"eval_{name}_{key}"] for key in TAKEN} == TAKEN
    assert ours.state.best_metric == 0.123


@dataclass(frozen=True)
class Agree(Objective):
    """An objective of one's own, by the name of a figure of the trainer's."""

    name: ClassVar[str] = "agreement"
    needs: ClassVar[Needs] = Needs(logits=True)

    def terms(self, student: Any, teacher: Any, items: Any, context: Any) -> list[Term]:
        values = (student.logits - teacher.logits).square().mean(-1)
        return [Term(self.name, values, "items", items.masks["items"])]


class Agreed(Agree):
    """The remedy of the message."""

    name: ClassVar[str] = "agreement_loss"


def test_an_objective_by_the_name_of_a_figure_is_refused(tmp_path: Path) -> None:
    """Both were added up under one name: the mean of a loss and of an agreement."""
    with pytest.raises(ValueError, match=r"Agree is called 'agreement'.*Call it 'agreement_loss'"):
        trainer(tmp_path, objective=1.0 * Agree())
    student, teacher = decided()
    rows: Any = data()
    ours = trainer(tmp_path, model=student, teacher_model=teacher, objective=1.0 * Agreed())
    found = ours.evaluate()
    one, other = (stock(tmp_path, m, None).predict(rows).predictions for m in (student, teacher))
    one, other = np.asarray(one), np.asarray(other)
    assert found["eval_agreement"] == (one.argmax(-1) == other.argmax(-1)).mean()
    loss = float(((one - other) ** 2).mean())
    assert found["eval_agreement_loss"] == pytest.approx(loss, rel=1e-5)


# ---- labels that no forward names ----------------------------------------------------------------


class Unlabelled(BertForSequenceClassification):
    """A student whose `forward` takes no labels."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **_: Any) -> Any:
        return super().forward(input_ids, attention_mask)


@pytest.mark.parametrize("keep", [True, False])
def test_a_student_whose_forward_names_no_labels(tmp_path: Path, keep: bool) -> None:
    """It trained and had no accuracy in `evaluate()`, without a word."""
    student, teacher = decided()
    unlabelled = Unlabelled(student.config)
    unlabelled.load_state_dict(student.state_dict())
    ours = trainer(
        tmp_path,
        model=unlabelled,
        teacher_model=teacher,
        compute_metrics=accuracy,
        remove_unused_columns=not keep,
    )
    found = ours.evaluate()
    expected = stock(tmp_path, student, accuracy).evaluate()
    assert found["eval_accuracy"] == expected["eval_accuracy"]
    assert found["eval_hard_labels"] == pytest.approx(expected["eval_loss"], rel=0.1)
    labels: Any = ours.predict(data()).label_ids
    assert labels.tolist() == [row["labels"] for row in data()]
