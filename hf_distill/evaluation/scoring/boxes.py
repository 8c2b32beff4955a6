"""Mean average precision of boxes, by COCO's rules; pycocotools matches boxes with objects.

Predictions are dicts of ``boxes`` ``(n, 4)`` as x0, y0, x1, y1 in pixels, ``scores`` ``(n,)`` and
``labels`` ``(n,)``, as the ``post_process_object_detection`` of transformers returns them;
references have ``boxes`` and ``labels``, and may have ``iscrowd`` ``(n,)``. All are arrays, lists
or tensors on the CPU. The 300 boxes of an image with the highest scores count, and of each class
100 at most.

Reference: Lin et al., 2014, "Microsoft COCO: Common Objects in Context", arXiv:1405.0312.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.evaluation.scoring.base import (
    Floats,
    Metric,
    Weighted,
    check_lengths,
    divided,
    needs,
)

IOUS = 10
"""Thresholds of the intersection over union: 0.5, 0.55, …, 0.95."""
CLASSES, BOXES = 100, 300
"""Classes of the objects of an image, and its boxes, for which a row has places."""
Images = Sequence[Mapping[str, Any]]
_RECALLS = np.linspace(0, 1, 101)
_BITS = 2 ** np.arange(IOUS)


def _annotations(images: Images, kind: str) -> list[dict[str, Any]]:
    """Annotations as COCO's files have them, with ids from 1 on."""
    found: list[dict[str, Any]] = []
    for place, image in enumerate(images):
        boxes, labels, scores, crowds = _checked(image, kind, place)
        kept = np.argsort(-scores, kind="stable")[: BOXES if kind == "predictions" else None]
        for box, label, score, crowd in zip(
            boxes[kept], labels[kept], scores[kept], crowds[kept], strict=True
        ):
            x, y, x1, y1 = map(float, box)
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": place,
                    "category_id": int(label),
                    "bbox": [x, y, x1 - x, y1 - y],
                    "area": (x1 - x) * (y1 - y),
                    "iscrowd": int(crowd),
                    "score": float(score),
                }
            )
    return found


def _checked(image: Mapping[str, Any], kind: str, place: int) -> tuple[NDArray[Any], ...]:
    keys = ("boxes", "labels", *(("scores",) if kind == "predictions" else ()))
    missing = [key for key in keys if key not in image]
    if missing:
        raise ValueError(
            f"Expected {', '.join(keys)} for each image of the {kind}, got no {missing[0]} for "
            f"image {place}. Give empty ones for an image without any."
        )
    boxes = np.asarray(image["boxes"], dtype=np.float64)
    boxes = boxes.reshape(0, 4) if not boxes.size else boxes
    labels = np.asarray(image["labels"])
    zeros = np.zeros(len(boxes))
    scores = np.asarray(image["scores"] if "scores" in keys else zeros, dtype=np.float64)
    crowds = np.asarray(image.get("iscrowd", zeros) if kind == "references" else zeros)
    if boxes.shape[1:] != (4,) or {labels.shape, scores.shape, crowds.shape} != {(len(boxes),)}:
        raise ValueError(
            f"Expected boxes (n, 4) and n labels and scores, got {boxes.shape}, {labels.shape} and "
            f"{scores.shape} in image {place} of the {kind}. Filter all of them alike."
        )
    ordered = (boxes[:, 2:] >= boxes[:, :2]).all()
    if not (np.isfinite(boxes).all() and ordered and not np.isnan(scores).any()):
        raise ValueError(
            f"Expected boxes as x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, and scores that are "
            f"numbers, got others in image {place} of the {kind}. Convert boxes given by their "
            "centre or by width and height."
        )
    if len(labels) and (labels.dtype.kind not in "iu" or labels.min() < 0):
        raise ValueError(
            f"Expected class ids from 0 on, got {labels.dtype} {labels[:5].tolist()} in image "
            f"{place} of the {kind}. Leave out objects without a class."
        )
    return boxes, labels, scores, crowds


def _matched(predictions: Images, references: Images) -> list[dict[str, Any] | None]:
    """COCOeval's matches of each class in each image."""
    coco = needs("pycocotools", lambda: __import__("pycocotools.coco").coco)
    module = needs("pycocotools", lambda: __import__("pycocotools.cocoeval").cocoeval)
    parts = [_annotations(references, "references"), _annotations(predictions, "predictions")]
    classes = sorted({one["category_id"] for part in parts for one in part})
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for annotations in parts:
            side = coco.COCO()
            side.dataset = {
                "images": [{"id": place} for place in range(len(references))],
                "categories": [{"id": number} for number in classes],
                "annotations": annotations,
            }
            side.createIndex()
            sides.append(side)
        matching = module.COCOeval(*sides, "bbox")
        matching.params.areaRng, matching.params.areaRngLbl = [[0, 1e10]], ["all"]
        matching.params.maxDets = [100]
        matching.evaluate()
    return list(matching.evalImgs)


