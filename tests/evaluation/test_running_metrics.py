"""What `evaluate()` and `predict()` say: as the stock trainer, and about both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CASES, collate
from tiny_trainers import (
    Recorder,
    accuracy,
    config,
    data,
    log_softmax,
    models,
    trainer,
)
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer

from hf_distill import ForwardKL, HardLabels, HiddenStates

EVERYTHING = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0) + HiddenStates()
HEADS = [name for name, case in CASES.items() if case.label_keys]


def decided(name: str = "sequence_classification") -> tuple[Any, Any]:
    """Both models with logits far apart, so that their decisions differ between examples."""
    pair = models(name)
    for model in pair:
        model.classifier.weight.data.mul_(40)
    return pair


def logits_of(model: nn.Module, rows: list[dict[str, Any]]) -> np.ndarray:
    """The model alone, example by example."""
    model.eval()
    with torch.no_grad():
        found = []
        for row in rows:
            inputs = {k: v for k, v in collate([row]).items() if k != "labels"}
            found.append(model(**inputs).logits)
    return torch.cat(found).numpy()


def predicted(model: nn.Module, folder: Path, rows: Any, **arguments: Any) -> Any:
    """What the stock trainer predicts."""
    collator: Any = collate
    stock = Trainer(model, config(folder, **arguments), collator)
    return stock.predict(rows)


def flat(values: Any) -> list[np.ndarray]:
    """The arrays of a nested prediction."""
    if isinstance(values, (tuple, list)):
        return [array for value in values for array in flat(value)]
    return [np.asarray(values)]


class Given:
    """A compute_metrics that keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[EvalPrediction] = []

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        self.calls.append(prediction)
        return {"first": float(flat(prediction.predictions)[0].flat[0])}


# ---- as the stock trainer ----------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_predictions_are_those_of_the_stock_trainer(tmp_path: Path, name: str) -> None:
    """An existing compute_metrics indexes what it is given: order, nesting and padding count."""
    student, teacher = models(name)
    rows, given = data(name), Given()
    ours = trainer(tmp_path, name, model=student, teacher_model=teacher, compute_metrics=given)
    found = ours.predict(rows)
    theirs = predicted(student, tmp_path, rows)
    assert isinstance(found.predictions, tuple) == isinstance(theirs.predictions, tuple)
    for one, other in zip(flat(found.predictions), flat(theirs.predictions), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(flat(found.label_ids), flat(theirs.label_ids), strict=True):
        np.testing.assert_array_equal(one, other)
    both, mine = given.calls  # the student last
    for one, other in zip(flat(mine.predictions), flat(theirs.predictions), strict=True):
        np.testing.assert_array_equal(one, other)
    assert isinstance(both.predictions, tuple) == isinstance(mine.predictions, tuple)
    if name in ("semantic_segmentation", "question_answering", "causal_lm"):
        return  # without what does not count: see the next test
    of_teacher = flat(predicted(teacher, tmp_path, rows).predictions)[0]
    np.testing.assert_allclose(flat(both.predictions)[0], of_teacher, rtol=1e-5, atol=1e-5)


def _spans(p: EvalPrediction) -> dict[str, float]:
    predictions, labels = (np.asarray(pair) for pair in (p.predictions, p.label_ids))
    start, end = predictions.argmax(-1)
    wanted_start, wanted_end = labels
    return {"exact": float(((start == wanted_start) & (end == wanted_end)).mean())}


def _next(p: EvalPrediction) -> dict[str, float]:
    labels, guess = np.asarray(p.label_ids)[:, 1:], np.asarray(p.predictions).argmax(-1)[:, :-1]
    return {"accuracy": float((guess == labels)[labels != -100].mean())}


def _pixels(p: EvalPrediction) -> dict[str, float]:
    labels = torch.from_numpy(np.asarray(p.label_ids))
    logits = torch.from_numpy(np.asarray(p.predictions))
    logits = nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
    right = logits.argmax(1) == labels
    return {"accuracy": float(right[labels != 255].double().mean())}


METRICS = {
    "sequence_classification": accuracy,
    "token_classification": accuracy,
    "image_classification": accuracy,
    "question_answering": _spans,
    "causal_lm": _next,
    "semantic_segmentation": _pixels,
}


@pytest.mark.parametrize("name", METRICS)
def test_the_teachers_metrics_are_those_of_the_teacher_alone(tmp_path: Path, name: str) -> None:
    """A teacher measured on other labels, other positions or other classes looks better."""
    _, teacher = models(name)
    metric, rows = METRICS[name], data(name, rows=8)
    ours = trainer(tmp_path, name, teacher_model=teacher, compute_metrics=metric)
    figures = ours.evaluate(rows)
    stock = Trainer(teacher, config(tmp_path), collate, compute_metrics=metric).evaluate(rows)
    for key in metric(EvalPrediction(*predicted(teacher, tmp_path, rows)[:2])):
        assert figures[f"eval_teacher_{key}"] == pytest.approx(stock[f"eval_{key}"])
        if stock[f"eval_{key}"]:
            kept = figures[f"eval_{key}"] / figures[f"eval_teacher_{key}"]
            assert figures[f"eval_retention_{key}"] == pytest.approx(kept)


def test_preprocessing_of_logits_serves_both_models(tmp_path: Path) -> None:
    student, teacher = decided()
    given, shapes = Given(), []

    def to_classes(logits: Tensor, labels: Tensor) -> Tensor:
        shapes.append((tuple(logits.shape[1:]), len(logits) == len(labels)))
        return logits.argmax(-1)

    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        compute_metrics=given,
        preprocess_logits_for_metrics=to_classes,
    )
    figures = ours.evaluate()
    rows = data()
    for call, model in zip(given.calls, (teacher, student), strict=True):
        np.testing.assert_array_equal(call.predictions, logits_of(model, rows).argmax(-1))
    assert set(shapes) == {((3,), True)}
    assert {"eval_first", "eval_teacher_first"} <= figures.keys()
    assert ours.preprocess_logits_for_metrics is to_classes
    assert ours.compute_metrics is given


