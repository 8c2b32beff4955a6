"""Evaluation: the objective over a whole set, and the metrics of both models."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from transformers import EvalPrediction
from transformers.trainer_pt_utils import nested_detach
from transformers.trainer_utils import (
    EvalLoopOutput,
    SchedulerType,
    default_compute_objective,
    denumpify_detensorize,
)

from hf_distill.evaluation.metrics import retention
from hf_distill.evaluation.metrics.functional import number
from hf_distill.evaluation.running_metrics import RunningMetrics
from hf_distill.models.outputs import by_name
from hf_distill.models.places import Prompt
from hf_distill.models.signals import Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.models.tasks import TASKS
from hf_distill.training.config import DistillationConfig
from hf_distill.training.reduction import StepResult

logger = logging.getLogger(__name__)

FOLLOWING = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
"""Schedulers that follow ``metric_for_best_model``."""


class Comparison:
    """Names of the figures that evaluations have added to those of `compute_metrics`."""

    def __init__(self) -> None:
        self.added: set[str] = set()
        self._taken: set[str] = set()

    def without(self, figures: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """The trainer's figures, without the names that `compute_metrics` uses."""
        if taken := sorted((figures.keys() & given.keys()) - self._taken):
            self._taken |= set(taken)
            logger.warning(
                "compute_metrics gives %s, as the trainer does: what compute_metrics gives is "
                "kept. Give it another name to see both.",
                taken,
            )
        return {name: value for name, value in figures.items() if name not in given}

    def score(self, metrics: dict[str, Any]) -> float:
        """The default score of a hyper-parameter search: the sum of the user's own metrics."""
        added = {f"eval_{name}" for name in self.added}
        given = {k: number(v) for k, v in metrics.items() if k not in added}
        return default_compute_objective({k: v for k, v in given.items() if v is not None})


@dataclass
class Evaluation:
    """One evaluation over a data set.

    Attributes:
        prefix: The prefix of the metrics' names, with its underscore.
        metrics: Running sums of losses and comparisons with the teacher.
        both: Whether `compute_metrics` is called with the teacher's predictions too.
        given: The student's metrics from `compute_metrics`, by names without the prefix.
    """

    prefix: str
    metrics: RunningMetrics
    both: bool
    given: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, trainer: Any, prefix: str) -> Evaluation:
        """The evaluation that a `DistillationTrainer` begins.

        With ``batch_eval_metrics`` the function keeps sums itself, and cannot serve two models.
        """
        args, step = trainer.args, trainer.step
        teacher = step.teacher is not None and step.teacher.provides.full_vocabulary
        both = teacher and args.eval_teacher and not args.batch_eval_metrics
        vocabulary = step.task_model.task.classes == "vocabulary"
        metrics = RunningMetrics(vocabulary, args.eval_teacher)
        return cls(f"{prefix}_", metrics, bool(trainer.compute_metrics and both))

    def compute(
        self, compute: Callable[..., Any], comparison: Comparison
    ) -> Callable[..., dict[str, Any]]:
        """`compute_metrics` of one model or, the student last, of both."""

        def measure(prediction: EvalPrediction, **options: Any) -> dict[str, Any]:
            if not self.both:
                found = compute(prediction, **options) or {}
                self.given.update(_bare(found, self.prefix))
                return found
            theirs, ours = (_bare(compute(_part(prediction, i)), self.prefix) for i in (1, 0))
            self.given.update(ours)
            added = {f"teacher_{name}": value for name, value in theirs.items()}
            added = comparison.without({**added, **retention(ours, theirs)}, ours)
            comparison.added |= added.keys()
            return {**ours, **added}

        return measure

    def preprocess(self, preprocess: Callable[..., Any]) -> Callable[..., Any]:
        """`preprocess_logits_for_metrics` of both models."""
        return lambda logits, labels: tuple(preprocess(part, labels) for part in logits)

    def add(self, result: StepResult) -> None:
        """Add the components of one batch."""
        self.metrics.add_terms(result.terms, result.sums, result.items.counts())

    def add_other(self, loss: Tensor, objective: Tensor, rows: Tensor) -> None:
        """Add what a subclass's loss has above the objective's value; `rows` ``(B,)`` count."""
        added = torch.where(loss == objective, 0.0, loss - objective)  # of infinity nothing
        self.metrics.add_other(added, rows.sum())

    def finish(
        self, output: EvalLoopOutput, comparison: Comparison, accelerator: Accelerator
    ) -> EvalLoopOutput:
        """The output with the figures of this evaluation, and the student's predictions."""
        figures, loss = self.metrics.result(accelerator)
        if loss is not None:
            figures["loss"] = loss
        figures = comparison.without(figures, self.given)
        comparison.added |= figures.keys() - {"loss"}
        metrics = dict(output.metrics or {})
        metrics.update({f"{self.prefix}{name}": value for name, value in figures.items()})
        if "loss" in self.given:  # transformers writes its own over one that has the prefix
            metrics[f"{self.prefix}loss"] = denumpify_detensorize(self.given["loss"])
        predictions = output.predictions
        if self.both and predictions is not None:
            predictions = _of(predictions, 0)
        return output._replace(metrics=metrics, predictions=predictions)


