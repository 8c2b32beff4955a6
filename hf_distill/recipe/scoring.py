"""Metrics of a recipe: their choice, their values on a split, and intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import EvalPrediction

from hf_distill.evaluation.metrics.functional import calibration_error, calibration_sums
from hf_distill.evaluation.scoring import METRICS, Metric
from hf_distill.recipe.errors import RecipeError, unknown
from hf_distill.recipe.labels import CLASS, MULTI_LABEL, VALUE, Labels
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.tasks.base import RecipeTask, Split


def metrics_of(recipe: Recipe, task: RecipeTask, labels: Labels) -> tuple[str, ...]:
    """Names of the recipe's metrics; the first decides.

    Raises:
        RecipeError: metrics that do not exist or are not for this task.
    """
    own = task.metrics[labels.kind]
    given = [recipe.metric] if isinstance(recipe.metric, str) else recipe.metric
    if given is None:
        given = list(own if task.narrowed is None else task.narrowed(labels, own))
        _check_installed(given)
        return tuple(given)
    forms = {METRICS[name].form for name in own if name in METRICS}
    known = [*(name for name in own if name not in METRICS)]
    known += [name for name, metric in METRICS.items() if metric.form in forms]
    for name in given:
        if name not in known:
            raise RecipeError(f"`metric`: {unknown(name, known)}")
    if not given or len(set(given)) != len(given):
        raise RecipeError(f"`metric`: expected one metric, or different ones, got {given}.")
    _check_installed(given)
    return tuple(given)


def _check_installed(names: Sequence[str]) -> None:
    """Raise RecipeError for a metric whose library is missing, before anything is trained."""
    for name in names:
        library = METRICS[name].library if name in METRICS else ""
        if library and find_spec(library.replace("-", "_")) is None:
            raise RecipeError(
                f"`metric`: {name} needs {library}, which is not installed. Install it: "
                'pip install "hf_distill[metrics]"; or name another metric.'
            )


class Scorer:
    """Values of metrics on one split; ``compute_metrics`` of a trainer.

    Args:
        task: The recipe's task.
        names: The metrics.
        split: The split.
        of_teacher: True: also mean negative log-likelihood and calibration error of classifiers,
            which the trainer measures of students.
    """

    def __init__(
        self, task: RecipeTask, names: Sequence[str], split: Split, of_teacher: bool = False
    ):
        self.task, self.split, self.of_teacher = task, split, of_teacher
        self.metrics = {name: METRICS[name] for name in names if name in METRICS}
        self.units: dict[str, np.ndarray] = {}

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        predictions, references = self.task.outputs(prediction, self.split)
        found = self.score(predictions, references)
        if self.of_teacher and self.split.labels.kind == CLASS:
            found |= _calibration(prediction)
        return found

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """The value of each metric; what was computed last is kept in ``units``."""
        self.units = {
            name: metric.units(predictions, references) for name, metric in self.metrics.items()
        }
        return {name: _value(self.metrics[name], units) for name, units in self.units.items()}

    def check(self, name: str) -> None:
        """Check that the labels of the split let every metric have a value.

        Args:
            name: The name of the split, for messages.

        Raises:
            RecipeError: they do not: a class without an example, for the area under a curve.
        """
        labels = self.split.labels
        if labels.kind not in (CLASS, MULTI_LABEL, VALUE):
            return
        references = np.asarray(self.split.raw["labels"][:])
        shape = (*references.shape[:1], len(labels.names)) if labels.names else references.shape
        predictions = np.random.default_rng(0).standard_normal(shape)
        for key, metric in self.metrics.items():
            try:
                metric.value(metric.units(predictions, references))
            except ValueError as error:
                raise RecipeError(
                    f"`metric`: {key} has no value for split {name!r}: {error} Choose another "
                    "metric, or more examples."
                ) from error

    def intervals(self) -> dict[str, list[float]]:
        """Bootstrap intervals over the examples of what was computed last, level 0.95."""
        return {
            name: list(self.metrics[name].interval(units))
            for name, units in self.units.items()
            if math.isfinite(_value(self.metrics[name], units))
        }


def _value(metric: Metric, units: np.ndarray) -> float:
    """The metric of the whole set; the worst number where it has none: the correlation of constant
    predictions. NaN would stay the best value of a training for good."""
    try:
        return metric.value(units)
    except ValueError:
        return -math.inf if metric.higher_is_better else math.inf


def _calibration(prediction: EvalPrediction) -> dict[str, float]:
    logits = torch.as_tensor(prediction.predictions).double()
    classes = torch.as_tensor(np.asarray(prediction.label_ids))
    sums = calibration_sums(logits, classes, torch.ones_like(classes, dtype=torch.bool))
    return {
        "nll": float(F.cross_entropy(logits, classes)),
        "ece": float(calibration_error(sums)),
    }
