"""Metrics by name: the same value for any batches, order and processes, each with an interval."""

import difflib

from hf_distill.evaluation.scoring import (
    answers,
    boxes,
    classes,
    likelihoods,
    maps,
    multi_label,
    rankings,
    tags,
    texts,
    values,
)
from hf_distill.evaluation.scoring.base import FORMS, Metric

FAMILIES = (classes, multi_label, values, tags, texts, answers, maps, rankings, boxes, likelihoods)
METRICS: dict[str, Metric] = {
    metric.name: metric for family in FAMILIES for metric in family.METRICS
}
"""Name in a recipe -> metric. `find` has messages for unknown names."""


def find(name: str) -> Metric:
    """The metric with a name; ``recall@k``, ``mrr@k``, ``ndcg@k`` and ``map@k`` for any k.

    Raises:
        ValueError: there is none.

    >>> find("accuracy").title
    'Accuracy'
    """
    if name in METRICS:
        return METRICS[name]
    kind, _, depth = name.partition("@")
    if kind in rankings.KINDS and depth.isdecimal() and int(depth):
        return rankings.ranking_metric(kind, int(depth))
    near = difflib.get_close_matches(name, METRICS, n=3)
    raise ValueError(
        f"Expected the name of a metric, got {name!r}. "
        + (f"Is it {' or '.join(near)}? " if near else "")
        + f"There are: {', '.join(METRICS)}."
    )


__all__ = ["FORMS", "METRICS", "Metric", "find"]
