"""A trainer whose teachers learn at the same time."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_distill.data.streams import same_randomness
from hf_distill.models.class_order import align_classes, match_heads
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives import HardLabels, WeightDecay
from hf_distill.objectives.base.objective import BALANCE, Objective, WeightedSum
from hf_distill.objectives.routing import with_router_balance
from hf_distill.training.checks import (
    check_data,
    check_objective,
    check_targets,
    check_weight_decay,
)
from hf_distill.training.config import DistillationConfig
from hf_distill.training.joint.peers import STUDENT, Peers, named_peers
from hf_distill.training.joint.saving import split_groups, write_model
from hf_distill.training.joint.step import JointStep

TARGETS = ("others", "ensemble")


class OnlineDistillationTrainer(JointStep):
    """Trains a student and its teachers, the peers, at the same time.

    Every model has its own loss and learns from what the others say now; what they say is fixed,
    so that no loss changes a model other than its own. All are in train mode.

    - Joint: ``peer_objective=HardLabels()``, the peers learn from the labels alone.
    - Mutual learning (DML, Zhang et al. 2018, arXiv 1706.00384): ``objective`` and
      ``peer_objective`` are both ``HardLabels() + Mutual()``; with n models each learns from the
      mean over the n - 1 others.
    - An online ensemble (the mean of all models' outputs teaches each; as ONE, Lan et al. 2018,
      arXiv 1806.04606, without its gate): the same with ``targets="ensemble"``.

    A mixture of experts among them keeps its own balancing loss (`RouterBalance`), as in
    `DistillationTrainer`.

    ``evaluate()`` measures the student, against the first peer. A checkpoint's model is the plain
    student; the peers are beside it. Gradients are clipped by their norm over all models together.

    Args:
        model: The student.
        args: A `DistillationConfig`.
        peers: A model, several, or name -> model; the names are ``teacher``, ``teacher_2``, … where
            none are given, and prefix the components of their losses.
        objective: What the student minimises; by default what the scalars of ``args`` say.
        peer_objective: What each peer minimises.
        peer_learning_rate: Of the peers' weights; None: the student's. The same schedule.
        targets: ``others``: each learns from every other model, and the values are averaged;
            ``ensemble``: from the mean of the probabilities of all models, itself too.
        *positional: As `DistillationTrainer`, in the same order.
        **options: As `DistillationTrainer`, without ``teacher_model`` and ``model_init``.

    Raises:
        ValueError: anything that cannot work, before training starts, with the remedy.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: DistillationConfig | None = None,
        *positional: Any,
        peers: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
        objective: Objective | WeightedSum | None = None,
        peer_objective: Objective | WeightedSum | None = None,
        peer_learning_rate: float | None = None,
        targets: str = "others",
        **options: Any,
    ):
        if model is None or options.get("teacher_model") is not None:
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
        self._peers = Peers(named_peers(peers, model), self._ensemble)
        self._own_peer_objective = 1.0 * (
            HardLabels() if peer_objective is None else peer_objective
        )
        self.peer_learning_rate = peer_learning_rate
        options["teacher_model"] = self._peers
        super().__init__(model, args, *positional, objective=objective, **options)
        self._brought_schedule = self.lr_scheduler is not None
        if self._brought_schedule and peer_learning_rate is not None:
            raise ValueError(
                "peer_learning_rate makes parameter groups that a given scheduler does not know. "
                "Leave out the scheduler, or put the peers' weights in your optimizer yourself."
            )

    # ---- what is settled before the first step -----------------------------------------------

    def _refresh_objective(self) -> None:
        super()._refresh_objective()
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "OnlineDistillationTrainer holds whole models on every process: FSDP and DeepSpeed "
                "would shard the student alone. Train with plain DDP."
            )
        goal = self._smoothed(self._own_peer_objective)
        heads = self._peers.task_models.items()
        self._peer_goals = {name: with_router_balance(goal, head) for name, head in heads}
        check_weight_decay(goal, False, self.args.weight_decay)
        models: dict[str, nn.Module] = {STUDENT: self._student, **dict(self._peers.models.items())}
        for name, head in heads:
            others = Peers({n: m for n, m in models.items() if n != name}, self._ensemble)
            size = self.args.per_device_train_batch_size
            check_objective(self._peer_goals[name], others, head, size)
            clash = [
                part
                for part, _, _ in self.training_objective.named()
                if part.startswith(f"{name}_")
            ]
            if clash:
                raise ValueError(
                    f"The peer {name!r} prefixes the names of its components, and {clash[0]!r} is "
                    "one of the student's. Give it another name: peers={'teacher': …}."
                )

    def _match(self) -> None:
        """Bring the classes of all models into the student's order, or refuse a peer."""
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        tokens = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
        found = {
            name: match_heads(self._task_model, head.config, tokens, self._peers.tokens_of(name))
            for name, head in self._peers.task_models.items()
        }
        sizes = [ours for ours, _ in found.values() if isinstance(ours, int)]
        self._student_order = min(sizes) if sizes else None  # the rest pads somebody's vocabulary
        self._orders = {n: min(sizes) if sizes else theirs for n, (_, theirs) in found.items()}
        self._teacher_order = self._orders[self._peers.first]

    def _bind(self) -> None:
        goal = next(iter(self._peer_goals.values()))  # they differ in what needs no data alone
        check_data(None, self._first_batch, goal, self._task_model)
        self._peer_parameters: dict[str, dict[str, Tensor]] = {}
        self._peer_initial: dict[str, dict[str, Tensor]] = {}
        pulled = any(isinstance(part, WeightDecay) for _, part in goal.parts)
        for name, model in self._peers.models.items():
            decayed = set(self.get_decay_parameter_names(model)) if pulled else set()
            named: Iterable[tuple[str, Tensor]] = model.named_parameters()
            own = {n: p for n, p in named if p.requires_grad and n in decayed}
            self._peer_parameters[name] = own
            keep = own if goal.needs_initial else {}
            self._peer_initial[name] = {n: p.detach().clone() for n, p in keep.items()}
        super()._bind()

    def _learners(self) -> list[tuple[nn.Module, TaskModel, WeightedSum]]:
        peers = self._peers.models.items()
        return [
            *super()._learners(),
            *((model, self._peers.task_models[n], self._peer_goals[n]) for n, model in peers),
        ]

    def _build_projections(self) -> nn.ModuleDict:
        """Make the learned parts of every lesson; the peers are with them while training."""
        sample, device = self._first_batch, self.args.device
        if sample is None:
            raise ValueError(
                "OnlineDistillationTrainer looks at a few examples before it trains, and there is "
                "no data yet. Pass train_dataset or eval_dataset to the constructor."
            )
        if next(self._student.parameters()).device.type != device.type:
            self._student.to(device)  # with bf16_full_eval it waits for the first step
        items, training = self._task_model.items(sample), self._student.training
        self._student.eval()
        self._peers.models.eval()
        with torch.no_grad(), same_randomness(), warnings.catch_warnings():
            needs = self._needs_of(STUDENT, self._goals)
            _, signal = self._task_model.ask(self._student, sample, needs, items)
            signals = {STUDENT: align_classes(signal, self._student_order)}
            signals.update(self._ask_peers(sample, items, self._goals))
            for name in self._peers.task_models:
                check_targets(signals[name], items)
            warnings.simplefilter("ignore")  # a last batch of one is not meant by these few
            torch.manual_seed(self.args.seed)
            lessons, told = nn.ModuleDict(), self._told(signals)
            for learner, goal in self._goals.items():
                sources = self._sources(learner, told)
                built = {s: goal.build(signals[learner], t) for s, t in sources.items()}
                shared = next(iter(built.values()))  # one set of running means for each model
                for modules in built.values():
                    if BALANCE in modules:
                        modules[BALANCE] = shared[BALANCE]
                lessons[learner] = nn.ModuleDict(built)
            parts = {"lessons": lessons.to(device), "peers": self._peers.models}
            self.projections = nn.ModuleDict(parts)
            self._learn(signals, items, self._goals)
        self._student.train(training)
        return self.projections

    @property
    def _learns_labels(self) -> bool:
        return any(goal.needs_labels for goal in self._goals.values())

    # ---- training, saving --------------------------------------------------------------------

    def _inner_training_loop(self, *args: Any, **options: Any) -> Any:
        if self.args.gradient_checkpointing:
            for peer in self._peers.models.values():
                enable: Any = peer.gradient_checkpointing_enable
                enable(gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs)
        return super()._inner_training_loop(*args, **options)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The student's optimizer, with parameter groups of the peers' own."""
        optimizer = super().create_optimizer(model)
        if self._brought_schedule:  # which knows the groups that there are
            return optimizer
        split_groups(optimizer, self._peers.models.parameters(), self.peer_learning_rate)
        return optimizer

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """As `DistillationTrainer`, with the peers and their initial weights."""
        found = super().checkpoint_tensors().items()
        held = {name.removeprefix("projections."): tensor for name, tensor in found}
        for name, initial in self._peer_initial.items():
            held.update({f"initial_{name}.{n}": t for n, t in initial.items()})
        return held

    def save_peer(self, name: str, folder: str | Path) -> None:
        """Write a peer as a plain transformers model, with the processor of the student.

        Args:
            name: Of the peer.
            folder: Where to; files of these names are replaced once all are written.

        Raises:
            ValueError: no peer of this name.
        """
        if name not in self._peers.task_models:
            raise ValueError(f"Expected a peer of {list(self._peers.task_models)}, got {name!r}.")
        if self.args.should_save:
            write_model(self._peers.models[name], self.processing_class, Path(folder))
