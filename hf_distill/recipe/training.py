"""Construction of the recipe's trainers, and their results."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate.utils import gather_object
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from hf_distill.evaluation.curves import WORTH_DRAWING, CurvesCallback
from hf_distill.models.sharding import local_shard
from hf_distill.recipe.errors import RecipeError, refusing, shown
from hf_distill.recipe.schema import Recipe
from hf_distill.training.config import DistillationConfig
from hf_distill.training.idle import no_steps
from hf_distill.training.model_card import SPEED
from hf_distill.training.on_policy import OnPolicyConfig
from hf_distill.training.trackers import check_trackers
from hf_distill.training.trainer import DistillationTrainer
from hf_distill.utils import interrupts

PATIENCE = "early_stopping_patience"
MODEL_OPTIMIZERS = ("apollo", "galore", "lomo", "adalomo")
"""Prefixes of optimizers that are made of a model alone."""


def arguments(
    recipe: Recipe, role: str, seed: int, folder: Path, watch: str = "loss", **changes: Any
) -> DistillationConfig:
    """The training arguments of a stage; an `OnPolicyConfig` if it trains on its own text.

    ``watch`` is the figure by which checkpoints are compared if training may stop early.

    Raises:
        RecipeError: they do not go together.
    """
    options = recipe.training_of(role)
    patience = options.get(PATIENCE)
    if patience is not None and patience < 1:
        raise RecipeError(f"`{PATIENCE}`: expected at least 1, or null, got {patience}.")
    kind: type[DistillationConfig] = DistillationConfig
    if recipe.on_policy is not None and role in ("student", *recipe.assistant_roles):
        kind, options = OnPolicyConfig, options | recipe.on_policy
    if options.pop(PATIENCE, None) is not None:
        options.setdefault("load_best_model_at_end", True)
        options.setdefault("metric_for_best_model", watch)
        options["restore_callback_states_from_checkpoint"] = True  # the patience that is left
        if not options["load_best_model_at_end"]:
            raise RecipeError(f"`{PATIENCE}` and `load_best_model_at_end: false` contradict.")
    if not torch.accelerator.is_available():
        options.setdefault("use_cpu", True)  # or transformers refuses bf16, which CPUs can do
    with refusing(f"the training arguments of the {role} do not work"):
        args = kind(
            output_dir=str(folder),
            seed=seed,
            remove_unused_columns=False,  # there is only what the models take
            **{**options, **changes},
        )
        check_trackers(args)
        _try_out(args)
    reason = no_steps(args)
    if not args.learning_rate > 0:
        reason = f"learning_rate={args.learning_rate:g}. Give a number above 0"
    if reason is not None:  # an untrained model would be published as trained
        raise RecipeError(f"the training arguments of the {role} train nothing: {reason}.")
    return args


def _try_out(args: TrainingArguments) -> None:
    """Construct what a training derives from its arguments, so that errors appear at once."""
    args.get_process_log_level()
    if args.parallelism_config is not None:
        raise RecipeError(
            "`parallelism_config`: expected nothing, as it is an object of accelerate, got "
            f"{shown(args.parallelism_config)}. Make it in a script with a DistillationTrainer."
        )
    parameter = torch.nn.Parameter(torch.zeros(1))
    if not args.optim.startswith(MODEL_OPTIMIZERS):
        made, options = Trainer.get_optimizer_cls_and_kwargs(args)
        if made.__module__.startswith("torch.optim"):  # others may want a device that comes later
            made([parameter], **options)
    more: Any = args.lr_scheduler_kwargs
    optimizer = torch.optim.SGD([parameter])
    get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(10), 10, more)


def evaluation_arguments(recipe: Recipe, folder: Path, watch: str) -> DistillationConfig:
    """The arguments of an evaluation: in full precision, on every example."""
    whole = {"bf16": False, "fp16": False, "dataloader_drop_last": False}
    plain = dataclasses.replace(recipe, on_policy=None)
    return arguments(plain, "student", recipe.seed, folder, watch, **whole)


def callbacks(recipe: Recipe, role: str, folder: Path) -> list[TrainerCallback]:
    """Callbacks of a stage: wall time, curves, and early stopping if requested."""
    patience = recipe.training_of(role).get(PATIENCE)
    stopping = [] if patience is None else [EarlyStoppingCallback(patience)]
    return [WallTimeCallback(), CurvesCallback(folder, at_least=WORTH_DRAWING), *stopping]


class WallTimeCallback(TrainerCallback):
    """Adds the time of training, over all interruptions, to every log entry."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        before = [entry["seconds"] for entry in state.log_history if "seconds" in entry]
        self._start = time.perf_counter() - (before[-1] if before else 0.0)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.log_history and hasattr(self, "_start"):
            state.log_history[-1]["seconds"] = round(time.perf_counter() - self._start, 3)


class Heard(TrainerCallback):
    """Stops at the next step, or the next batch of an evaluation, where Ctrl-C was dropped."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        interrupts.check()

    on_substep_end = on_prediction_step = on_step_begin


class Resumed(TrainerCallback):
    """Stops a training that does not go on at the step of its checkpoint, a folder."""

    def __init__(self, checkpoint: str):
        self._checkpoint = checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = int(self._checkpoint.rpartition("-")[2])
        if state.global_step != step:  # trained weights would be trained once more
            raise RecipeError(
                f"expected to go on at step {step} of {self._checkpoint}, got step "
                f"{state.global_step}: its trainer_state.json is another one's, or gone. Remove "
                "this checkpoint, and run the same command again."
            )


def weights_of(model: nn.Module) -> str:
    """A hash of the weights that are trained, as far as this process holds them."""
    digest = xxhash.xxh3_128()
    for parameter in model.parameters():
        if parameter.requires_grad:
            held = local_shard(parameter).contiguous().cpu()
            digest.update(held.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_learned(before: str, model: nn.Module, name: str) -> None:
    """Raise RecipeError if a training has changed no weight on any process; each calls this.

    ``before`` is `weights_of` the model before. A model in shards has other parts now, and passes.
    """
    if not any(gather_object([weights_of(model) != before])):
        raise RecipeError(
            f"{name} has learned nothing: after its training it has the weights it began with, and "
            "is not published as trained. Look at its learning rate, and at whether anything in "
            "the data counts for its objective."
        )


def validated(trainer: DistillationTrainer, metric: str) -> dict[str, float]:
    """The figures of the trained model on the validation split, measured again only if need be."""
    state = trainer.state
    best = trainer.args.load_best_model_at_end and state.best_global_step
    for entry in state.log_history:
        if entry["step"] == (best or state.global_step) and f"eval_{metric}" in entry:
            return figures(entry)
    return figures(trainer.evaluate())


def figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures of `evaluate()` under plain names; speed is measured elsewhere."""
    found = {k.removeprefix("eval_"): v for k, v in metrics.items() if k.startswith("eval_")}
    found = {"nll" if k == "hard_labels" else k: v for k, v in found.items()}
    return {k: float(v) for k, v in found.items() if k != "loss" and not k.endswith(SPEED)}
