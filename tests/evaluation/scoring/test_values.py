"""Metrics of numbers, against scikit-learn and scipy; perplexity, against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn import metrics as sk

from hf_distill.evaluation.scoring import METRICS

RNG = np.random.default_rng(0)
TRUE = np.round(1000 + RNG.normal(size=(30, 3)), 1)  # a large mean and ties
OURS = np.round(TRUE + RNG.normal(size=(30, 3)), 1)


def value(name: str, predictions: Any, references: Any) -> float:
    metric = METRICS[name]
    return metric.value(metric.units(predictions, references))


def test_values_are_those_of_scikit_learn_and_scipy() -> None:
    """A variance as a difference of large sums would have no correct digit here."""
    y, p = TRUE[:, 0], OURS[:, 0]
    expected = {
        "mse": sk.mean_squared_error(y, p),
        "rmse": sk.root_mean_squared_error(y, p),
        "mae": sk.mean_absolute_error(y, p),
        "r2": sk.r2_score(y, p),
        "pearson": scipy.stats.pearsonr(p, y)[0],
        "spearman": scipy.stats.spearmanr(p, y)[0],
        "similarity_pearson": scipy.stats.pearsonr(p, y)[0],
        "similarity_spearman": scipy.stats.spearmanr(p, y)[0],
    }
    assert {*expected} == {n for n, m in METRICS.items() if m.form in ("values", "pairs")}
    for name, figure in expected.items():
        assert value(name, p, y) == pytest.approx(figure, rel=1e-9), name
        assert value(name, p[:, None], y) == value(name, p, y)  # a head with one output


def test_several_columns() -> None:
    """Columns that are pooled would correlate by their means alone."""
    assert value("mse", OURS, TRUE) == pytest.approx(sk.mean_squared_error(TRUE, OURS))
    assert value("mae", OURS, TRUE) == pytest.approx(sk.mean_absolute_error(TRUE, OURS))
    assert value("r2", OURS, TRUE) == pytest.approx(sk.r2_score(TRUE, OURS))
    expected = [scipy.stats.spearmanr(OURS[:, c], TRUE[:, c])[0] for c in range(3)]
    assert value("spearman", OURS, TRUE) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(
    ("name", "predictions", "references", "message"),
    [
        ("mse", [1.0, 2.0], [1.0], r"\(2,\) and \(1,\)"),
        ("mse", [1.0, np.nan], [1.0, 2.0], "finite predictions, got nan for example 1"),
        ("mse", [1.0, 2.0], [np.inf, 2.0], "finite references, got inf for example 0"),
        ("r2", [1.0, 2.0], [0.1, 0.1], "references that are not all equal, got 2 times 0.1"),
        ("pearson", [0.1, 0.1, 0.1], [1, 2, 3], "predictions that are not all equal"),
        ("spearman", [1.0], [1.0], "not all equal, got 1 times"),
        ("mae", [], [], "at least one example"),
        ("token_perplexity", [1.0], [[1]], r"\(1,\) and \(1, 1\)"),
        ("token_perplexity", [1.0, np.nan], [1, 1], "for document 1"),
        ("token_perplexity", [0.0], [0], "1 references that are all empty"),
    ],
)
def test_bad_inputs(name: str, predictions: Any, references: Any, message: str) -> None:
    """Each would be NaN, or a figure of rounding errors."""
    with pytest.raises(ValueError, match=message):
        value(name, predictions, references)


def test_perplexity_is_that_of_all_tokens() -> None:
    """A mean of the documents' perplexities counts short ones too much."""
    torch.manual_seed(0)
    logits, targets = torch.randn(12, 5).double(), torch.randint(5, (12,))
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none").numpy()
    documents = [nats[:2], nats[2:9], nats[9:9], nats[9:]]
    found = value("token_perplexity", [d.sum() for d in documents], [len(d) for d in documents])
    assert found == pytest.approx(float(torch.nn.functional.cross_entropy(logits, targets).exp()))
    assert value("token_perplexity", [1e4], [1]) == np.inf
