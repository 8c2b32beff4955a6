"""Progress of a recipe's trainings: a bar on a terminal, lines anywhere else."""

from __future__ import annotations

import sys
from typing import Any

import datasets
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging


class ProgressBar(ProgressCallback):
    """Bar of a training or evaluation, with the loss; it is removed when the training ends."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        if self.training_bar is not None:
            self.training_bar.leave = False

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        super().on_prediction_step(*args, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.leave = False

    def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.4g}")


def progress_callback() -> type[TrainerCallback]:
    """Callback that shows the progress of a training on this standard error.

    Bars of loading and saving weights are switched off; in a file or a pipe, those of data too.
    """
    logging.disable_progress_bar()
    if sys.stderr.isatty():
        return ProgressBar
    datasets.disable_progress_bars()
    return PrinterCallback
