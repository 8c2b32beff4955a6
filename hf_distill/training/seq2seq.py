"""Sequence-to-sequence distillation with generation."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Seq2SeqTrainer

from hf_distill.models.batch_checks import explained_errors
from hf_distill.models.task_model import TaskModel
from hf_distill.teachers import ModelTeacher
from hf_distill.training.config import Seq2SeqDistillationConfig
from hf_distill.training.trainer import DistillationTrainer


class Seq2SeqDistillationTrainer(DistillationTrainer, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with a teacher; ``predict_with_generate`` serves both."""

    config_class = Seq2SeqDistillationConfig

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **options: Any,
    ) -> tuple[Any, Any, Any]:
        generate = getattr(self.args, "predict_with_generate", False) and not prediction_loss_only
        if not generate:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        loss = None
        if any(inputs.get(key) is not None for key in ("labels", "decoder_input_ids")):
            loss, _, _ = super().prediction_step(model, inputs, True, ignore_keys)
        ours, labels = self._generate(self._student, self.step.task_model, inputs, options)
        if self._evaluation is not None and self._evaluation.both:
            if not isinstance(self.teacher, ModelTeacher):
                raise ValueError("compute_metrics on generated text needs a model as the teacher.")
            theirs, _ = self._generate(
                self.teacher.model, self.teacher.task_model, self.teacher.own(inputs), options
            )
            ours = (ours, theirs)
        return loss, ours, labels

    def _generate(
        self,
        model: nn.Module,
        task_model: TaskModel,
        inputs: dict[str, Any],
        options: dict[str, Any],
    ) -> tuple[Any, Any]:
        """Seq2SeqTrainer generates with ``self.model``; its loss of that step is not used."""
        student, self.model = self.model, model
        inputs = {key: value for key, value in inputs.items() if task_model.takes(key, True)}
        try:
            step = Seq2SeqTrainer.prediction_step
            with explained_errors(task_model.who, task_model.model, inputs):
                _, tokens, labels = step(self, model, inputs, False, **options)
        finally:
            self.model = student
        return tokens, labels
