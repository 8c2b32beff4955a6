"""Mean average precision, against the accumulation of pycocotools."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import numpy as np
import pytest

from hf_distill.evaluation.scoring import METRICS

NAMES = ("mean_average_precision", "mean_average_precision_50")


def images(seed: int = 0, count: int = 8) -> tuple[list[Any], list[Any]]:
    """Objects of three classes, crowds, double and missed boxes, images without either."""
    rng = np.random.default_rng(seed)
    ours, theirs = [], []
    for number in range(count):
        n = 0 if number == 0 else int(rng.integers(1, 6))
        corner = rng.uniform(0, 50, size=(n, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 30, size=(n, 2))], axis=1)
        labels = rng.integers(3, size=n)
        crowds = (rng.random(n) < 0.15).astype(int)
        theirs.append({"boxes": boxes, "labels": labels, "iscrowd": crowds})
        kept = rng.permutation(np.repeat(np.arange(n), 2))[: 2 * n - 1 if number != 1 else 0]
        moved = boxes[kept] + rng.normal(scale=1.5, size=(len(kept), 4))
        wrong = np.where(rng.random(len(kept)) < 0.2, 3, labels[kept])  # 3: a class without objects
        ours.append({"boxes": moved, "labels": wrong, "scores": rng.random(len(kept))})
    ours[0] = {"boxes": [[0, 0, 9, 9]], "labels": [1], "scores": [0.99]}
    return ours, theirs


def expected(ours: list[Any], theirs: list[Any]) -> tuple[float, float]:
    """``stats[0]`` and ``stats[1]`` of COCOeval."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):
        for each in (theirs, ours):
            side, found = coco.COCO(), []
            for image, one in enumerate(each):
                for i, (x0, y0, x1, y1) in enumerate(one["boxes"]):
                    found.append(
                        {
                            "id": len(found) + 1,
                            "image_id": image,
                            "category_id": int(one["labels"][i]),
                            "bbox": [x0, y0, x1 - x0, y1 - y0],
                            "area": (x1 - x0) * (y1 - y0),
                            "iscrowd": int(one["iscrowd"][i]) if "iscrowd" in one else 0,
                            "score": float(one["scores"][i]) if "scores" in one else 0.0,
                        }
                    )
            side.dataset = {
                "images": [{"id": i} for i in range(len(theirs))],
                "categories": [{"id": i} for i in range(4)],
                "annotations": found,
            }
            side.createIndex()
            sides.append(side)
        judge = cocoeval.COCOeval(*sides, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


def value(name: str, predictions: Any, references: Any) -> float:
    pytest.importorskip("pycocotools")
    metric = METRICS[name]
    return metric.value(metric.units(predictions, references))


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_pycocotools(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Another interpolation or another rule for double boxes is another figure."""
    ours, theirs = images(seed)
    wanted = expected(ours, theirs)
    assert 0.1 < wanted[0] < wanted[1] < 1
    for name, figure in zip(NAMES, wanted, strict=True):
        assert value(name, ours, theirs) == pytest.approx(figure, abs=1e-9)
    assert capsys.readouterr().out == ""


def test_an_image_that_counts_twice() -> None:
    """The bootstrap counts an image several times, as if the set had copies of it."""
    ours, theirs = images()
    metric, times = METRICS[NAMES[0]], [2, 0, 1, 3, 1, 0, 2, 1]
    expected(ours, theirs)
    picked = np.repeat(np.arange(8), times)
    wanted = expected([ours[i] for i in picked], [theirs[i] for i in picked])[0]
    units = metric.units(ours, theirs)
    assert metric.value(units[picked]) == pytest.approx(wanted, abs=1e-9)
    assert metric.weighted(units)(np.array(times, dtype=float)) == pytest.approx(wanted, abs=1e-9)


ONE: dict[str, Any] = {"boxes": [[0, 0, 5, 5]], "labels": [0]}
SCORED = {**ONE, "scores": [0.5]}


def test_no_boxes_and_perfect_boxes() -> None:
    """A detector that finds nothing has 0, and no error."""
    nothing: dict[str, Any] = {"boxes": np.zeros((0, 4)), "labels": [], "scores": []}
    assert value(NAMES[0], [nothing, nothing], [ONE, ONE]) == 0.0
    assert value(NAMES[0], [SCORED, nothing], [ONE, nothing]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([SCORED], [ONE, ONE], "1 predictions and 2 references"),
        ([ONE], [ONE], "got no scores for image 0"),
        ([SCORED], [{"boxes": [[0, 0, 5, 5]]}], "got no labels for image 0"),
        ([{**SCORED, "labels": [0, 1]}], [ONE], r"\(1, 4\), \(2,\) and \(1,\) in image 0"),
        ([{**SCORED, "boxes": [[5, 5, 0, 0]]}], [ONE], "x0 <= x1"),
        ([{**SCORED, "scores": [np.nan]}], [ONE], "scores that are numbers"),
        ([SCORED], [{**ONE, "labels": [0.5]}], "class ids from 0 on, got float64"),
        ([SCORED], [{"boxes": [], "labels": []}], "got 1 images without one"),
        ([], [], "at least one example"),
    ],
)
def test_bad_inputs(predictions: Any, references: Any, message: str) -> None:
    """Boxes given by their centre have an overlap of 0 with all objects."""
    with pytest.raises(ValueError, match=message):
        value(NAMES[0], predictions, references)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error would name a module of another package."""
    for name in ("pycocotools", "pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pycocotools .*pip install "hf_distill\[metrics\]"'):
        METRICS[NAMES[0]].units([SCORED], [ONE])
