"""The evaluation of a recipe: all models on the test split, against the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import EvalPrediction, PreTrainedModel

from hf_distill.evaluation.metrics.functional import calibration_error, calibration_sums
from hf_distill.models.task_model import describe_model
from hf_distill.recipe.schedule import AVERAGE
from hf_distill.teachers import Ensemble, ModelTeacher, Teacher

Compute = Callable[[EvalPrediction], dict[str, float]]
THEIRS = "teacher_"
"""Prefix of the teacher's figures in the trainer's metrics."""


def with_nll_and_ece(compute: Compute) -> Compute:
    """A metric function that gives mean negative log-likelihood and calibration error as well.

    The trainer measures them of a student by itself; what it measures of the teacher beside it is
    what this function says.
    """

    def judged(prediction: EvalPrediction) -> dict[str, float]:
        logits = torch.as_tensor(prediction.predictions).double()
        labels = torch.as_tensor(prediction.label_ids)
        bins = calibration_sums(logits, labels, torch.ones_like(labels, dtype=torch.bool))
        nll = torch.nn.functional.cross_entropy(logits, labels)
        return {**compute(prediction), "nll": float(nll), "ece": float(calibration_error(bins))}

    return judged


def with_compute(models: Mapping[str, PreTrainedModel]) -> Teacher:
    """A single teacher unchanged, several as the mean of their probabilities."""
    if len(models) == 1:
        return ModelTeacher(next(iter(models.values())))
    named = {key.split("/")[-1]: model for key, model in models.items()}
    ensemble: Any = Ensemble(named, average=AVERAGE)
    return ensemble


def as_teacher_metrics(figures: Mapping[str, float]) -> dict[str, float]:
    """The teacher's figures, under plain names, out of those of an evaluation of a student."""
    return {k.removeprefix(THEIRS): v for k, v in figures.items() if k.startswith(THEIRS)}


def describe_ensemble(models: Mapping[str, PreTrainedModel]) -> dict[str, Any]:
    """Metadata of several models of one kind used as an ensemble: parameters add up."""
    facts = [describe_model(model) for model in models.values()]
    total = sum(fact["parameters"] for fact in facts)
    return {**facts[0], "parameters": total, "members": len(facts)}
