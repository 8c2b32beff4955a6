"""Metrics of rankings, against scikit-learn and a loop over the ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

from hf_distill.evaluation.scoring import METRICS, find

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(20, 12))
GAINS = RNG.choice([0, 0, 0, 1, 2], size=(20, 12)).astype(float)
GAINS[:, 3] = 1  # each query has a relevant candidate


def value(name: str, scores: Any, relevance: Any) -> float:
    metric = find(name)
    return metric.value(metric.units(scores, relevance))


def by_hand(kind: str, k: int) -> float:
    found = []
    for scores, gains in zip(SCORES, GAINS, strict=True):
        hits, first, precisions = 0, 0.0, 0.0
        for rank, place in enumerate(sorted(range(12), key=lambda i: -scores[i])[:k], start=1):
            if gains[place] > 0:
                hits += 1
                first = first or 1 / rank
                precisions += hits / rank
        relevant = (gains > 0).sum()
        found.append({"recall": hits / relevant, "mrr": first, "map": precisions / relevant}[kind])
    return float(np.mean(found))


@pytest.mark.parametrize("k", [1, 3, 7, 12, 100])
def test_values_by_hand(k: int) -> None:
    """Cut off one rank too early or late, each figure is close to the right one."""
    for kind in ("recall", "mrr", "map"):
        assert value(f"{kind}@{k}", SCORES, GAINS) == pytest.approx(by_hand(kind, k)), kind
    assert value(f"ndcg@{k}", SCORES, GAINS) == pytest.approx(ndcg_score(GAINS, SCORES, k=k))
    if k >= 12:
        expected = label_ranking_average_precision_score(GAINS > 0, SCORES)
        assert value(f"map@{k}", SCORES, GAINS) == pytest.approx(expected)


def test_padding_and_queries_without_a_relevant_candidate() -> None:
    """Padding with high scores would rank first; queries without an answer would count as 0."""
    scores = np.concatenate([SCORES, np.full((20, 2), 9.0)], axis=1)
    gains = np.concatenate([GAINS, np.full((20, 2), np.nan)], axis=1)
    scores[:, 12] = np.nan
    gains[:, 12:] = 1, -100
    scores, gains = np.vstack([scores, scores[:2]]), np.vstack([gains, np.zeros((2, 14))])
    for kind in ("recall", "mrr", "ndcg", "map"):
        assert value(f"{kind}@5", scores, gains) == value(f"{kind}@5", SCORES, GAINS)


@pytest.mark.parametrize(
    ("scores", "relevance", "message"),
    [
        (SCORES, GAINS[:, :3], r"\(20, 12\) and \(20, 3\)"),
        (SCORES, -GAINS, "relevance of 0 or more, got -"),
        (SCORES, 0 * GAINS, "at least one example for ndcg@10"),
    ],
)
def test_bad_inputs(scores: Any, relevance: Any, message: str) -> None:
    """Each would be some figure."""
    with pytest.raises(ValueError, match=message):
        value("ndcg@10", scores, relevance)


def test_any_depth_and_unknown_names() -> None:
    """A recipe that evaluates the first 7 candidates would need code; a typing error, a search."""
    assert find("ndcg@7").title == "NDCG@7"
    assert find("recall@10") is METRICS["recall@10"]
    for name, near in (("acuracy", "accuracy"), ("ndcg@0", "ndcg@"), ("recall@", "recall@")):
        with pytest.raises(ValueError, match=f"got '{name}'. Is it .*{near}"):
            find(name)
    with pytest.raises(ValueError, match="There are: accuracy, "):
        find("zzzzzz")
