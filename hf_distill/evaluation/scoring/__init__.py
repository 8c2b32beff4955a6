"""Metrics of tasks: sufficient statistics of each example, values of the whole set, intervals."""

from __future__ import annotations

from hf_distill.evaluation.scoring.base import Metric
from hf_distill.evaluation.scoring.classes import ACCURACY

__all__ = ["METRICS", "Metric"]

METRICS: dict[str, Metric] = {metric.name: metric for metric in (ACCURACY,)}
"""Name -> `Metric`."""
