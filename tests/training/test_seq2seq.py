"""`Seq2SeqDistillationTrainer`: metrics on generated text, of both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, TaskType
from tiny_models import PAD, collate
from tiny_trainers import data, models
from transformers import EvalPrediction, GenerationConfig, Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_distill import Seq2SeqDistillationConfig, Seq2SeqDistillationTrainer

ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 3,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "predict_with_generate": True,
    "generation_max_length": 7,
}
HEADS = ["seq2seq_lm", "speech_seq2seq"]


class Tokens:
    """A compute_metrics on token ids that keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[np.ndarray] = []

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        tokens = np.asarray(prediction.predictions)
        self.given.append(tokens)
        return {"mean_token": float(tokens[tokens >= 0].mean())}


def _trainer(folder: Path, name: str, **options: Any) -> Any:
    student, teacher = options.pop("models", None) or models(name)
    given = {k: options.pop(k) for k in ("compute_metrics", "peft_config") if k in options}
    args = Seq2SeqDistillationConfig(str(folder), **{**ARGUMENTS, **options})
    rows = data(name)
    return Seq2SeqDistillationTrainer(
        student, args, collate, rows, rows, teacher_model=teacher, **given
    )


def _stock(model: Any, folder: Path, rows: Any) -> Any:
    collator: Any = collate
    args = Seq2SeqTrainingArguments(str(folder), **ARGUMENTS)
    return Seq2SeqTrainer(model, args, collator).predict(rows, metric_key_prefix="eval")


@pytest.mark.parametrize("name", HEADS)
def test_both_models_generate(tmp_path: Path, name: str) -> None:
    """Teacher-forced tokens in place of generated ones make every teacher look excellent."""
    student, teacher = models(name)
    tokens = Tokens()
    ours = _trainer(tmp_path, name, models=(student, teacher), compute_metrics=tokens)
    rows: Any = data(name)
    figures = ours.evaluate()
    for given, model in zip(tokens.given, (teacher, student), strict=True):  # the student last
        np.testing.assert_array_equal(given, _stock(model, tmp_path, rows).predictions)
        assert (given[:, 7:] == PAD).all()  # padded, as by the stock trainer
    assert not np.array_equal(tokens.given[0], tokens.given[1])
    theirs, mine = (float(given[given >= 0].mean()) for given in tokens.given)
    assert figures["eval_mean_token"] == pytest.approx(mine)
    assert figures["eval_teacher_mean_token"] == pytest.approx(theirs)
    assert "eval_retention_mean_token" not in figures  # nobody knows whether more of it is better
    assert ours.model is student


@pytest.mark.parametrize("name", HEADS)
def test_generation_leaves_the_loss_alone(tmp_path: Path, name: str) -> None:
    """The stock trainer takes the loss of a step with generation from the model itself."""
    alone = _trainer(tmp_path, name, predict_with_generate=False).evaluate()
    both = _trainer(tmp_path, name, compute_metrics=Tokens()).evaluate()
    for key in ("eval_loss", "eval_hard_labels", "eval_forward_kl", "eval_agreement"):
        assert both[key] == alone[key]


def test_predictions_are_measured_with_the_student_last_too(tmp_path: Path) -> None:
    """A function that writes what it got last would write the teacher's texts."""
    student, teacher = models("seq2seq_lm")
    tokens, rows = Tokens(), data("seq2seq_lm")
    ours = _trainer(tmp_path, "seq2seq_lm", models=(student, teacher), compute_metrics=tokens)
    predicted = ours.predict(rows).predictions
    assert len(tokens.given) == 2
    np.testing.assert_array_equal(tokens.given[-1], predicted)
    np.testing.assert_array_equal(predicted, _stock(student, tmp_path, rows).predictions)
    asked: list[Any] = []
    teacher.generate = lambda *given, **options: asked.append(given)
    alone = Tokens()
    both = {"models": (student, teacher), "compute_metrics": alone, "eval_teacher": False}
    _trainer(tmp_path, "seq2seq_lm", **both).predict(rows)
    assert len(alone.given) == 1
    assert not asked


def test_arguments_of_generation_reach_both_models(tmp_path: Path) -> None:
    tokens = Tokens()
    ours = _trainer(tmp_path, "seq2seq_lm", compute_metrics=tokens)
    ours.evaluate(max_length=4, num_beams=2)
    for given in tokens.given:
        assert (given[:, 4:] == PAD).all()
        assert given[:, 1:4].any()


def test_prediction_with_and_without_labels(tmp_path: Path) -> None:
    """A test set has no labels; the stock trainer generates for it all the same."""
    student, teacher = models("seq2seq_lm")
    ours = _trainer(tmp_path, "seq2seq_lm", models=(student, teacher), compute_metrics=Tokens())
    labelled: Any = data("seq2seq_lm")
    bare: Any = [{"input_ids": row["input_ids"]} for row in labelled]
    for rows in (labelled, bare):
        found = ours.predict(rows)
        np.testing.assert_array_equal(
            found.predictions, _stock(student, tmp_path, rows).predictions
        )
        metrics: Any = found.metrics
        assert ("test_loss" in metrics) == ("test_mean_token" in metrics) == (rows is labelled)


def test_training_with_evaluation_by_generation(tmp_path: Path) -> None:
    ours = _trainer(
        tmp_path,
        "seq2seq_lm",
        compute_metrics=Tokens(),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="mean_token",
        generation_config=GenerationConfig(
            max_length=6, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1
        ),
    )
    before = ours.evaluate()["eval_loss"]
    ours.train()
    assert ours.evaluate()["eval_loss"] < before
    assert ours.state.best_metric is not None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft
def test_an_adapted_student_generates_with_its_adapter(tmp_path: Path) -> None:
    tokens = Tokens()
    lora = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=4, init_lora_weights=False)
    ours = _trainer(tmp_path, "seq2seq_lm", compute_metrics=tokens, peft_config=lora)
    ours.evaluate()
    rows = collate(data("seq2seq_lm")[:3])
    model: Any = ours.model
    with torch.no_grad():
        wanted = model.generate(
            input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], max_length=7
        )
    np.testing.assert_array_equal(tokens.given[1][:3, : wanted.shape[1]], wanted.numpy())
    with torch.no_grad(), model.disable_adapter():
        plain = model.generate(
            input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], max_length=7
        )
    assert not torch.equal(plain, wanted)
