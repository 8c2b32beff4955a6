"""Metrics of label maps, against scikit-learn's confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from hf_distill.evaluation.scoring import METRICS


def maps(seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images of several sizes; class 4 is only predicted, class 3 never occurs."""
    rng = np.random.default_rng(seed)
    shapes = [(3, 5), (4, 4), (1, 7), (2, 2)]
    theirs = [rng.choice([0, 1, 2, 255, -100], size=shape) for shape in shapes]
    theirs[3][:] = 255
    return [rng.choice([0, 1, 2, 4], size=shape) for shape in shapes], theirs


def value(name: str, predictions: Any, references: Any) -> float:
    metric = METRICS[name]
    return metric.value(metric.units(predictions, references))


def test_values_are_those_of_scikit_learn() -> None:
    """A mean over images, or over classes that do not occur, is another figure."""
    ours, theirs = maps()
    flat, true = (np.concatenate([x.ravel() for x in each]) for each in (ours, theirs))
    counted = ~np.isin(true, (255, -100))
    flat, true = flat[counted], true[counted]
    matrix = confusion_matrix(true, flat)
    iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    assert value("mean_iou", ours, theirs) == pytest.approx(iou.mean(), abs=1e-12)
    assert iou.mean() == pytest.approx(jaccard_score(true, flat, average="macro", zero_division=0))
    assert value("pixel_accuracy", ours, theirs) == pytest.approx(accuracy_score(true, flat))
    small = [[x.astype(np.uint8) for x in each] for each in (ours, theirs)]
    small[1] = [np.where(x == -100, 255, x).astype(np.uint8) for x in theirs]
    assert value("mean_iou", *small) == value("mean_iou", ours, theirs)


ONE = np.zeros((2, 2), dtype=int)


@pytest.mark.parametrize(
    ("name", "predictions", "references", "message"),
    [
        ("mean_iou", [ONE], [ONE, ONE], "1 predictions and 2 references"),
        ("mean_iou", [ONE], [ONE[:1]], r"\(2, 2\) and int64 \(1, 2\) for image 0. Resize"),
        ("mean_iou", [ONE + 0.5], [ONE], "got float64"),
        ("mean_iou", [ONE], [ONE + 300], "labels from 0 to 254, got 300 to 300 in image 0"),
        ("mean_iou", [ONE - 1], [ONE], "predicted classes from 0 to 254, got -1"),
        ("mean_iou", [ONE], [ONE + 255], "got 1 maps of 255 or -100 alone"),
        ("pixel_accuracy", [ONE], [ONE - 100], "1 references that are all empty"),
        ("pixel_accuracy", [], [], "at least one example"),
    ],
)
def test_bad_inputs(name: str, predictions: Any, references: Any, message: str) -> None:
    """Each would be some figure."""
    with pytest.raises(ValueError, match=message):
        value(name, predictions, references)
