"""Metrics of a distillation: as functions on tensors, and as `evaluate` modules (`load_metric`)."""

from hf_distill.evaluation.metrics.functional import (
    acceptance,
    agreement,
    calibration_error,
    calibration_sums,
    decision_agreement,
    retention,
)
from hf_distill.evaluation.metrics.loading import load_metric

__all__ = [
    "acceptance",
    "agreement",
    "calibration_error",
    "calibration_sums",
    "decision_agreement",
    "load_metric",
    "retention",
]
