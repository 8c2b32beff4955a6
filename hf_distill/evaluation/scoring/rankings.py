"""Metrics of rankings: scores ``(N, C)`` of candidates and their relevance ``(N, C)``.

A row is a query; NaN in either and relevance -100 are padding. Candidates are relevant above 0; the
relevance is the gain of NDCG. Queries without a relevant candidate do not count.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from hf_distill.evaluation.retrieval import rank_scores, ranks_of
from hf_distill.evaluation.scoring.base import Floats, Metric, mean

KINDS = {"recall": "Recall", "mrr": "MRR", "ndcg": "NDCG", "map": "MAP"}
DEPTHS = (1, 3, 5, 10, 20, 50, 100)


def _rows(kind: str, k: int, scores: Any, relevance: Any) -> Floats:
    values, gains = (np.asarray(x, dtype=np.float64) for x in (scores, relevance))
    if values.ndim != 2 or values.shape != gains.shape:
        raise ValueError(
            f"Expected scores and relevance of the same shape (queries, candidates), got "
            f"{values.shape} and {gains.shape}. Pad rows of other lengths with NaN."
        )
    gains = np.where(np.isnan(values) | (gains == -100), np.nan, gains)
    if (gains < 0).any():
        raise ValueError(
            f"Expected a relevance of 0 or more, got {gains[gains < 0][0]}. Give 0 to candidates "
            "that are not relevant, -100 to padding."
        )
    found = []
    for row, own in zip(values, gains, strict=True):
        there = ~np.isnan(own)
        places = np.flatnonzero(own[there] > 0)
        if len(places):
            ranks = ranks_of(row[there], row[there][places], places)
            found.append(rank_scores(ranks, own[there][places], k)[kind])
    return np.array(found, dtype=np.float64)[:, None]


def ranking_metric(kind: str, k: int) -> Metric:
    """Recall, MRR, NDCG or MAP of the first k candidates, see `retrieval.rank_scores`.

    >>> metric = ranking_metric("ndcg", 7)
    >>> metric.value(metric.units([[3.0, 2.0, 1.0]], [[1, 0, 0]]))
    1.0
    """
    if kind not in KINDS or k < 1:
        raise ValueError(f"Expected {' or '.join(KINDS)} and k from 1 on, got {kind!r} and {k}.")
    return Metric(f"{kind}@{k}", f"{KINDS[kind]}@{k}", "rankings", partial(_rows, kind, k), mean)


METRICS = tuple(ranking_metric(kind, k) for kind in KINDS for k in DEPTHS)
