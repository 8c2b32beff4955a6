"""Evaluation: the objective over a whole set, and both models side by side."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EvalPrediction, Trainer
from transformers.trainer_pt_utils import nested_detach
from transformers.trainer_utils import EvalLoopOutput, default_compute_objective

from hf_distill.evaluation import Evaluation
from hf_distill.heads import Head
from hf_distill.metrics import retained
from hf_distill.signals import Items, Needs, Signal
from hf_distill.tasks import TASKS
from hf_distill.teachers import Teacher
from hf_distill.terms import Sum


class Measuring(Trainer):
    """The evaluating part of the trainer.

    ``evaluate()`` adds to the metrics of `transformers.Trainer` each component of the objective,
    agreement and both divergences with the teacher, the calibration error, and the teacher's own
    metrics on the same data with the share of them that the student keeps. Sums and counts run
    over the whole set, so that neither batch size nor number of processes changes a figure.
    """

    teacher: Teacher | None
    goal: Sum
    _head: Head
    _evaluation: Evaluation | None = None
    _measure_both = False
    _added: frozenset[str] = frozenset()
    _step_teacher: Signal | None = None
    _step_loss: Tensor

    def _refresh_objective(self) -> None:
        raise NotImplementedError

    def _real_rows(self, batch: Mapping[str, Any]) -> Tensor | None:
        raise NotImplementedError

    def _teach(self, batch: Mapping[str, Any], needs: Needs, items: Items) -> Signal | None:
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
        self._evaluation = Evaluation(self._head.task.classes == "vocabulary")
        try:
            with self._measuring_both():
                both = self._measure_both
                output = super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
            figures, loss = self._evaluation.result(self.accelerator)
        finally:
            self._evaluation = None
        self._added |= figures.keys()
        metrics = dict(output.metrics or {})
        metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
        if loss is not None:
            metrics[f"{metric_key_prefix}_loss"] = loss
        predictions = output.predictions
        if both and predictions is not None:
            predictions = _of(predictions, 0)
        return output._replace(metrics=metrics, predictions=predictions)

    def hyperparameter_search(
        self, hp_space: Any = None, compute_objective: Any = None, *rest: Any, **options: Any
    ) -> Any:
        """As in `transformers`; the default score sums what `compute_metrics` gives, no more."""
        score = self._score if compute_objective is None else compute_objective
        return super().hyperparameter_search(hp_space, score, *rest, **options)

    def _score(self, metrics: dict[str, float]) -> float:
        added = {f"eval_{name}" for name in self._added}
        return default_compute_objective({k: v for k, v in metrics.items() if k not in added})

    @contextlib.contextmanager
    def _measuring_both(self) -> Iterator[None]:
        """Let `compute_metrics` see the teacher's predictions on the same data as well."""
        compute: Any = self.compute_metrics
        preprocess: Any = self.preprocess_logits_for_metrics
        teacher = self.teacher is not None and self.teacher.provides.whole
        # With batch_eval_metrics the function keeps sums of its own, and cannot serve two models.
        self._measure_both = bool(compute and teacher and not self.args.batch_eval_metrics)
        if not self._measure_both:
            yield
            return

        def both(prediction: EvalPrediction) -> dict[str, float]:
            ours, theirs = (compute(_part(prediction, index)) for index in (0, 1))
            added = {f"teacher_{name}": value for name, value in theirs.items()}
            added.update(retained(ours, theirs))
            self._added |= added.keys()
            return {**ours, **added}

        def each(logits: Any, labels: Any) -> Any:
            return tuple(preprocess(part, labels) for part in logits)

        self.compute_metrics = both
        self.preprocess_logits_for_metrics = None if preprocess is None else each
        try:
            yield
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
        with torch.no_grad(), self.compute_loss_context_manager():
            if self.goal.needs_labels and self._head.items(inputs).labels is None:
                # predict() on unlabelled data: there are outputs, and no loss
                batch = self._head.task.share(inputs, self._head.model)
                items = self._head.items(batch)
                self._step_teacher = self._teach(batch, Needs(logits=True), items)
                return None, model(**self._head.inputs(batch, Needs()))
            found: Any = self.compute_loss(model, inputs, return_outputs)
            loss, outputs = found if return_outputs else (found, None)
            if self._evaluation is not None:
                samples = self._head.items(inputs, self._real_rows(inputs)).masks["samples"]
                self._evaluation.add_other(loss - self._step_loss, samples.sum())
        return loss.detach(), outputs

    def _predictions(self, outputs: Any, ignore_keys: list[str] | None) -> Any:
        """What transformers gives to `compute_metrics`, without the states that we asked for."""
        config, task = self._head.config, self._head.task
        ignored = {"loss", "past_key_values", "hidden_states", "attentions"}
        ignored |= {"aux_loss", "image_hidden_states"}
        ignored |= set(ignore_keys or getattr(config, "keys_to_ignore_at_inference", []))
        ignored |= {*self._head.task.hidden.values(), *self._head.task.attentions.values()} - {
            "last_hidden_state",
            "text_embeds",
            "image_embeds",
        }
        if task is TASKS["other"]:  # whatever it gives, as `Trainer` hands it on
            ignored |= {k for k in outputs if k.endswith(("hidden_states", "attentions"))}
            return _handed_on(tuple(v for k, v in outputs.items() if k not in ignored))
        kept = [v for k, v in outputs.items() if k not in ignored and isinstance(v, Tensor)]
        found = tuple(v.detach() for v in kept)  # input gradients need a graph, metrics do not
        return found[0] if len(found) == 1 else found

    def _teacher_predictions(self, inputs: dict[str, Any], ours: Any) -> Any:
        if self._step_teacher is None or self._step_teacher.logits is None:
            raise ValueError("Expected logits of the teacher for compute_metrics, got none.")
        theirs = self._head.task.predictions(self._step_teacher.logits, inputs)
        like = (ours,) if isinstance(ours, Tensor) else ours
        if self._head.task.classes == "vocabulary":  # phantom entries, which nothing may choose
            lowest, phantom = torch.finfo(theirs[0].dtype).min, like[0].shape[-1]
            theirs = (F.pad(theirs[0], (0, phantom - theirs[0].shape[-1]), value=lowest),)
        # What a student gives besides its logits (an encoder's states) a teacher's signal has not.
        theirs += tuple(torch.full_like(part, torch.nan) for part in like[len(theirs) :])
        return theirs[0] if isinstance(ours, Tensor) else theirs


def _handed_on(found: tuple[Any, ...]) -> Any:
    detached = nested_detach(found)
    return detached[0] if len(detached) == 1 else detached


def _part(prediction: EvalPrediction, index: int) -> EvalPrediction:
    """One model's share of a prediction of both, with labels that a metric may edit in place."""
    return EvalPrediction(
        predictions=_of(prediction.predictions, index),
        label_ids=copy.deepcopy(prediction.label_ids),
        inputs=prediction.inputs,
        losses=prediction.losses,
    )


def _of(both: Any, index: int) -> Any:
    """One model's share: a pair, or a list of pairs where batches are not concatenated."""
    return [pair[index] for pair in both] if isinstance(both, list) else both[index]
