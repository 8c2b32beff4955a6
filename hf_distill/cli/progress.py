"""A recipe on a terminal: steps, loss and the time that is left, in place of a bar per training."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import datasets
from transformers import (
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging

from hf_distill.cli.terminal import Terminal
from hf_distill.recipe import Recipe, Run
from hf_distill.training.trainer import DistillationTrainer


class WatchedRun(Run):
    """A `Run` whose trainings show in the status of a terminal."""

    def __init__(self, recipe: Recipe, terminal: Terminal):
        self._terminal = terminal
        logging.disable_progress_bar()  # of weights that are loaded
        datasets.disable_progress_bars()
        super().__init__(recipe, terminal)

    def make_trainer(self, *args: Any, **options: Any) -> DistillationTrainer:
        """As in `Run`, with `ProgressStatus` where the bar was."""
        trainer = super().make_trainer(*args, **options)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressStatus(self._terminal.status))
        return trainer


class ProgressStatus(TrainerCallback):
    """Says where a training is: ``step 120 of 400, loss 0.413, 0:02:10 left``.

    Args:
        status: Shows a text.
    """

    def __init__(self, status: Callable[[str], None]):
        self._status, self._loss = status, ""
        self._batches = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._start, self._first = time.monotonic(), state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        done, left = state.global_step - self._first, state.max_steps - state.global_step
        seconds = (time.monotonic() - self._start) / max(1, done) * left
        self._status(
            f"step {state.global_step} of {state.max_steps}{self._loss}, "
            f"{timedelta(seconds=round(seconds))} left"
        )

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logs = kwargs.get("logs") or {}
        if "loss" in logs:
            self._loss = f", loss {float(logs['loss']):.4g}"

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._batches += 1
        self._status(f"evaluation, batch {self._batches}")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._batches = 0
