"""Contracts of all metrics: parts of a set in any order, intervals, directions, messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hf_distill.evaluation.scoring import FORMS, METRICS, Metric
from hf_distill.evaluation.scoring.base import mean
from hf_distill.utils.directions import higher_is_better

N = 24
RNG = np.random.default_rng(3)
CLASSES = np.concatenate([np.arange(6), RNG.integers(6, size=N - 6)])
LABELS = (RNG.random((N, 3)) < 0.5).astype(int)
WORDS = ["a", "b", "c d", "", "e f g", "é"]
TAGS = ["O", "B-X", "I-X", "B-Y"]


def some(pool: list[str], length: int) -> list[list[str]]:
    return [RNG.choice(pool, size=length).tolist() for _ in range(N)]


SENTENCES = [" ".join(words) for words in some(WORDS, 4)]


def boxes(scored: bool) -> list[dict[str, Any]]:
    found = []
    for number in range(N):
        n = number % 3
        corner = RNG.integers(3, size=(n, 2)).astype(float)
        one = {"boxes": np.concatenate([corner, corner + 5], 1), "labels": RNG.integers(2, size=n)}
        found.append({**one, "scores": RNG.random(n)} if scored else one)
    return found


INPUTS: dict[str, tuple[Any, Any]] = {
    "classes": (
        RNG.normal(size=(N, 6)) + np.eye(6)[CLASSES],
        np.where(np.arange(N) == 9, -100, CLASSES),
    ),
    "multi_label": (RNG.normal(size=(N, 3)) + LABELS, LABELS),
    "values": (RNG.normal(size=N).round(1), RNG.normal(size=N).round(1)),
    "pairs": (RNG.normal(size=N).round(1), RNG.normal(size=N).round(1)),
    "tags": (some(TAGS, 4), some(TAGS, 4)),
    "texts": (SENTENCES, [text if i % 4 else "a b c d e" for i, text in enumerate(SENTENCES)]),
    "answers": (
        [" ".join(t) for t in some(WORDS, 1)],
        [t[: i % 3] for i, t in enumerate(some(WORDS, 2))],
    ),
    "maps": (
        list(RNG.integers(3, size=(N, 2, 3))),
        list(RNG.choice([0, 1, 2, 255], size=(N, 2, 3))),
    ),
    "rankings": (RNG.normal(size=(N, 120)), (RNG.random((N, 120)) < 0.3).astype(int)),
    "boxes": (boxes(True), boxes(False)),
    "likelihoods": (RNG.random(N) * 9, RNG.integers(1, 9, size=N)),
}


def units(name: str, rows: Any = None) -> np.ndarray:
    metric = METRICS[name]
    if metric.library:
        pytest.importorskip(metric.library.replace("-", "_"))
    ours, theirs = INPUTS[metric.form]
    if name == "f1":
        ours, theirs = ours[:, :2], np.minimum(theirs, 1)
    if rows is not None:
        ours, theirs = ([each[i] for i in rows] for each in (ours, theirs))
        if isinstance(INPUTS[metric.form][0], np.ndarray):
            ours, theirs = np.array(ours), np.array(theirs)
    return metric.units(ours, theirs)


@pytest.mark.parametrize("name", METRICS)
def test_parts_in_any_order_give_the_same(name: str) -> None:
    """Batches, their order or the number of processes would change a figure."""
    metric, whole = METRICS[name], units(name)
    assert whole.dtype == np.float64
    assert whole.ndim == 2
    order = np.random.default_rng(1).permutation(N)
    parts = [units(name, part) for part in np.split(order, [5, 6, 20])]
    again = np.concatenate(parts)
    assert type(metric.value(whole)) is float  # numpy's is not, on cards and in YAML
    assert metric.value(again) == metric.value(whole)
    assert metric.interval(again, samples=9) == metric.interval(whole, samples=9)


@pytest.mark.parametrize("name", METRICS)
def test_intervals_are_those_of_a_loop(name: str) -> None:
    """Weights of rows must be the same as copies of rows."""
    metric, rows = METRICS[name], units(name)
    rows, rng, drawn = rows[np.lexsort(rows.T[::-1])], np.random.default_rng(5), []
    for _ in range(25):
        try:
            drawn.append(metric.value(rows[rng.integers(len(rows), size=len(rows))]))
        except ValueError:  # a class without an example is drawn
            continue
    found = metric.interval(rows, level=0.8, samples=25, seed=5)
    assert found == pytest.approx(np.quantile(drawn, [0.1, 0.9]), abs=1e-9)
    assert found[0] < found[1]
    assert found == metric.interval(rows, level=0.8, samples=25, seed=5)
    wide = metric.interval(rows, level=0.99, samples=25, seed=5)
    assert wide[0] <= found[0]
    assert wide[1] >= found[1]


@pytest.mark.parametrize("name", METRICS)
def test_names_titles_and_directions(name: str) -> None:
    """The trainer's best checkpoint goes by the name, the report by the metric."""
    metric = METRICS[name]
    assert (metric.name, metric.form in FORMS, bool(metric.title)) == (name, True, True)
    assert higher_is_better(name) is metric.higher_is_better
    lower = {"mse", "rmse", "mae", "log_loss", "brier", "token_perplexity"}
    assert metric.higher_is_better is not (name in lower or name.endswith("error_rate"))


def test_an_interval_covers_the_value_as_often_as_it_claims() -> None:
    """Too narrow an interval turns noise into a difference."""
    metric, rng, covered = METRICS["accuracy"], np.random.default_rng(0), 0
    for _ in range(100):
        hits = (rng.random((150, 1)) < 0.7).astype(float)
        low, high = metric.interval(hits, level=0.9, samples=100)
        covered += low <= 0.7 <= high
    assert 82 <= covered <= 97  # 90 ± 2.6 standard deviations


def test_resamples_without_a_value() -> None:
    """One undefined resample must not make the interval NaN."""
    metric = METRICS["macro_auc"]
    rows = metric.units([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]], [0, 1, 0])
    assert metric.interval(rows, samples=100) == (0.0, 1.0)


@pytest.mark.parametrize("options", [{"level": 1.0}, {"level": 0}, {"samples": 0}])
def test_bad_intervals(options: dict[str, Any]) -> None:
    """A level in per cent would give the whole range."""
    with pytest.raises(ValueError, match="level between 0 and 1"):
        METRICS["accuracy"].interval(np.ones((3, 1)), **options)


def test_a_metric_of_ones_own() -> None:
    """Its direction decides over the best checkpoint: it is never guessed."""

    def rows(ours: Any, theirs: Any) -> list[list[float]]:
        return [[float(len(a) == len(b))] for a, b in zip(ours, theirs, strict=True)]

    own = Metric("same_length", "Same length", "texts", rows, mean, higher_is_better=True)
    assert own.value(own.units(["ab", "c"], ["xy", "cd"])) == 0.5
    with pytest.raises(ValueError, match="Give higher_is_better=True"):
        Metric("same_length", "Same length", "texts", rows, mean)
    with pytest.raises(ValueError, match=r"Expected a form of classes, .* got 'sentences'"):
        Metric("accuracy", "Accuracy", "sentences", rows, mean)
    with pytest.raises(ValueError, match=r"Expected rows \(N, K\).*got the shape \(2,\)"):
        own.value([1.0, 2.0])
