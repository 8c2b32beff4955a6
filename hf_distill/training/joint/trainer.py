"""A trainer whose teachers learn at the same time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback

from hf_distill.models.task_model import TaskModel
from hf_distill.objectives import HardLabels
from hf_distill.objectives.base.objective import Objective, WeightedSum
from hf_distill.teachers import Teacher
from hf_distill.training.config import DistillationConfig
from hf_distill.training.joint.peers import Peers, named_peers
from hf_distill.training.joint.setup import JointSetup
from hf_distill.training.joint.step import JointStep
from hf_distill.training.trainer import DistillationTrainer

TARGETS = ("others", "ensemble")


class OnlineDistillationTrainer(DistillationTrainer):
    """Trains a student and its teachers, the peers, at the same time.

    Every model has its own loss and learns from the present outputs of the others, which are
    detached. All are in train mode.

    - Joint: ``peer_objective=HardLabels()``, the peers learn from the labels alone.
    - Mutual learning (DML, Zhang et al. 2018, arXiv 1706.00384): ``objective`` and
      ``peer_objective`` are both ``HardLabels() + Mutual()``; with n models each learns from the
      mean over the n - 1 others.
    - An online ensemble (the mean of all models' outputs teaches each; as ONE, Lan et al. 2018,
      arXiv 1806.04606, without its gate): the same with ``targets="ensemble"``.

    ``evaluate()`` measures the student, against the first peer. A checkpoint's model is the plain
    student; the peers are beside it. Gradients are clipped by their norm over all models together.

    Args:
        model: The student.
        args: A `DistillationConfig`.
        peers: A model, several, or name -> model; the names (default: ``teacher``, ``teacher_2``,
            …) prefix the components of their losses.
        objective: Objective of the student; default: that of the scalars of ``args``.
        peer_objective: Objective of each peer.
        peer_learning_rate: Learning rate of the peers' weights; default: the student's.
        targets: ``others``: each learns from every other model, and the values are averaged;
            ``ensemble``: from the mean of the probabilities of all models, itself too.
        data_collator: As `transformers.Trainer`, like all that are not listed here. There is no
            ``teacher_model`` and no ``model_init``.

    Raises:
        ValueError: anything that cannot work, before training starts, with the remedy.
    """

    setup = JointSetup()
    step: JointStep

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: DistillationConfig | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        peers: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
        objective: Objective | WeightedSum | None = None,
        peer_objective: Objective | WeightedSum | None = None,
        peer_learning_rate: float | None = None,
        targets: str = "others",
        peft_config: PeftConfig | None = None,
        teacher_model: None = None,
    ):
        if model is None or teacher_model is not None:
            raise ValueError(
                "OnlineDistillationTrainer takes the student as model=… (not model_init=…, which "
                "would not start the peers anew) and its teachers as peers=… (not teacher_model=…)."
            )
        if targets not in TARGETS:
            raise ValueError(f"Expected targets of {list(TARGETS)}, got {targets!r}.")
        if peer_learning_rate is not None and not peer_learning_rate >= 0:
            raise ValueError(
                f"Expected a peer_learning_rate of 0 or more, got {peer_learning_rate}."
            )
        self._ensemble = targets == "ensemble"
        self._peer_objective = 1.0 * (HardLabels() if peer_objective is None else peer_objective)
        self.peer_learning_rate = peer_learning_rate
        super().__init__(
            *(model, args, data_collator, train_dataset, eval_dataset, processing_class),
            *(model_init, compute_loss_func, compute_metrics, callbacks, optimizers),
            *(optimizer_cls_and_kwargs, preprocess_logits_for_metrics),
            teacher_model=Peers(named_peers(peers, model), self._ensemble),
            objective=objective,
            peft_config=peft_config,
        )
        self._brought_schedule = self.lr_scheduler is not None
        if self._brought_schedule and peer_learning_rate is not None:
            raise ValueError(
                "peer_learning_rate makes parameter groups that a given scheduler does not know. "
                "Leave out the scheduler, or put the peers' weights in your optimizer yourself."
            )

    def make_step(self, task_model: TaskModel, teacher: Teacher | None) -> JointStep:
        assert isinstance(teacher, Peers)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "OnlineDistillationTrainer holds whole models on every process: FSDP and DeepSpeed "
                "would shard the student alone. Train with plain DDP."
            )
        processor = self.processing_class
        return JointStep(task_model, teacher, self._peer_objective, self._ensemble, processor)

    # ---- training, saving --------------------------------------------------------------------

    def _inner_training_loop(self, *args: Any, **options: Any) -> Any:
        if self.args.gradient_checkpointing:
            for peer in self.step.peers.models.values():
                enable: Any = peer.gradient_checkpointing_enable
                enable(gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs)
        return super()._inner_training_loop(*args, **options)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The student's optimizer, with parameter groups of the peers' own."""
        optimizer = super().create_optimizer(model)
        if self._brought_schedule:  # made for the present groups
            return optimizer
        split_groups(optimizer, self.step.peers.models.parameters(), self.peer_learning_rate)
        return optimizer

    def save_peer(self, name: str, folder: str | Path) -> None:
        """Write a peer as a plain transformers model, with the processor of the student.

        Files of the same names are replaced once all are written.

        Raises:
            ValueError: no peer of this name.
        """
        if name not in self.step.peers.task_models:
            raise ValueError(
                f"Expected a peer of {list(self.step.peers.task_models)}, got {name!r}."
            )
        if self.args.should_save:
            write_model(self.step.peers.models[name], self.processing_class, Path(folder))


def split_groups(
    optimizer: torch.optim.Optimizer, peers: Iterable[Tensor], rate: float | None
) -> None:
    """Move the peers' weights to parameter groups of their own after all others, once.

    Their learning rate is `rate`; None: that of their old group.
    """
    theirs, groups = {id(p) for p in peers}, optimizer.param_groups
    for group in [g for g in groups if not g.get("peers")]:
        moved = [p for p in group["params"] if id(p) in theirs]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in theirs]
            lr = group["lr"] if rate is None else rate
            groups.append({**group, "params": moved, "lr": lr, "peers": True})
    groups[:] = [group for group in groups if group["params"]]


def write_model(model: Any, processor: Any, folder: Path) -> None:
    """Write a model and its processor, if any, beside the folder, then replace its files."""
    staging = folder.with_name(f".{folder.name}.saving")
    shutil.rmtree(staging, ignore_errors=True)
    for part in (model, processor):
        if part is not None:
            part.save_pretrained(staging)
    for file in sorted(path for path in staging.rglob("*") if path.is_file()):
        with file.open("rb") as written:
            os.fsync(written.fileno())
        place = folder / file.relative_to(staging)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
    shutil.rmtree(staging)