def test_metrics_by_batch(tmp_path: Path) -> None:
    """Such a function keeps sums of its own: a teacher's batches would fall into the student's."""
    seen: list[float] = []

    def running(prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        logits: Any = prediction.predictions
        right = logits.argmax(-1) == prediction.label_ids
        seen.extend(right.double().tolist())
        return {"accuracy": sum(seen) / len(seen)} if compute_result else {}

    student, teacher = decided()
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        compute_metrics=running,
        batch_eval_metrics=True,
    )
    figures = ours.evaluate()
    assert len(seen) == 8
    stock = trainer(tmp_path, model=student, teacher_model=teacher, compute_metrics=accuracy)
    assert figures["eval_accuracy"] == stock.evaluate()["eval_accuracy"]
    assert "eval_teacher_accuracy" not in figures
    assert "eval_agreement" in figures


def test_batches_that_are_not_concatenated(tmp_path: Path) -> None:
    """`eval_do_concat_batches=False` gives a list by batch, not a pair by model."""
    student, teacher = decided()
    given, rows = Given(), data()
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        compute_metrics=given,
        eval_do_concat_batches=False,
    )
    found = ours.predict(rows)
    theirs = predicted(student, tmp_path, rows, eval_do_concat_batches=False)
    for predictions in (found.predictions, given.calls[1].predictions):
        assert [len(p) for p in predictions] == [3, 3, 2]
        for one, other in zip(predictions, theirs.predictions, strict=True):
            np.testing.assert_array_equal(one, other)
    of_teacher = np.concatenate(given.calls[0].predictions)
    np.testing.assert_allclose(of_teacher, logits_of(teacher, rows), rtol=1e-5, atol=1e-5)


def test_labels_changed_in_place_do_not_reach_the_teachers_metrics(tmp_path: Path) -> None:
    """The usual `labels[labels == -100] = pad` would give the second model other labels."""

    def careless(prediction: EvalPrediction) -> dict[str, float]:
        labels: Any = prediction.label_ids
        figures = {"labelled": float((labels != -100).sum())}
        labels[labels == -100] = 0
        return figures

    figures = trainer(tmp_path, "token_classification", compute_metrics=careless).evaluate()
    wanted = sum(label != -100 for row in data("token_classification") for label in row["labels"])
    assert figures["eval_labelled"] == figures["eval_teacher_labelled"] == wanted


def test_inputs_and_losses_for_metrics(tmp_path: Path) -> None:
    given = Given()
    ours = trainer(tmp_path, compute_metrics=given, include_for_metrics=["inputs", "loss"])
    figures = ours.evaluate()
    rows = data()
    for call in given.calls:
        ids: Any = call.inputs
        assert [row[row >= 3].tolist() for row in ids] == [row["input_ids"] for row in rows]
        losses: Any = call.losses
        assert np.isfinite(losses).all()
    # the last batch is smaller: transformers' mean of batch means is only close to the loss
    assert figures["eval_loss"] == pytest.approx(float(losses.mean()), rel=0.1)


