"""Experiment trackers: W&B, TensorBoard, trackio and MLflow, and the files of curves."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import CallbackHandler

from hf_distill.evaluation.curves import WORTH_DRAWING, CurvesCallback

CONFIG = "distillation"
"""Name of the facts of a run in the configuration that a tracker shows."""
_TRACKIO_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


def tracker_callbacks(
    args: TrainingArguments, facts: Callable[[], dict[str, Any]], handler: CallbackHandler
) -> list[TrainerCallback]:
    """Callbacks that a trainer adds: `RunFacts`, and curves where there is no tracker."""
    found: list[TrainerCallback] = [RunFacts(facts, handler)]
    given = any(isinstance(callback, CurvesCallback) for callback in handler.callbacks)
    if not (given or args.report_to) and importlib.util.find_spec("matplotlib"):
        found.append(CurvesCallback(at_least=WORTH_DRAWING))
    return found


def write_curves(handler: CallbackHandler, args: TrainingArguments, state: TrainerState) -> None:
    """Draw the curves of what was logged so far, for a training that was interrupted."""
    for callback in handler.callbacks:
        if isinstance(callback, CurvesCallback):
            callback.write(args, state)


class RunFacts(TrainerCallback):
    """Facts of a run written to the configuration of its trackers when training starts."""

    def __init__(self, facts: Callable[[], dict[str, Any]], handler: CallbackHandler):
        self.facts = facts
        self.handler = handler

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not args.report_to:
            return
        facts = self.facts()
        for callback in self.handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                lines = json.dumps(facts, indent=2, ensure_ascii=False).splitlines()
                code = "\n".join(f"    {line}" for line in lines)  # Markdown
                callback.tb_writer.add_text(CONFIG, code)
        if _follows(args, "wandb"):
            import wandb

            wandb.config.update({CONFIG: facts}, allow_val_change=True)
        if _follows(args, "trackio"):
            import trackio

            trackio.config.update({CONFIG: facts})
        if _follows(args, "mlflow"):
            import mlflow

            tags = {f"{CONFIG}.{n}": json.dumps(v, ensure_ascii=False) for n, v in facts.items()}
            mlflow.set_tags(tags)


def check_trackers(args: TrainingArguments) -> None:
    """Raise ImportError where ``report_to`` names a tracker that is not installed."""
    for name in ("tensorboard", "wandb", "trackio", "mlflow"):
        if _follows(args, name) and importlib.util.find_spec(name) is None:
            raise ImportError(
                f"report_to names {name}, which is not installed: pip install {name}, or leave it "
                "out."
            )


def _follows(args: TrainingArguments, tracker: str) -> bool:
    return tracker in (args.report_to or ())


def _logged_in(wandb: Any) -> bool:
    """Check for a W&B account without a prompt and without the network."""
    try:
        return bool(wandb.login(verify=False, prompt=False))
    except TypeError:  # an older version, where only this shows no prompt
        return bool(wandb.api.api_key)


def keep_trackers_offline(args: TrainingArguments) -> None:
    """Keep trackers' data on this machine without a login (W&B, without ``WANDB_MODE``) or an
    explicit request to upload (trackio)."""
    first = args.process_index == 0  # the others start no run
    if _follows(args, "wandb") and first and not os.environ.get("WANDB_MODE"):
        import wandb

        if wandb.run is None and not _logged_in(wandb):
            wandb.setup(settings=wandb.Settings(mode="offline"))
            wandb.termlog(
                "No login found: this run stays on this machine. `wandb sync` with its folder "
                "uploads it later; after `wandb login` runs are online."
            )
    asked = args.trackio_space_id or any(os.environ.get(name) for name in _TRACKIO_ELSEWHERE)
    if _follows(args, "trackio") and not asked and args.trackio_static_space_id is None:
        args.trackio_static_space_id = False
