"""Metrics of text embedders: retrieval over a whole corpus, and correlation with similarities.

Queries are added in any number of parts and on any number of processes; the result is that of the
whole set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Relevant = Sequence[int] | Mapping[int, float]
"""The relevant documents of a query, by their places in the corpus, perhaps with their gains."""
BLOCK = 4096
"""Documents that are compared with a query at a time."""


class RetrievalMetrics:
    """Sums of recall, reciprocal rank and NDCG over queries.

    Of a query with relevant documents at the ranks r₁ < r₂ < … (the best is 1) and gains g:
    recall@k is the share of them with r ≤ k; mrr@k is 1 / r₁, or 0 if r₁ > k; ndcg@k is
    Σ g / log₂(1 + r) over r ≤ k, divided by its largest possible value (Järvelin and Kekäläinen
    2002). Queries without a relevant document do not count.

    Args:
        at: Numbers k of documents.

    Raises:
        ValueError: a number below 1, or none.

    >>> metrics = RetrievalMetrics(at=(1, 2))
    >>> metrics.add([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4]], [[0], [1]])
    >>> metrics.result()["recall@1"], metrics.result()["mrr@2"]
    (0.5, 0.75)
    """

    def __init__(self, at: Sequence[int] = (1, 10, 100)):
        if not at or min(at) < 1:
            raise ValueError(f"Expected numbers of documents from 1 on, got at={tuple(at)}.")
        self.at = tuple(at)
        self.count = 0
        self._sums = np.zeros((3, len(self.at)))

    def add(self, scores: ArrayLike, relevant: Sequence[Relevant]) -> None:
        """Add queries by their scores.

        Args:
            scores: ``(Q, N)``, of every document of the corpus.
            relevant: The relevant documents of each query.

        Raises:
            ValueError: other shapes, or a document that is not there.
        """
        values = np.asarray(scores)
        _check(relevant, *values.shape)
        for row, found in zip(values, relevant, strict=True):
            places = np.array([*found], dtype=np.int64)
            self._add(ranks_of(row, row[places], places), found)

    def add_embeddings(
        self, queries: ArrayLike, corpus: ArrayLike, relevant: Sequence[Relevant]
    ) -> None:
        """Add queries by their embeddings; the score is the dot product, in float64.

        Args:
            queries: ``(Q, D)``.
            corpus: ``(N, D)``.
            relevant: The relevant documents of each query.

        Raises:
            ValueError: other shapes, or a document that is not there.
        """
        ours, theirs = (np.asarray(x) for x in (queries, corpus))
        _check(relevant, len(ours), len(theirs))
        for start in range(0, len(ours), 64):
            # Rounded, so that equal documents have equal scores whatever the order of a sum.
            block = ours[start : start + 64].astype(np.float64)
            parts = [block @ theirs[i : i + BLOCK].T for i in range(0, len(theirs), BLOCK)]
            scores = np.concatenate(parts, axis=1).astype(np.float32)
            self.add(scores, relevant[start : start + 64])

    def _add(self, ranks: NDArray[np.int64], relevant: Relevant) -> None:
        if not len(ranks):
            return
        gains = np.array(
            [*relevant.values()] if isinstance(relevant, Mapping) else [1.0] * len(ranks)
        )
        self.count += 1
        for column, k in enumerate(self.at):
            found = rank_scores(ranks, gains, k)
            self._sums[:, column] += [found[name] for name in ("recall", "mrr", "ndcg")]

    def result(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """``recall@k``, ``mrr@k`` and ``ndcg@k``: means over the queries, of all processes.

        Args:
            accelerator: Its processes' sums are added; None: this process has all queries.
        """
        sums, count = self._sums, self.count
        if accelerator is not None and accelerator.num_processes > 1:
            parts = gather_object([(sums, count)])
            sums, count = sum(part[0] for part in parts), sum(part[1] for part in parts)
        means = sums / max(count, 1)
        names = ("recall", "mrr", "ndcg")
        return {
            f"{name}@{k}": float(means[row, column])
            for row, name in enumerate(names)
            for column, k in enumerate(self.at)
        }


class SimilarityCorrelation:
    """Correlation of the cosines of pairs of texts with given similarities (STS).

    >>> correlation = SimilarityCorrelation()
    >>> correlation.add([[1.0, 0], [1, 0], [1, 0]], [[1.0, 0], [1, 1], [0, 1]], [5.0, 3.0, 0.0])
    >>> round(correlation.result()["spearman"], 6)
    1.0
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[float, float]] = []

    def add(self, first: ArrayLike, second: ArrayLike, similarities: ArrayLike) -> None:
        """Add pairs of texts.

        Args:
            first: ``(N, D)``, embeddings of the first texts.
            second: ``(N, D)``, of the second texts.
            similarities: ``(N,)``, as people have given them.

        Raises:
            ValueError: other shapes.
        """
        ours, theirs = (np.asarray(x, dtype=np.float64) for x in (first, second))
        given = np.asarray(similarities, dtype=np.float64)
        if ours.shape != theirs.shape or given.shape != ours.shape[:1]:
            raise ValueError(
                f"Expected embeddings (N, D) of both texts and N similarities, got {ours.shape}, "
                f"{theirs.shape} and {given.shape}."
            )
        lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        cosines = (ours * theirs).sum(-1) / np.maximum(lengths, np.finfo(np.float64).tiny)
        self._pairs += zip(cosines.tolist(), given.tolist(), strict=True)

    def result(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """``pearson`` and ``spearman``, in [-1, 1]; NaN if one of both is constant.

        Args:
            accelerator: Its processes' pairs are gathered; None: this process has all of them.
        """
        pairs = self._pairs
        if accelerator is not None and accelerator.num_processes > 1:
            pairs = gather_object(pairs)
        if not pairs:
            return {"pearson": math.nan, "spearman": math.nan}
        cosines, given = np.array(pairs).T
        return {
            "pearson": _pearson(cosines, given),
            "spearman": _pearson(_mean_ranks(cosines), _mean_ranks(given)),
        }


def evaluate_retrieval(
    model: Any,
    tokenizer: Any,
    queries: Sequence[str],
    corpus: Sequence[str],
    relevant: Sequence[Relevant],
    *,
    at: Sequence[int] = (1, 10, 100),
    batch_size: int = 32,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Retrieval metrics of a text embedder.

    Args:
        model: An embedder with ``encode(texts, tokenizer, batch_size)``
            (`hf_distill.models.embedding`).
        tokenizer: Its tokenizer.
        queries: Texts.
        corpus: Documents.
        relevant: The relevant documents of each query, by their places in the corpus.
        at: Numbers k of documents.
        batch_size: Number of texts at a time.
        accelerator: Its processes share the texts; each returns the result of all.

    Returns:
        As `RetrievalMetrics.result`.
    """
    rank, size = (
        (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    )
    with torch.no_grad():
        own = [
            model.encode([*texts[rank::size]], tokenizer, batch_size) for texts in (queries, corpus)
        ]
    parts = gather_object([own[1]]) if size > 1 else [own[1]]
    documents = np.empty((len(corpus), own[1].shape[1]), dtype=own[1].dtype)
    for index, part in enumerate(parts):
        documents[index::size] = part
    metrics = RetrievalMetrics(at)
    metrics.add_embeddings(own[0], documents, [*relevant[rank::size]])
    return metrics.result(accelerator)


def rank_scores(ranks: NDArray[np.int64], gains: Floats, k: int) -> dict[str, float]:
    """Recall, reciprocal rank, NDCG and average precision of the first k documents.

    Of relevant documents at the ranks r₁ < r₂ < … (the best is 1): recall, mrr and ndcg as of
    `RetrievalMetrics`; map is Σ i / rᵢ over rᵢ ≤ k, divided by the number R of all of them (as
    ``map_cut_k`` of trec_eval: at most k / R).

    Args:
        ranks: ``(R,)``, R ≥ 1.
        gains: ``(R,)``.
        k: Number of documents.

    >>> rank_scores(np.array([1, 4]), np.ones(2), k=3)["recall"]
    0.5
    """
    within = ranks <= k
    ideal = (np.sort(gains)[::-1] / np.log2(np.arange(2, len(gains) + 2)))[:k].sum()
    gained = (gains[within] / np.log2(1 + ranks[within])).sum()
    first, found = int(ranks.min()), np.sort(ranks[within])
    return {
        "recall": float(within.mean()),
        "mrr": 1 / first if first <= k else 0.0,
        "ndcg": float(gained / ideal) if ideal else 0.0,
        "map": float((np.arange(1, len(found) + 1) / found).sum() / len(ranks)),
    }


def _check(relevant: Sequence[Relevant], queries: int, documents: int) -> None:
    if len(relevant) != queries:
        raise ValueError(
            f"Expected the relevant documents of each of {queries} queries, got {len(relevant)}."
        )
    for number, found in enumerate(relevant):
        strange = [place for place in found if not 0 <= place < documents]
        if strange or len(set(found)) != len(found):
            raise ValueError(
                f"Expected different places of a corpus of {documents} documents, got "
                f"{[*found]} for query {number}. Number the documents from 0 on."
            )


def ranks_of(scores: NDArray, own: NDArray, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks, from 1 on, of the documents at some places; of equal scores the first is the best.

    ``scores`` ``(N,)`` are those of all documents, ``own`` ``(R,)`` those at ``places`` ``(R,)``.
    """
    index = np.arange(len(scores))
    ahead = [
        (scores > score).sum() + ((scores == score) & (index < place)).sum()
        for score, place in zip(own, places, strict=True)
    ]
    return np.array(ahead, dtype=np.int64) + 1


def _mean_ranks(values: Floats) -> Floats:
    """Ranks; equal values have the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def _pearson(first: Floats, second: Floats) -> float:
    ours, theirs = first - first.mean(), second - second.mean()
    scale = math.sqrt(float((ours**2).sum() * (theirs**2).sum()))
    return float((ours * theirs).sum()) / scale if scale > 0 else math.nan
