"""Evaluation: the objective over a whole set, and both models side by side."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EvalPrediction, Trainer
from transformers.trainer_pt_utils import nested_detach
from transformers.trainer_utils import (
    EvalLoopOutput,
    SchedulerType,
    default_compute_objective,
    denumpify_detensorize,
)

from hf_distill.evaluation.metrics import retention
from hf_distill.evaluation.metrics.functional import number
from hf_distill.evaluation.running_metrics import OTHER, RunningMetrics
from hf_distill.models.outputs import by_name
from hf_distill.models.places import Prompt
from hf_distill.models.signals import LOGITS, BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.models.tasks import TASKS
from hf_distill.objectives.base.objective import WeightedSum
from hf_distill.teachers import Teacher
from hf_distill.training.config import DistillationConfig
from hf_distill.training.reduction import Counts

logger = logging.getLogger(__name__)

FOLLOWING = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
"""Schedulers that look at ``metric_for_best_model``."""


class Measuring(Trainer):
    """The evaluating part of the trainer.

    ``evaluate()`` adds to the metrics of `transformers.Trainer` each component of the objective,
    agreement and both divergences with the teacher, the calibration error, and the teacher's own
    metrics on the same data with the share of them that the student keeps. Sums and counts run
    over the whole set, so that neither batch size nor number of processes changes a figure.

    `compute_metrics` is called twice: first with the teacher's predictions, then with the
    student's, so that what it keeps or writes last is the student's. It may give values of any
    kind; ``retained_…`` is of numbers alone of which more is better. A name that it shares with the
    trainer's figures is its own. ``eval_teacher=False`` leaves the teacher out, but for the loss.

    A subclass whose `compute_loss` does not call ``super()`` is evaluated by its own loss, as in
    `transformers.Trainer`, and without what belongs to the objective.
    """

    args: DistillationConfig
    teacher: Teacher | None
    training_objective: WeightedSum
    _task_model: TaskModel
    _evaluation: RunningMetrics | None = None
    _measure_both = False
    _added: frozenset[str] = frozenset()
    _taken: frozenset[str] = frozenset()
    _step_teacher: Signal | None = None
    _step_loss: Tensor | None = None
    _direction_known = False
    _own_loss = False  # whether the last loss came from a subclass alone

    def _refresh_objective(self) -> None:
        raise NotImplementedError

    def _real_rows(self, batch: Mapping[str, Any]) -> Tensor | None:
        raise NotImplementedError

    def _loss_scale(self) -> float:
        raise NotImplementedError

    def _teach(self, batch: Mapping[str, Any], needs: Needs, items: BatchItems) -> Signal | None:
        raise NotImplementedError

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        if not self.is_in_train:
            self._refresh_objective()
        vocabulary = self._task_model.task.classes == "vocabulary"
        self._evaluation = RunningMetrics(vocabulary, self.args.eval_teacher)
        try:
            with self._measuring_both(f"{metric_key_prefix}_") as given:
                both = self._measure_both
                output = super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
            figures, loss = self._evaluation.result(self.accelerator)
        finally:
            self._evaluation = None
        if loss is not None:
            figures["loss"] = loss
        figures = self._without(figures, given)
        self._added |= figures.keys() - {"loss"}
        metrics = dict(output.metrics or {})
        metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
        if "loss" in given:  # transformers writes its own over one that has the prefix
            metrics[f"{metric_key_prefix}_loss"] = denumpify_detensorize(given["loss"])
        predictions = output.predictions
        if both and predictions is not None:
            predictions = _of(predictions, 0)
        return output._replace(metrics=metrics, predictions=predictions)

    def _without(self, figures: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """The trainer's figures, without those whose names `compute_metrics` has taken."""
        if taken := sorted((figures.keys() & given.keys()) - self._taken):
            self._taken |= set(taken)
            logger.warning(
                "compute_metrics gives %s, as the trainer does: what compute_metrics gives is "
                "kept. Give it another name to see both.",
                taken,
            )
        return {name: value for name, value in figures.items() if name not in given}

    def _settle_direction(self) -> None:
        """Say which way the metric of the best checkpoint is better, unless the arguments do."""
        components = (OTHER, *(name for name, _, _ in self.training_objective.named()))
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else ()
        self._direction_known = self.args.settle_direction(components, sets)
        if str(self.args.metric_for_best_model).endswith("entropy_gap"):
            logger.warning(
                "The best checkpoint is that of the lowest entropy_gap, which may be below 0: a "
                "student that is too sure of itself. metric_for_best_model='kl_forward' is lowest "
                "where student and teacher are equal."
            )

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """As in `transformers`; one that follows a metric follows it the way it is better."""
        args: Any = self.args
        given = args.lr_scheduler_kwargs
        if self._direction_known and args.lr_scheduler_type in FOLLOWING:
            mode = "max" if args.greater_is_better else "min"
            args.lr_scheduler_kwargs = {"mode": mode, **(given or {})}
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        finally:
            args.lr_scheduler_kwargs = given

    def hyperparameter_search(
        self, hp_space: Any = None, compute_objective: Any = None, *rest: Any, **options: Any
    ) -> Any:
        """As in `transformers`; the default score sums what `compute_metrics` gives, no more."""
        score = self._score if compute_objective is None else compute_objective
        return super().hyperparameter_search(hp_space, score, *rest, **options)

    def _score(self, metrics: dict[str, Any]) -> float:
        added = {f"eval_{name}" for name in self._added}
        given = {k: number(v) for k, v in metrics.items() if k not in added}
        return default_compute_objective({k: v for k, v in given.items() if v is not None})

    @contextlib.contextmanager
    def _measuring_both(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Let `compute_metrics` see the teacher's predictions on the same data as well.

        Yields what it gives for the student, by names without the prefix.
        """
        compute: Any = self.compute_metrics
        preprocess: Any = self.preprocess_logits_for_metrics
        teacher = self.teacher is not None and self.teacher.provides.full_vocabulary
        # With batch_eval_metrics the function keeps sums of its own, and cannot serve two models.
        both = teacher and self.args.eval_teacher and not self.args.batch_eval_metrics
        self._measure_both = bool(compute and both)
        given: dict[str, Any] = {}

        def measure(prediction: EvalPrediction, **options: Any) -> dict[str, Any]:
            if not self._measure_both:
                found = compute(prediction, **options) or {}
                given.update(_bare(found, prefix))
                return found
            # The student last: what a function keeps or writes of its last call is the student's.
            theirs, ours = (_bare(compute(_part(prediction, i)), prefix) for i in (1, 0))
            given.update(ours)
            added = {f"teacher_{name}": value for name, value in theirs.items()}
            added = self._without({**added, **retention(ours, theirs)}, ours)
            self._added |= added.keys()
            return {**ours, **added}

        def each(logits: Any, labels: Any) -> Any:
            return tuple(preprocess(part, labels) for part in logits)

        self.compute_metrics = measure if compute else None
        if preprocess and self._measure_both:
            self.preprocess_logits_for_metrics = each
        try:
            yield given
        finally:
            self.compute_metrics = compute
            self.preprocess_logits_for_metrics = preprocess
            self._measure_both = False

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **options: Any,
    ) -> tuple[Tensor | None, Any, Any]:
        inputs = self._prepare_inputs(inputs)
        labels: Any = tuple(inputs.get(key) for key in self.label_names)
        labels = None if not labels or any(label is None for label in labels) else labels
        loss, outputs = self._evaluate_batch(model, inputs, not prediction_loss_only)
        if prediction_loss_only:
            return loss, None, None
        ours = self._predictions(outputs, ignore_keys)
        if self._measure_both:
            ours = (ours, self._teacher_predictions(inputs, ours))
        return loss, ours, labels[0] if labels is not None and len(labels) == 1 else labels

    def _evaluate_batch(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = True
    ) -> tuple[Tensor | None, Any]:
        batch = self._task_model.task.share(inputs, self._task_model.model)
        items, loss, outputs = self._task_model.items(batch), None, None
        skip = items.labels is None and (self.training_objective.needs_labels or self._own_loss)
        self._step_teacher = self._step_loss = None
        with torch.no_grad(), self.compute_loss_context_manager():
            if not skip:  # predict() on unlabelled data: there are outputs, and no loss
                counts = {unit: n * self._loss_scale() for unit, n in items.counts().items()}
                compute: Any = self.compute_loss
                found = compute(
                    model, dict(inputs), return_outputs, num_items_in_batch=Counts(counts)
                )
                loss, outputs = found if isinstance(found, tuple) else (found, None)
                loss = loss.detach().mean()
                self._own_loss = self._step_loss is None
            if self._step_loss is None and self._measure_both and return_outputs:
                self._step_teacher = self._teach(batch, LOGITS, items)
            if outputs is None and return_outputs:
                outputs, _ = self._task_model.ask(model, batch, Needs(), items)
            if loss is not None and self._step_loss is not None and self._evaluation is not None:
                samples = self._task_model.items(batch, self._real_rows(batch)).masks["samples"]
                added = torch.where(loss == self._step_loss, 0.0, loss - self._step_loss)
                self._evaluation.add_other(added, samples.sum())  # of infinity nothing
        return loss, outputs

    def _predictions(self, outputs: Any, ignore_keys: list[str] | None) -> Any:
        """What transformers gives to `compute_metrics`, without the states that we asked for."""
        if not isinstance(outputs, Mapping):  # a subclass may return what it likes
            parts = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
            outputs = {str(n): part for n, part in enumerate(parts) if part.dim() > 0}
        config, task = self._task_model.config, self._task_model.task
        ignored = {"loss", "past_key_values", "hidden_states", "attentions"}
        ignored |= {"aux_loss", "image_hidden_states"}
        ignored |= set(ignore_keys or getattr(config, "keys_to_ignore_at_inference", []))
        ignored |= {
            *self._task_model.task.hidden.values(),
            *self._task_model.task.attentions.values(),
        } - {
            "last_hidden_state",
            "text_embeds",
            "image_embeds",
        }
        if task is TASKS["other"]:  # whatever it gives, as `Trainer` hands it on
            ignored |= {k for k in outputs if k.endswith(("hidden_states", "attentions"))}
            return _handed_on(tuple(v for k, v in outputs.items() if k not in ignored))
        outputs = by_name(outputs, self._task_model.task.fields)
        kept = [v for k, v in outputs.items() if k not in ignored and isinstance(v, Tensor)]
        found = tuple(v.detach() for v in kept)  # input gradients need a graph, metrics do not
        return found[0] if len(found) == 1 else found

    def _teacher_predictions(self, inputs: dict[str, Any], ours: Any) -> Any:
        if self._step_teacher is None or self._step_teacher.logits is None:
            raise ValueError("Expected logits of the teacher for compute_metrics, got none.")
        theirs = self._task_model.task.predictions(self._step_teacher.logits, inputs)
        like = (ours,) if isinstance(ours, Tensor) else ours
        if (
            self._task_model.task.classes == "vocabulary"
        ):  # phantom entries, which nothing may choose
            lowest, phantom = torch.finfo(theirs[0].dtype).min, like[0].shape[-1]
            theirs = (F.pad(theirs[0], (0, phantom - theirs[0].shape[-1]), value=lowest),)
        # What a student gives besides its logits (an encoder's states) a teacher's signal has not.
        pairs = zip(theirs, like, strict=False)
        theirs = tuple(t.view_as(o) if t.numel() == o.numel() else t for t, o in pairs)
        prompt = Prompt.of(
            self._task_model.given, inputs
        )  # what it puts in front, of which theirs is none
        theirs = tuple(prompt.before(t, o) for t, o in zip(theirs, like, strict=False))
        theirs += tuple(torch.full_like(part, torch.nan) for part in like[len(theirs) :])
        return theirs[0] if isinstance(ours, Tensor) else theirs


def _handed_on(found: tuple[Any, ...]) -> Any:
    detached = nested_detach(found)
    return detached[0] if len(detached) == 1 else detached


def _bare(metrics: Mapping[Any, Any] | None, prefix: str) -> dict[str, Any]:
    """Metrics by names without the prefix that `Trainer` puts before those that lack it."""
    return {str(name).removeprefix(prefix): value for name, value in (metrics or {}).items()}


def _part(prediction: EvalPrediction, index: int) -> EvalPrediction:
    """One model's share of a prediction of both; the teacher's, which is measured first, with
    copies of labels and inputs, since a metric may edit them in place."""
    return EvalPrediction(
        predictions=_of(prediction.predictions, index),
        label_ids=copy.deepcopy(prediction.label_ids) if index else prediction.label_ids,
        inputs=copy.deepcopy(prediction.inputs) if index else prediction.inputs,
        losses=prediction.losses,
    )


def _of(both: Any, index: int) -> Any:
    """One model's share: a pair, or a list of pairs where batches are not concatenated."""
    return [pair[index] for pair in both] if isinstance(both, list) else both[index]
