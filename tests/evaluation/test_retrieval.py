"""Retrieval metrics and STS correlation, against scikit-learn, scipy and sentence-transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from accelerate import Accelerator
from launch import launch
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

from hf_distill.evaluation.retrieval import (
    RetrievalMetrics,
    SimilarityCorrelation,
    evaluate_retrieval,
)

RNG = np.random.default_rng(0)
QUERIES, CORPUS = RNG.normal(size=(30, 6)), RNG.normal(size=(50, 6))
SCORES = QUERIES @ CORPUS.T
GAINS = [
    {int(d): float(RNG.integers(1, 4)) for d in RNG.choice(50, size=1 + i % 3, replace=False)}
    for i in range(30)
]


def of(scores: Any, relevant: Any, at: Any = (1, 3, 10, 50)) -> dict[str, float]:
    metrics = RetrievalMetrics(at)
    metrics.add(scores, relevant)
    return metrics.result()


def test_ndcg_is_that_of_scikit_learn() -> None:
    """Another gain or discount gives figures that compare with no publication."""
    gains = np.zeros_like(SCORES)
    for row, found in enumerate(GAINS):
        for place, gain in found.items():
            gains[row, place] = gain
    found = of(SCORES, GAINS)
    for k in (1, 3, 10, 50):
        assert found[f"ndcg@{k}"] == pytest.approx(ndcg_score(gains, SCORES, k=k), abs=1e-12)
    single = [[*g][:1] for g in GAINS]  # of one document the average precision is 1 / rank
    truth = np.zeros_like(SCORES, dtype=int)
    truth[np.arange(30), [s[0] for s in single]] = 1
    expected = label_ranking_average_precision_score(truth, SCORES)
    assert of(SCORES, single)["mrr@50"] == pytest.approx(expected, abs=1e-12)
    ranks = scipy.stats.rankdata(-SCORES, axis=1)[np.arange(30), [s[0] for s in single]]
    for k in (1, 3, 10):  # what is found behind k is not found
        within = np.where(ranks <= k, 1 / ranks, 0.0).mean()
        assert of(SCORES, single)[f"mrr@{k}"] == pytest.approx(within, abs=1e-12)


@pytest.mark.slow
def test_ranks_are_those_of_sentence_transformers() -> None:
    """The figures must be comparable with those that the community reports."""
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    at = [1, 3, 10, 50]
    theirs = evaluation.InformationRetrievalEvaluator(
        {str(i): "" for i in range(30)},
        {str(i): "" for i in range(50)},
        {str(i): {str(d) for d in found} for i, found in enumerate(GAINS)},
        mrr_at_k=at,
        ndcg_at_k=at,
        accuracy_at_k=at,
        precision_recall_at_k=at,
    )
    hits = [
        [{"corpus_id": str(d), "score": float(row[d])} for d in np.argsort(-row)] for row in SCORES
    ]
    expected, ours = theirs.compute_metrics(hits), of(SCORES, [[*g] for g in GAINS])
    for k in at:
        assert ours[f"recall@{k}"] == pytest.approx(expected["recall@k"][k], abs=1e-12)
        assert ours[f"mrr@{k}"] == pytest.approx(expected["mrr@k"][k], abs=1e-12)
        assert ours[f"ndcg@{k}"] == pytest.approx(expected["ndcg@k"][k], abs=1e-12)


@pytest.mark.parametrize("size", [1, 7, 30])
def test_any_split_gives_the_same(size: int) -> None:
    """Figures that depend on the batch size cannot be compared between machines."""
    metrics = RetrievalMetrics((1, 3, 10, 50))
    for start in range(0, 30, size):
        part = slice(start, start + size)
        metrics.add_embeddings(QUERIES[part], CORPUS, GAINS[part])
    assert metrics.result() == pytest.approx(of(SCORES, GAINS), abs=1e-12)


def test_equal_documents_are_ranked_in_order() -> None:
    """A model that gives one vector to all texts must not be perfect."""
    same = np.ones((3, 4))
    assert of(same[:2] @ same.T[:4, :3], [[0], [2]], (1,))["recall@1"] == 0.5
    metrics = RetrievalMetrics((1,))
    metrics.add_embeddings(QUERIES[:4], np.tile(CORPUS[:1], (200, 1)), [[0], [1], [100], [199]])
    assert metrics.result()["recall@1"] == 0.25


def test_queries_without_a_document_do_not_count() -> None:
    """They would lower every figure by a number that no model can change."""
    assert of(SCORES[:2], [GAINS[0], {}]) == of(SCORES[:1], GAINS[:1])


@pytest.mark.parametrize(
    ("relevant", "message"),
    [([[0]], "each of 2 queries"), ([[0], [50]], "corpus of 50"), ([[0], [1, 1]], "different")],
)
def test_wrong_documents_are_refused(relevant: Any, message: str) -> None:
    """A place behind the end, or twice, would silently change the recall."""
    with pytest.raises(ValueError, match=message):
        of(SCORES[:2], relevant)
    with pytest.raises(ValueError, match="from 1 on"):
        RetrievalMetrics((0,))


@pytest.mark.parametrize("size", [1, 4, 30])
def test_correlations_are_those_of_scipy(size: int) -> None:
    """Means of correlations of batches are not the set's correlation; ties share a rank."""
    others, given = QUERIES + RNG.normal(size=(30, 6)), RNG.integers(0, 6, size=30) / 2
    correlation = SimilarityCorrelation()
    for start in range(0, 30, size):
        part = slice(start, start + size)
        correlation.add(QUERIES[part], others[part], given[part])
    cosines = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(QUERIES, others, strict=True)
    ]
    found = correlation.result()
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(cosines, given)[0], abs=1e-12)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(cosines, given)[0], abs=1e-12)
    with pytest.raises(ValueError, match="N similarities"):
        correlation.add(QUERIES, others, given[:3])


class Embedder:
    """Vectors by the number in a text."""

    def encode(self, texts: list[str], tokenizer: Any, batch_size: int) -> np.ndarray:
        rows = [QUERIES[int(t[1:])] if t[0] == "q" else CORPUS[int(t[1:])] for t in texts]
        return np.array(rows, dtype=np.float32)


def whole(accelerator: Any = None) -> dict[str, float]:
    texts = [f"q{i}" for i in range(30)], [f"d{i}" for i in range(50)]
    return evaluate_retrieval(
        Embedder(), None, *texts, GAINS, at=(1, 3, 10, 50), accelerator=accelerator
    )


def test_an_embedder_is_evaluated() -> None:
    """Documents in another order than the relevant ones' numbers."""
    assert whole() == pytest.approx(of(SCORES, GAINS), abs=1e-12)


def in_processes() -> None:
    accelerator = Accelerator(cpu=True)
    assert whole(accelerator) == pytest.approx(whole(), abs=1e-12)
    correlation, alone = SimilarityCorrelation(), SimilarityCorrelation()
    part = slice(accelerator.process_index, None, accelerator.num_processes)
    correlation.add(QUERIES[part], CORPUS[:30][part], np.arange(30)[part])
    alone.add(QUERIES, CORPUS[:30], np.arange(30))
    assert correlation.result(accelerator) == pytest.approx(alone.result(), abs=1e-12)


@pytest.mark.slow
def test_processes_share_the_texts() -> None:
    """Documents of another process that are missing make retrieval easier."""
    launch(in_processes, processes=2)
