"""What a run tells of itself while it trains: its log, and the trackers that follow it."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import CallbackHandler

from hf_distill.evaluation.curves import WORTH_DRAWING, CurvesCallback
from hf_distill.models.batch_checks import finite_mark
from hf_distill.models.signals import Signal
from hf_distill.objectives.base.loss_shares import LossShares
from hf_distill.objectives.base.loss_weights import LossShare
from hf_distill.objectives.base.objective import BALANCE, WeightedSum
from hf_distill.objectives.base.schedules import Progress, Schedule
from hf_distill.objectives.base.temperature import LearnedTemperature
from hf_distill.teachers import Teacher
from hf_distill.training.config import DistillationConfig

CONFIG = "distillation"
"""Under this name the facts of a run stand in the configuration that a tracker shows."""
SUMS = "log-{:05d}.safetensors"
"""In a checkpoint, for each process: what was added up for the next log entry, and for all."""
_TRACKIO_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Tracking(Trainer):
    """The part of the trainer that logs.

    Each entry of training holds the mean of every component since the last one, unweighted, under
    its name; with ``log_gradient_norms`` ``grad_norm_forward_kl``; of what changes during training
    ``forward_kl_weight`` and ``forward_kl_temperature``, as the last step used them.
    """

    args: DistillationConfig
    teacher: Teacher | None
    training_objective: WeightedSum
    run_facts: Callable[[], dict[str, Any]]

    def __init__(self, *positional: Any, **options: Any):
        self._components: dict[str, Tensor] = {}
        self._components_from = 0
        self._taught: Tensor | None = None  # NaN: the teacher said something that is not finite
        self._gradients: dict[str, Tensor] = {}
        self._moving: dict[str, float | Tensor] = {}
        self._sums_from: str | None = None
        self._knows_all_losses = False
        super().__init__(*positional, **options)
        keep_trackers_offline(self.args)
        self.add_callback(RunFacts(self.run_facts, self.callback_handler))
        given = any(isinstance(c, CurvesCallback) for c in self.callback_handler.callbacks)
        if not (given or self.args.report_to) and importlib.util.find_spec("matplotlib"):
            self.add_callback(CurvesCallback(at_least=WORTH_DRAWING))

    # ---- the log -----------------------------------------------------------------------------

    def _keep_components(
        self, components: Mapping[str, Tensor], teacher: Signal | None = None
    ) -> None:
        mark = None if teacher is None else finite_mark(teacher)
        if mark is not None:
            self._taught = mark if self._taught is None else self._taught + mark
        if not self._components:
            self._components_from = self.state.global_step
        elif self.state.global_step == 1:  # what is broken from the start is told at once
            self._mean_components()
        for name, value in components.items():
            kept = self._components.get(name)
            self._components[name] = value if kept is None else kept + value

    def _mean_components(self) -> dict[str, float]:
        """The mean of each component per optimizer step since the last log, over all ranks.

        Raises:
            FloatingPointError: one of them is not finite.
        """
        if not self._components:
            return {}
        names = sorted(self._components)
        steps = max(1, self.state.global_step - self._components_from)
        kept = [self._components[name].double() for name in names]
        mark = kept[0].new_zeros(()) if self._taught is None else self._taught.to(kept[0])
        values = torch.stack([*kept, mark]) / steps
        summed = self.args.average_tokens_across_devices
        values = self.accelerator.reduce(values, "sum" if summed else "mean")
        *found, taught = values.tolist()
        means = dict(zip(names, found, strict=True))
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad and not math.isfinite(taught):
            raise FloatingPointError(
                f"The loss is not finite at step {self.state.global_step}: {bad} of {means}. The "
                f"teacher ({type(self.teacher).__name__}) gave NaN or infinity since the last log. "
                "The last checkpoint is from before. Load the teacher in float32 or bfloat16 "
                "(teacher_model_init_kwargs={'dtype': 'float32'}), and look at its weights and at "
                "the batches' inputs; of one on a server, at its log."
            )
        if bad:
            raise FloatingPointError(
                f"The loss is not finite at step {self.state.global_step}: {bad} of {means}. The "
                "last checkpoint is from before. Lower the learning rate or raise warmup_steps, "
                "use bf16 instead of fp16, and look for NaN in the inputs; "
                "a CTC target with too few frames is left out with "
                "student.config.ctc_zero_infinity = True."
            )
        return means

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._mean_components())
            logs.update({n: float(v) for n, v in (self._gradients | self._moving).items()})
            self._components, self._gradients, self._taught = {}, {}, None
        if "train_loss" in logs and self._knows_all_losses:  # `Trainer` has those since the resume
            total: Any = self._total_loss_scalar
            logs["train_loss"] = total / self.state.global_step
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._mean_components()  # never let broken weights take the place of a good checkpoint
        super()._save_checkpoint(model, trial)

    # ---- what a checkpoint keeps of it -------------------------------------------------------

    def _sums(self) -> dict[str, Tensor]:
        """The sums since the last log entry, and the losses of the whole run."""
        steps: Any = self
        counts = {
            "total": steps._total_loss_scalar,
            "last_logged": steps._globalstep_last_logged,
            "components_from": self._components_from,
            "processes": self.accelerator.num_processes,
        }
        sums = {name: torch.tensor(n, dtype=torch.float64) for name, n in counts.items()}
        components = {f"component.{name}": value for name, value in self._components.items()}
        return {"loss": steps._tr_loss, **sums, **components}

    def _take_up(self, sums: Mapping[str, Tensor]) -> None:
        """Go on from `_sums`."""
        steps: Any = self
        steps._tr_loss += sums["loss"].to(steps._tr_loss.device)
        steps._total_loss_scalar = sums["total"].item()
        steps._globalstep_last_logged = int(sums["last_logged"])
        self._components_from = int(sums["components_from"])
        named = {k.removeprefix("component."): v for k, v in sums.items() if k.startswith("comp")}
        named.pop("components_from")
        self._components = {name: value.to(self.args.device) for name, value in named.items()}

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        held = {name: value.detach().cpu().contiguous() for name, value in self._sums().items()}
        save_file(held, Path(output_dir) / SUMS.format(self.args.process_index))

    def _resume_sums(self) -> None:
        folder, self._sums_from = self._sums_from, None
        if folder is not None:
            path = Path(folder) / SUMS.format(self.args.process_index)
            sums = load_file(path) if path.is_file() else {}
            if int(sums.get("processes", 0)) == self.accelerator.num_processes:
                self._take_up(sums)
                self._knows_all_losses = True

    def _run_epoch(self, *args: Any, **options: Any) -> Any:
        self._resume_sums()
        return super()._run_epoch(*args, **options)

    def _finalize_training(self, *args: Any, **options: Any) -> Any:
        self._resume_sums()  # of a run that was at its end
        return super()._finalize_training(*args, **options)

    def _inner_training_loop(self, *args: Any, **options: Any) -> Any:
        self._sums_from = options.get("resume_from_checkpoint")
        self._knows_all_losses = False
        try:
            output = super()._inner_training_loop(*args, **options)
            return output._replace(training_loss=output.metrics["train_loss"])
        except BaseException:  # an interrupt, too: what was logged until then is of use
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, CurvesCallback):
                    callback.write(self.args, self.state)
            raise


def scheduled_values(
    goal: WeightedSum, modules: Mapping[str, nn.Module], progress: Progress
) -> dict[str, float | Tensor]:
    """The weights and temperatures of an objective that change during training, as they are now.

    Args:
        goal: The objective.
        modules: What its `build` made, by name.
        progress: Where training is.
    """
    found: dict[str, float | Tensor] = {}
    balance = modules.get(BALANCE)
    shares = balance.weights() if isinstance(balance, LossShares) else {}
    for name, weight, part in goal.named():
        if isinstance(weight, Schedule):
            found[f"{name}_weight"] = weight.at(progress)
        elif isinstance(weight, LossShare):
            found[f"{name}_weight"] = shares[name]
        temperature = getattr(part, "temperature", None)
        if isinstance(temperature, Schedule):
            found[f"{name}_temperature"] = temperature.at(progress)
        elif isinstance(temperature, LearnedTemperature):
            found[f"{name}_temperature"] = temperature.of(modules[name], progress).detach()
    return found


# ---- trackers ------------------------------------------------------------------------------------


class RunFacts(TrainerCallback):
    """Writes the facts of a distillation into the configuration of every tracker of the run.

    Args:
        facts: Tells them, when training starts.
        handler: Holds the trackers' callbacks.
    """

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
                callback.tb_writer.add_text(CONFIG, _code(facts))
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


def _code(facts: Mapping[str, Any]) -> str:
    """JSON as a block of code in Markdown."""
    lines = json.dumps(facts, indent=2, ensure_ascii=False).splitlines()
    return "\n".join(f"    {line}" for line in lines)


def _logged_in(wandb: Any) -> bool:
    """Whether W&B knows an account, without a question and without the network."""
    try:
        return bool(wandb.login(verify=False, prompt=False))
    except TypeError:  # an older version, where only this does not ask
        return bool(wandb.api.api_key)


def keep_trackers_offline(args: TrainingArguments) -> None:
    """Let trackers write to this machine alone, unless it is logged in or they are told to send.

    - W&B runs are offline where there is no login and no ``WANDB_MODE``.
    - trackio publishes no dashboard with a push to the Hub unless ``trackio_space_id`` or
      ``trackio_static_space_id`` names one.
    """
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
