"""Metrics of one class per example, against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk
from sklearn.preprocessing import label_binarize

from hf_distill.evaluation.scoring import METRICS, areas


def drawn(classes: int, size: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=size - classes)])
    logits = rng.normal(size=(size, classes)) + 1.5 * np.eye(classes)[labels]
    return logits, labels


def value(name: str, logits: Any, labels: Any) -> float:
    metric = METRICS[name]
    return metric.value(metric.units(logits, labels))


def average_precision(logits: np.ndarray, labels: np.ndarray) -> float:
    p, classes = softmax(logits, -1), logits.shape[1]
    if classes == 2:
        return float(sk.average_precision_score(labels, p[:, 1]))
    truth = label_binarize(labels, classes=range(classes))
    return float(sk.average_precision_score(truth, p, average="macro"))


def auc(logits: np.ndarray, labels: np.ndarray) -> float:
    p = softmax(logits, -1)
    given = p[:, 1] if p.shape[1] == 2 else p
    return float(sk.roc_auc_score(labels, given, multi_class="ovr", average="macro"))


def brier(logits: np.ndarray, labels: np.ndarray) -> float:
    truth = np.eye(logits.shape[1])[labels]
    return float(sk.brier_score_loss(truth, softmax(logits, -1), scale_by_half=False))


def of_classes(score: Callable[..., Any], **options: Any) -> Callable[..., float]:
    return lambda logits, labels: float(score(labels, logits.argmax(-1), **options))


JUDGES: dict[str, Callable[..., float]] = {
    "accuracy": of_classes(sk.accuracy_score),
    "balanced_accuracy": of_classes(sk.balanced_accuracy_score),
    "macro_f1": of_classes(sk.f1_score, average="macro"),
    "micro_f1": of_classes(sk.f1_score, average="micro"),
    "weighted_f1": of_classes(sk.f1_score, average="weighted"),
    "matthews_correlation": of_classes(sk.matthews_corrcoef),
    "log_loss": lambda logits, labels: float(sk.log_loss(labels, softmax(logits, -1))),
    "brier": brier,
    "macro_auc": auc,
    "average_precision": average_precision,
}


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("name", JUDGES)
def test_values_are_those_of_scikit_learn(name: str, classes: int) -> None:
    """A figure under a well-known name would be another figure."""
    for seed in range(3):
        logits, labels = drawn(classes, seed=seed)
        assert value(name, logits, labels) == pytest.approx(JUDGES[name](logits, labels), abs=1e-12)


def test_ties_of_areas() -> None:
    """Of equal scores the order in the set would decide."""
    rng = np.random.default_rng(2)
    scores, positive = rng.integers(4, size=50).astype(float), rng.random(50) < 0.3
    for area, judge in (
        (areas.roc_area, sk.roc_auc_score),
        (areas.average_precision, sk.average_precision_score),
    ):
        times = rng.integers(3, size=50)
        expected = judge(positive.repeat(times), scores.repeat(times))
        assert area(scores, positive)(times.astype(float)) == pytest.approx(expected, abs=1e-12)


def test_f1_of_two_classes() -> None:
    """F1 of class 0, or a mean over both, has the same name in other tools."""
    logits, labels = drawn(2)
    assert value("f1", logits, labels) == pytest.approx(sk.f1_score(labels, logits.argmax(-1)))


def test_top_5_accuracy() -> None:
    """Off by one it would be the accuracy of the first four or six classes."""
    logits, labels = np.random.default_rng(1).normal(size=(80, 9)), np.arange(80) % 9
    expected = sk.top_k_accuracy_score(labels, logits, k=5)
    assert value("top_5_accuracy", logits, labels) == pytest.approx(expected)
    tied = np.zeros((6, 6))  # of equal logits the first five classes come first
    assert value("top_5_accuracy", tied, np.arange(6)) == pytest.approx(5 / 6)


def test_classes_that_do_not_occur() -> None:
    """A class that is neither a label nor predicted has no F1; one that is only predicted has 0."""
    logits = np.eye(5)[[0, 1, 1, 3]]
    labels = np.array([0, 1, 1, 1])
    for name in ("balanced_accuracy", "macro_f1", "weighted_f1", "matthews_correlation"):
        with np.errstate(all="ignore"), pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)  # of the class without labels
            assert value(name, logits, labels) == pytest.approx(JUDGES[name](logits, labels)), name


def test_one_class_only() -> None:
    """Undefined figures of scikit-learn are 0 by its convention, not NaN."""
    logits, labels = np.eye(2)[[1, 1, 1]], np.array([1, 1, 1])
    assert value("matthews_correlation", logits, labels) == 0.0
    assert value("macro_f1", logits, labels) == value("f1", logits, labels) == 1.0
    assert value("f1", np.eye(2)[[1, 0]], np.array([0, 0])) == 0.0


@pytest.mark.parametrize("name", [*JUDGES, "top_5_accuracy"])
def test_unlabelled_examples_do_not_count(name: str) -> None:
    """Padding would count as errors; NaN logits of padding as an overflow."""
    logits, labels = drawn(7)
    more = np.concatenate([logits, np.full((3, 7), np.nan)])
    assert value(name, more, [*labels, -100, -100, -100]) == value(name, logits, labels)


def test_zero_probability_of_a_label_is_an_infinite_loss() -> None:
    """A clipped probability would hide that the model excludes a class that occurs."""
    metric = METRICS["log_loss"]
    units = metric.units([[0.0, -np.inf], [0.0, 0.0]], [1, 1])
    assert metric.value(units) == np.inf
    assert metric.interval(units, samples=20)[1] == np.inf


@pytest.mark.parametrize(
    ("name", "logits", "labels", "message"),
    [
        ("accuracy", np.zeros((3, 2)), [0, 1], r"one label per item.*\(3,\).*\(2,\)"),
        ("accuracy", np.zeros((2, 2)), [0, 2], "class ids from 0 to 1, got int64 from 0 to 2"),
        ("accuracy", np.zeros((2, 2)), [0.0, 1.0], "class ids from 0 to 1, got float64"),
        ("accuracy", [[np.nan, 0.0]], [0], "Expected finite logits"),
        ("accuracy", np.zeros(3), [0, 1, 1], r"shape \(items, classes\)"),
        ("accuracy", np.zeros((3, 1)), [0, 0, 0], "at least two classes.*macro_f1_labels"),
        ("accuracy", np.zeros((2, 2)), [-100, -100], "at least one example for accuracy"),
        ("accuracy", np.zeros((0, 2)), [], "at least one example for accuracy"),
        ("f1", np.zeros((3, 3)), [0, 1, 2], "got 3 classes. Choose macro_f1"),
        ("f1", np.eye(2)[[0, 0]], [0, 0], "Expected examples of class 1"),
        ("macro_auc", np.zeros((2, 2)), [0, 0], r"no positive one of class \[0\]"),
        ("macro_auc", np.zeros((2, 3)), [0, 1], r"no positive one of class \[2\]"),
        ("average_precision", np.zeros((2, 2)), [0, 0], r"no positive one"),
        ("top_5_accuracy", np.zeros((2, 5)), [0, 1], "at least 6. Choose accuracy"),
    ],
)
def test_bad_inputs(name: str, logits: Any, labels: Any, message: str) -> None:
    """Each would be some figure."""
    with pytest.raises(ValueError, match=message):
        value(name, logits, labels)