def _rows(predictions: Images, references: Images) -> Floats:
    """Of each image: (class, objects) of `CLASSES` classes, then (class, score, matches) of `BOXES`
    boxes; matches has a bit for each IoU at which the box is right, then for each at which it does
    not count.

    Other places are NaN.
    """
    check_lengths(predictions, references)
    objects: list[list[float]] = [[] for _ in references]
    boxes: list[list[tuple[float, float, float]]] = [[] for _ in references]
    for found in filter(None, _matched(predictions, references)):
        image, number = found["image_id"], found["category_id"]
        count = int((np.asarray(found["gtIgnore"]) == 0).sum())
        if count:
            objects[image] += [number, count]
        right, out = (found[key].astype(bool) for key in ("dtMatches", "dtIgnore"))
        codes = _BITS @ right + 2**IOUS * (_BITS @ out)
        boxes[image] += zip([number] * len(codes), found["dtScores"], codes, strict=True)
    rows = np.full((len(references), 2 * CLASSES + 3 * BOXES), np.nan)
    for image, row in enumerate(rows):
        if len(objects[image]) > 2 * CLASSES:
            raise ValueError(
                f"Expected objects of at most {CLASSES} classes in an image, got "
                f"{len(objects[image]) // 2} in image {image}. Cut it into smaller images."
            )
        row[: len(objects[image])] = objects[image]
        flat = np.array(boxes[image], dtype=np.float64).ravel()
        row[2 * CLASSES : 2 * CLASSES + len(flat)] = flat
    return rows


def _mean_average_precision(ious: slice, rows: Floats) -> Weighted:
    """The mean over classes with an object, and over IoUs, of precision at 101 recalls."""
    objects = rows[:, : 2 * CLASSES].reshape(len(rows), -1, 2)
    boxes = rows[:, 2 * CLASSES :].reshape(len(rows), -1, 3)
    classes = np.unique(objects[:, :, 0][~np.isnan(objects[:, :, 0])])
    if not len(classes):
        raise ValueError(
            f"Expected objects among the references, got {len(rows)} images without one. Evaluate "
            "on a set with objects."
        )
    parts = [_class_precision(ious, objects, boxes, number) for number in classes]

    def value(times: Floats) -> float:
        found = np.array([part(times) for part in parts])
        found = found[~np.isnan(found)]  # of classes that are drawn
        return float(found.mean()) if len(found) else np.nan

    return value


def _class_precision(ious: slice, objects: Floats, boxes: Floats, number: float) -> Weighted:
    counts = np.where(objects[:, :, 0] == number, objects[:, :, 1], 0).sum(-1)
    image, place = np.nonzero(boxes[:, :, 0] == number)
    order = np.argsort(-boxes[image, place, 1], kind="stable")
    image, codes = image[order], boxes[image, place, 2][order].astype(np.int64)[:, None]
    right, counted = (codes & _BITS) > 0, (codes >> IOUS & _BITS) == 0
    hits, misses = ((counted & right)[:, ious], (counted & ~right)[:, ious])

    def value(times: Floats) -> float:
        total = times @ counts
        if not total:
            return np.nan
        weights = times[image][:, None]
        found, wrong = (weights * hits).cumsum(0), (weights * misses).cumsum(0)
        precision = np.where(found > 0, divided(found, found + wrong), 0.0)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        best = np.concatenate([best, np.zeros((1, best.shape[1]))])  # recalls that are not reached
        recalls = found / total
        columns = range(best.shape[1])
        reached = [best[np.searchsorted(recalls[:, c], _RECALLS), c] for c in columns]
        return float(np.mean(reached))

    return value


def _of(name: str, title: str, ious: slice) -> Metric:
    weighted: Callable[[Floats], Weighted] = partial(_mean_average_precision, ious)
    return Metric(name, title, "boxes", _rows, weighted, "pycocotools")


METRICS = (
    _of("mean_average_precision", "mAP (IoU 0.5 to 0.95)", slice(None)),
    _of("mean_average_precision_50", "mAP (IoU 0.5)", slice(1)),
)
