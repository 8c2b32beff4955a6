"""Metrics of the heads of a multi-task student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import EvalPrediction

IGNORE = -100
Compute = Callable[[EvalPrediction], Mapping[str, Any]]


def metrics_of_heads(heads: Sequence[str], compute: Mapping[str, Compute]) -> Compute:
    """A ``compute_metrics`` of a `MultiHead` student, made of one function for each head.

    Each receives the predictions and labels of its head, of the examples that have a label of it;
    its metrics get the head's name in front: ``rating_accuracy``.

    Args:
        heads: The names of all heads, in their order: ``list(model.heads)``.
        compute: The function of each head that is measured.

    Raises:
        ValueError: a function of a head that there is not.
    """
    heads = list(heads)
    if unknown := [name for name in compute if name not in heads]:
        raise ValueError(f"Expected functions of the heads {heads}, got {unknown}. Name a head.")

    def measure(prediction: EvalPrediction) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, function in compute.items():
            outputs, labels = (
                values[heads.index(name)] if isinstance(values, (tuple, list)) else values
                for values in (prediction.predictions, prediction.label_ids)
            )
            kept = _labelled(np.asarray(labels))
            if not kept.any():
                continue
            own = function(EvalPrediction(predictions=outputs[kept], label_ids=labels[kept]))
            found |= {f"{name}_{metric}": value for metric, value in own.items()}
        return found

    return measure


def _labelled(labels: np.ndarray) -> np.ndarray:
    """Mask ``(N,)`` of the examples that have a label."""
    missing = np.isnan(labels) if labels.dtype.kind == "f" else labels == IGNORE
    known: np.ndarray = ~missing.reshape(len(labels), -1).all(1)
    return known
