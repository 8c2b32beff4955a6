"""Perplexity from the summed negative log-likelihoods of documents."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_distill.evaluation.scoring.base import Floats, Metric, Weighted, ratio


def _sums(losses: Any, tokens: Any) -> Floats:
    """Nats and tokens of each document ``(N, 2)``."""
    nats, counts = (np.asarray(x, dtype=np.float64) for x in (losses, tokens))
    if nats.ndim != 1 or nats.shape != counts.shape:
        raise ValueError(
            f"Expected a summed negative log-likelihood and a number of tokens for each document, "
            f"both (N,), got {nats.shape} and {counts.shape}. Sum over the tokens of a document."
        )
    if np.isnan(nats).any() or not (counts >= 0).all():
        raise ValueError(
            "Expected losses that are numbers and counts of 0 or more, got NaN or a negative "
            f"count for document {int(np.flatnonzero(np.isnan(nats) | ~(counts >= 0))[0])}. "
            "Evaluate in float32, or look for an overflow."
        )
    return np.stack([nats, counts], axis=1)


def _perplexity(rows: Floats) -> Weighted:
    """exp of all nats divided by all tokens."""
    loss = ratio(rows)

    def value(times: Floats) -> float:
        with np.errstate(over="ignore"):
            return float(np.exp(loss(times)))

    return value


METRICS = (Metric("token_perplexity", "Perplexity", "likelihoods", _sums, _perplexity),)
