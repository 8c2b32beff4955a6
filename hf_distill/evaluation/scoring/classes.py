"""Metrics of one class per example."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_distill.evaluation.scoring.base import Metric


def _hits(logits: Any, labels: Any) -> np.ndarray:
    labels = np.asarray(labels)
    kept = labels != -100
    right = (np.argmax(logits, -1) == labels)[kept]
    return np.stack([right, np.ones(len(right))], 1).astype(float)


def _ratio(units: np.ndarray) -> float:
    right, count = units.sum(0)
    return float(right / count)


ACCURACY = Metric("accuracy", "Accuracy", True, "classes", _hits, _ratio)
