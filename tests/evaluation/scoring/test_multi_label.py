"""Metrics of several labels per example, against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as sk

from hf_distill.evaluation.scoring import METRICS

RNG = np.random.default_rng(0)
LABELS = (RNG.random((40, 4)) < 0.4).astype(int)
LOGITS = np.round(RNG.normal(size=(40, 4)) + LABELS, 1)  # rounded: there are ties


def value(name: str, logits: Any, labels: Any) -> float:
    metric = METRICS[name]
    return metric.value(metric.units(logits, labels))


def test_values_are_those_of_scikit_learn() -> None:
    """A threshold at a probability of 0, or a mean over examples, has the same name elsewhere."""
    chosen = (expit(LOGITS) > 0.5).astype(int)
    expected = {
        "micro_f1_labels": sk.f1_score(LABELS, chosen, average="micro"),
        "macro_f1_labels": sk.f1_score(LABELS, chosen, average="macro"),
        "exact_match_labels": sk.accuracy_score(LABELS, chosen),
        "macro_auc_labels": sk.roc_auc_score(LABELS, LOGITS, average="macro"),
        "mean_average_precision_labels": sk.average_precision_score(LABELS, LOGITS),
    }
    assert {*expected} == {n for n, m in METRICS.items() if m.form == "multi_label"}
    for name, figure in expected.items():
        assert value(name, LOGITS, LABELS) == pytest.approx(figure, abs=1e-12), name


def test_a_label_that_never_occurs() -> None:
    """Macro F1 counts it as 0, as scikit-learn does: absence is not success."""
    labels, logits = LABELS.copy(), LOGITS.copy()
    labels[:, 2], logits[:, 2] = 0, -1.0
    expected = sk.f1_score(labels, logits > 0, average="macro", zero_division=0)
    assert value("macro_f1_labels", logits, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "logits", "labels", "message"),
    [
        ("micro_f1_labels", LOGITS, LABELS[:, :3], r"\(40, 4\) and \(40, 3\)"),
        ("micro_f1_labels", LOGITS, LABELS[:, 0], r"\(40, 4\) and \(40,\)"),
        ("micro_f1_labels", LOGITS * np.nan, LABELS, "NaN for 40 of 40 examples"),
        ("micro_f1_labels", LOGITS, LABELS - 100, r"labels 0 or 1, got \[-100.0, -99.0\]"),
        ("micro_f1_labels", -np.ones((2, 2)), np.zeros((2, 2)), "at least one label that is 1"),
        ("macro_auc_labels", LOGITS, LABELS * [1, 0, 1, 1], r"no positive one of class \[1\]"),
        ("macro_auc_labels", LOGITS, LABELS | [0, 1, 0, 0], r"no negative one of class \[1\]"),
        ("exact_match_labels", LOGITS[:0], LABELS[:0], "at least one example"),
    ],
)
def test_bad_inputs(name: str, logits: Any, labels: Any, message: str) -> None:
    """Each would be some figure."""
    with pytest.raises(ValueError, match=message):
        value(name, logits, labels)