def scheduler_settings(args: DistillationConfig) -> dict[str, Any] | None:
    """``lr_scheduler_kwargs``, with the mode of a scheduler that follows a metric."""
    given: Any = args.lr_scheduler_kwargs
    if args.lr_scheduler_type not in FOLLOWING:
        return given
    return {"mode": "max" if args.greater_is_better else "min", **(given or {})}


def warn_of_entropy_gap(args: DistillationConfig) -> None:
    """Warn that the lowest entropy gap is not the nearest to the teacher."""
    if str(args.metric_for_best_model).endswith("entropy_gap"):
        logger.warning(
            "The best checkpoint is that of the lowest entropy_gap, which may be below 0: a "
            "student that is too confident. metric_for_best_model='forward_kl_divergence' is "
            "lowest where student and teacher are equal."
        )


def predictions_of(task_model: TaskModel, outputs: Any, ignore_keys: list[str] | None) -> Any:
    """The predictions that transformers passes to `compute_metrics`."""
    if not isinstance(outputs, Mapping):  # a subclass may return what it likes
        parts = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        outputs = {str(n): part for n, part in enumerate(parts) if part.dim() > 0}
    task = task_model.task
    keys = getattr(task_model.config, "keys_to_ignore_at_inference", [])
    inside = {*task.hidden.values(), *task.attentions.values()}
    ignored = {
        *("loss", "past_key_values", "hidden_states", "attentions", "aux_loss"),
        *("image_hidden_states", *(ignore_keys or keys)),
        *(inside - {"last_hidden_state", "text_embeds", "image_embeds"}),
    }
    if task is TASKS["other"]:  # whatever it gives, as `Trainer` hands it on
        ignored |= {k for k in outputs if k.endswith(("hidden_states", "attentions"))}
        given = nested_detach(tuple(v for k, v in outputs.items() if k not in ignored))
        return given[0] if len(given) == 1 else given
    outputs = by_name(outputs, task.fields)
    kept = [v for k, v in outputs.items() if k not in ignored and isinstance(v, Tensor)]
    found = tuple(v.detach() for v in kept)  # input gradients need a graph, metrics do not
    return found[0] if len(found) == 1 else found


def teacher_predictions(
    task_model: TaskModel, teacher: Signal | None, inputs: Mapping[str, Any], ours: Any
) -> Any:
    """The teacher's predictions in the form of the student's."""
    if teacher is None or teacher.logits is None:
        raise ValueError("Expected logits of the teacher for compute_metrics, got none.")
    theirs = task_model.task.predictions(teacher.logits, inputs)
    like = (ours,) if isinstance(ours, Tensor) else ours
    if task_model.task.classes == "vocabulary":  # phantom entries, which nothing may choose
        lowest, phantom = torch.finfo(theirs[0].dtype).min, like[0].shape[-1]
        theirs = (F.pad(theirs[0], (0, phantom - theirs[0].shape[-1]), value=lowest),)
    # a teacher's signal lacks what a student returns besides its logits (an encoder's states)
    pairs = zip(theirs, like, strict=False)
    theirs = tuple(t.view_as(o) if t.numel() == o.numel() else t for t, o in pairs)
    prompt = Prompt.of(task_model.given, inputs)  # a soft prompt, which the teacher does not have
    theirs = tuple(prompt.before(t, o) for t, o in zip(theirs, like, strict=False))
    theirs += tuple(torch.full_like(part, torch.nan) for part in like[len(theirs) :])
    return theirs[0] if isinstance(ours, Tensor) else theirs


def _bare(metrics: Mapping[Any, Any] | None, prefix: str) -> dict[str, Any]:
    """Metrics by names without the prefix that `Trainer` puts before those that lack it."""
    return {str(name).removeprefix(prefix): value for name, value in (metrics or {}).items()}


def _part(prediction: EvalPrediction, index: int) -> EvalPrediction:
    """One model's share of a prediction of both. The teacher's is measured first, with copies,
    since a metric may edit labels and inputs in place."""
    return EvalPrediction(
        predictions=_of(prediction.predictions, index),
        label_ids=copy.deepcopy(prediction.label_ids) if index else prediction.label_ids,
        inputs=copy.deepcopy(prediction.inputs) if index else prediction.inputs,
        losses=prediction.losses,
    )


def _of(both: Any, index: int) -> Any:
    """One model's share: a pair, or a list of pairs where batches are not concatenated."""
    return [pair[index] for pair in both] if isinstance(both, list) else both[index]