def test_several_evaluation_sets(tmp_path: Path) -> None:
    student, teacher = decided()
    record = Recorder()
    sets: Any = {"first": data()[:5], "second": data()[5:]}
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        compute_metrics=accuracy,
        eval_dataset=sets,
        eval_strategy="epoch",
        callbacks=[record],
        learning_rate=0.0,
    )
    ours.train()
    logged = {key: value for logs in record.logs for key, value in logs.items()}
    for name, rows in sets.items():
        expected = accuracy(
            EvalPrediction(logits_of(student, rows), np.array([r["labels"] for r in rows]))
        )
        assert logged[f"eval_{name}_accuracy"] == pytest.approx(expected["accuracy"])
        for key in ("loss", "forward_kl", "agreement", "teacher_accuracy", "ece"):
            assert f"eval_{name}_{key}" in logged


# ---- prediction --------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("objective", [EVERYTHING, 1.0 * ForwardKL()])
def test_prediction_returns_the_student_alone(
    tmp_path: Path, labelled: bool, objective: Any
) -> None:
    student, teacher = models()
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        compute_metrics=accuracy,
        objective=objective,
    )
    rows = data()
    if not labelled:
        rows = [{"input_ids": row["input_ids"]} for row in rows]
    found = ours.predict(rows)
    np.testing.assert_allclose(found.predictions, logits_of(student, rows), rtol=1e-5, atol=1e-6)
    metrics: Any = found.metrics
    assert (found.label_ids is None) == (not labelled)
    assert ("test_accuracy" in metrics) == labelled
    assert ("test_loss" in metrics) == (labelled or objective is not EVERYTHING)


def test_unlabelled_evaluation_data(tmp_path: Path) -> None:
    """The stock trainer gives no eval_loss at all, and the best checkpoint cannot be chosen."""
    rows = [{"input_ids": row["input_ids"]} for row in data()]
    ours = trainer(tmp_path, train_dataset=rows, eval_dataset=rows, alpha=1.0, temperature=1.0)
    figures = ours.evaluate()
    assert figures["eval_loss"] == pytest.approx(figures["eval_forward_kl_divergence"], rel=1e-6)
    assert "eval_ece" not in figures


# ---- both models side by side ------------------------------------------------------------------


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, with 15 bins (b/15, (b+1)/15]."""
    probabilities = np.exp(log_softmax(logits))
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            error += inside.mean() * gap
    return float(error)


@pytest.mark.parametrize("name", ["sequence_classification", "token_classification"])
def test_figures_about_both_models(tmp_path: Path, name: str) -> None:
    """Against numpy in float64, from the logits of either model alone; batches of 3, 3 and 2."""
    student, teacher = decided(name)
    rows = data(name)
    ours = trainer(tmp_path, name, model=student, teacher_model=teacher, objective=EVERYTHING)
    figures = ours.evaluate()
    logits: list[np.ndarray] = []
    for model in (student, teacher):
        each = [logits_of(model, [row]) for row in rows]
        logits.append(np.concatenate([x.reshape(-1, x.shape[-1]) for x in each]))
    labels = np.concatenate([np.atleast_1d(row["labels"]) for row in rows])
    mask = labels != -100
    s, t, labels = logits[0][mask], logits[1][mask], labels[mask]
    p, q = log_softmax(t), log_softmax(s)
    softened = 4 * (np.exp(log_softmax(t / 2)) * (log_softmax(t / 2) - log_softmax(s / 2))).sum(-1)
    wanted = {
        "agreement": (s.argmax(-1) == t.argmax(-1)).mean(),
        "forward_kl_divergence": (np.exp(p) * (p - q)).sum(-1).mean(),
        "reverse_kl_divergence": (np.exp(q) * (q - p)).sum(-1).mean(),
        "ece": expected_calibration_error(s, labels),
        "hard_labels": -q[np.arange(len(labels)), labels].mean(),
        "forward_kl": softened.mean(),
    }
    assert 0 < wanted["agreement"] < 1
    for key, value in wanted.items():
        assert figures[f"eval_{key}"] == pytest.approx(float(value), rel=1e-5), key
    parts = 0.5 * figures["eval_hard_labels"] + 0.5 * figures["eval_forward_kl"]
    parts += figures["eval_hidden_states"]
    assert figures["eval_loss"] == pytest.approx(parts, rel=1e-9)
