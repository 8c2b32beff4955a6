"""Construction of a `JointStep`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from hf_distill.data.random_states import same_randomness
from hf_distill.models.class_order import align_classes, match_heads
from hf_distill.objectives.base.objective import BALANCE, WeightedSum
from hf_distill.objectives.base.schedules import Progress
from hf_distill.training.checks import (
    check_objective,
    check_weight_decay,
)
from hf_distill.training.config import DistillationConfig
from hf_distill.training.data_checks import check_data, check_targets
from hf_distill.training.joint.peers import STUDENT, Peers
from hf_distill.training.joint.step import JointStep
from hf_distill.training.setup import (
    Sample,
    StepSetup,
    decayed_parameters,
    objective_of,
    tokens_of,
)
from hf_distill.training.step import DistillationStep, StepBatch


class JointSetup(StepSetup):
    """The construction of a step in which several models are trained."""

    def set_objective(
        self,
        step: DistillationStep,
        args: DistillationConfig,
        own: WeightedSum | None,
        sharded: bool,
        warn: bool = False,
    ) -> None:
        super().set_objective(step, args, own, sharded, warn)
        assert isinstance(step, JointStep)
        peers = step.peers
        models = {STUDENT: step.task_model.given, **dict(peers.models.items())}
        for name, task_model in peers.task_models.items():
            objective = objective_of(args, step.own_peer_objective, task_model)
            step.peer_objectives[name] = objective
            check_weight_decay(objective, False, args.weight_decay)
            others = Peers({n: m for n, m in models.items() if n != name}, step.ensemble)
            check_objective(objective, others, task_model, args.per_device_train_batch_size)
            parts = [part for part, _, _ in step.objective.named()]
            if clash := [part for part in parts if part.startswith(f"{name}_")]:
                raise ValueError(
                    f"The peer {name!r} prefixes the names of its components, and {clash[0]!r} is "
                    "one of the student's. Give it another name: peers={'teacher': …}."
                )

    def match_classes(self, step: DistillationStep) -> None:
        """Bring the classes of all models into the student's order, or refuse a peer."""
        assert isinstance(step, JointStep)
        tokens, peers = tokens_of(step.processor), step.peers
        found = {
            name: match_heads(step.task_model, task_model.config, tokens, peers.tokens_of(name))
            for name, task_model in peers.task_models.items()
        }
        for name, (_, order) in found.items():
            labels = peers.task_models[name].config.num_labels
            if isinstance(order, Tensor) and len(order) < labels:
                raise ValueError(
                    f"Expected the peer {name!r} to have the student's {len(order)} labels, which "
                    f"it is trained on too, got {labels}. Create it with the student's id2label."
                )
        sizes = [ours for ours, _ in found.values() if isinstance(ours, int)]
        step.student_order = min(sizes) if sizes else None  # the rest pads somebody's vocabulary
        step.orders = {n: min(sizes) if sizes else theirs for n, (_, theirs) in found.items()}
        step.teacher_order = step.orders[peers.first]

    def keep_parameters(
        self,
        step: DistillationStep,
        decayed: Callable[[nn.Module], Iterable[str]],
        device: torch.device,
    ) -> None:
        super().keep_parameters(step, decayed, device)
        assert isinstance(step, JointStep)
        for name, model in step.peers.models.items():
            found = decayed_parameters(model, step.peer_objectives[name], decayed, device)
            step.peer_parameters[name], step.peer_initial[name] = found

    def build(
        self, step: DistillationStep, sample: Sample | None, device: torch.device, seed: int
    ) -> None:
        """Build the learned parts of every learner and source; the peers are among them while they
        train."""
        assert isinstance(step, JointStep)
        if sample is None:
            raise ValueError(
                "OnlineDistillationTrainer looks at a few examples before it trains, and there is "
                "no data yet. Pass train_dataset or eval_dataset to the constructor."
            )
        task_model, objectives = step.task_model, step.objectives
        check_data(None, dict(sample), next(iter(step.peer_objectives.values())), task_model)
        model = task_model.given
        if next(model.parameters()).device.type != device.type:
            model.to(device)  # with bf16_full_eval it waits for the first step
        batch, training = StepBatch(sample, task_model.items(sample)), model.training
        model.eval()
        step.peers.models.eval()
        with torch.no_grad(), same_randomness(), warnings.catch_warnings():
            needs = step.needs_of(STUDENT, objectives)
            _, signal = task_model.ask(model, sample, needs, batch.items)
            signals = {STUDENT: align_classes(signal, step.student_order)}
            signals.update(step.ask_peers(batch, objectives))
            for name in step.peers.task_models:
                check_targets(signals[name], batch.items)
            warnings.simplefilter("ignore")  # a last batch of one is not meant by these few
            torch.manual_seed(seed)
            lessons, shared_signals = nn.ModuleDict(), step.sources(signals)
            for learner, objective in objectives.items():
                sources = step.sources_of(learner, shared_signals)
                built = {s: objective.build(signals[learner], t) for s, t in sources.items()}
                shared = next(iter(built.values()))  # one set of running means for each model
                for modules in built.values():
                    if BALANCE in modules:
                        modules[BALANCE] = shared[BALANCE]
                lessons[learner] = nn.ModuleDict(built)
            parts = {"lessons": lessons.to(device), "peers": step.peers.models}
            step.projections = nn.ModuleDict(parts)
            context = step.context(None, model, Progress())
            step.learn(signals, batch.items, objectives, context)
        model.train(training)
