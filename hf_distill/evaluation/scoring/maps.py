"""Metrics of label maps: lists of integer arrays ``(H, W)``; labels 255 and -100 are left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hf_distill.evaluation.scoring.base import (
    Floats,
    Metric,
    Weighted,
    check_lengths,
    divided,
    of_sums,
    ratio,
)

CLASSES = 255
"""Class ids are below: 255 marks pixels without a label."""
IGNORED = (255, -100)


def _pixels(predictions: Any, references: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Predicted and true classes of the labelled pixels of each image."""
    check_lengths(predictions, references)
    for place, pair in enumerate(zip(predictions, references, strict=True)):
        ours, theirs = map(np.asarray, pair)
        if (
            ours.shape != theirs.shape
            or ours.dtype.kind not in "iu"
            or theirs.dtype.kind not in "iu"
        ):
            raise ValueError(
                f"Expected maps of class ids of the same size, got {ours.dtype} {ours.shape} and "
                f"{theirs.dtype} {theirs.shape} for image {place}. Resize the logits to the size "
                "of the labels before their argmax."
            )
        there = ~np.isin(theirs, IGNORED)
        found = ours[there].astype(np.int64), theirs[there].astype(np.int64)
        for kind, ids in zip(("predicted classes", "labels"), found, strict=True):
            if ids.size and (ids.min() < 0 or ids.max() >= CLASSES):
                raise ValueError(
                    f"Expected {kind} from 0 to {CLASSES - 1}, got {ids.min()} to {ids.max()} in "
                    f"image {place}. Mark pixels without a label with 255 or -100."
                )
        yield found


def _hits(predictions: Any, references: Any) -> Floats:
    """Hits and labelled pixels of each image."""
    rows = [(np.sum(a == b), b.size) for a, b in _pixels(predictions, references)]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _overlaps(predictions: Any, references: Any) -> Floats:
    """Pixels of each class of each image: intersections, then unions ``(N, 2 · 255)``."""
    rows = []
    for ours, theirs in _pixels(predictions, references):
        same = np.bincount(theirs[ours == theirs], minlength=CLASSES)
        both = np.bincount(ours, minlength=CLASSES) + np.bincount(theirs, minlength=CLASSES)
        rows.append(np.concatenate([same, both - same]))
    return np.array(rows, dtype=np.float64).reshape(-1, 2 * CLASSES)


def _mean_iou(rows: Floats) -> Weighted:
    """The mean over the classes that are predicted or labels somewhere in the set."""
    if not rows.any():
        raise ValueError(
            f"Expected labelled pixels, got {len(rows)} maps of 255 or -100 alone. Evaluate on a "
            "set with labels."
        )

    def value(sums: Floats) -> float:
        same, either = sums.reshape(2, -1)
        there = either > 0
        return float(np.mean(divided(same[there], either[there]))) if there.any() else np.nan

    return of_sums(value)(rows)


METRICS = (
    Metric("mean_iou", "Mean IoU", "maps", _overlaps, _mean_iou),
    Metric("pixel_accuracy", "Pixel accuracy", "maps", _hits, ratio),
)
