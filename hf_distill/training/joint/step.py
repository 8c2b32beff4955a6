"""One step of online distillation: every model learns from the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.models.class_order import ClassOrder, align_classes
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.objective import Context, Term, WeightedSum, mean_term
from hf_distill.teachers.ensemble.mixing import mean_of, member_probs
from hf_distill.training.joint.peers import STUDENT, Peers
from hf_distill.training.reduction import StepResult
from hf_distill.training.step import DistillationStep, StepBatch


class JointStep(DistillationStep):
    """A `DistillationStep` in which the teachers, the peers, are trained too.

    A model, the learner, learns from each of its sources: every other model, the ensemble of all,
    or none. Each pair of learner and source has its own projections.

    Args:
        task_model: The student.
        peers: The models in training besides the student.
        peer_objective: The objective of each peer.
        ensemble: Whether the only source is the mean of all models' probabilities.
        processor: The student's tokenizer or processor.
    """

    def __init__(
        self,
        task_model: TaskModel,
        peers: Peers,
        peer_objective: WeightedSum,
        ensemble: bool,
        processor: Any = None,
    ):
        super().__init__(task_model, peers, processor)
        self.peers, self.own_peer_objective, self.ensemble = peers, peer_objective, ensemble
        self.peer_objectives: dict[str, WeightedSum] = {}
        self.orders: dict[str, ClassOrder] = {}
        self.peer_parameters: dict[str, dict[str, Tensor]] = {}
        self.peer_initial: dict[str, dict[str, Tensor]] = {}

    @property
    def objectives(self) -> dict[str, WeightedSum]:
        """The objective of each model, the student first."""
        return {STUDENT: self.objective, **self.peer_objectives}

    @property
    def needs_labels(self) -> bool:
        return any(objective.needs_labels for objective in self.objectives.values())

    @property
    def student_needs(self) -> Needs:
        return self.needs_of(STUDENT, self.objectives if self.training else (STUDENT,))

    @property
    def learned(self) -> nn.ModuleDict:
        return self.modules_of(STUDENT)

    def learners(self) -> list[tuple[TaskModel, WeightedSum]]:
        peers = self.peers.task_models.items()
        return [
            (self.task_model, self.objective),
            *((task_model, self.peer_objectives[name]) for name, task_model in peers),
        ]

    def needs_of(self, name: str, learners: Iterable[str]) -> Needs:
        """The outputs requested of a model, by itself and by those that learn from it."""
        objectives = self.objectives
        needs = objectives[name].student_needs if name in learners else Needs()
        for learner in learners:
            if self.ensemble or learner != name:
                needs = needs | objectives[learner].needs
        return needs

    def ask_peers(
        self, batch: StepBatch, learners: Iterable[str], more: Needs | None = None
    ) -> dict[str, Signal]:
        """The outputs of all peers, with their graphs."""
        found = {}
        for name, order in self.orders.items():
            needs = self.needs_of(name, learners) | (more or Needs())
            signal = self.peers.ask(name, batch.inputs, needs, batch.items)
            found[name] = align_classes(signal, order)
        return found

    def ask_teacher(self, batch: StepBatch, needs: Needs | None = None) -> Signal | None:
        """The first peer's outputs in an evaluation, with all peers' as its members.

        In training None: the peers run within the wrapped forward, with their graphs.
        """
        if self.training:
            return None
        self.peers.models.eval()
        with torch.no_grad():
            signals = self.ask_peers(batch, (STUDENT,), needs)
        return dataclasses.replace(signals[self.peers.first], members=signals)

    def terms(
        self, student: Signal, teacher: Signal | None, batch: StepBatch, context: Context
    ) -> list[Term]:
        learners = tuple(self.objectives) if self.training else (STUDENT,)
        if self.training:
            peers = self.ask_peers(batch, learners)
        else:
            peers = {} if teacher is None else dict(teacher.members)
        return self.learn({STUDENT: student, **peers}, batch.items, learners, context)

    def learn(
        self,
        signals: Mapping[str, Signal],
        items: BatchItems,
        learners: Iterable[str],
        context: Context,
    ) -> list[Term]:
        """The terms of some models; those of the peers are prefixed by their names."""
        shared, terms = self.sources(signals), []
        for learner in learners:
            found = []
            for source, teacher in self.sources_of(learner, shared).items():
                own = self.context_of(learner, source, context)
                found.append(self.objectives[learner].terms(signals[learner], teacher, items, own))
            for same in zip(*found, strict=True):
                term = mean_term(same)
                if learner != STUDENT:
                    name, part = f"{learner}_{term.name}", f"{learner}/{term.part}"
                    term = dataclasses.replace(term, name=name, part=part)
                terms.append(term)
        return terms

    def sources(self, signals: Mapping[str, Signal]) -> dict[str, Signal]:
        """The detached outputs that models learn from: each model's, or the ensemble's."""
        found = {name: signal.detach() for name, signal in signals.items()}
        if self.ensemble and any(objective.needs for objective in self.objectives.values()):
            return {"ensemble": ensemble_of(found)}
        return found

    def sources_of(self, learner: str, shared: Mapping[str, Signal]) -> dict[str, Signal | None]:
        """The sources of one model."""
        if not self.objectives[learner].needs:
            return {"alone": None}
        return {name: signal for name, signal in shared.items() if name != learner}

    def modules_of(self, learner: str, source: str | None = None) -> nn.ModuleDict:
        """The learned parts of a learner, with one of its sources or with the first."""
        lessons: Any = self.projections["lessons"]
        own = lessons[learner]
        found: nn.ModuleDict = next(iter(own.values())) if source is None else own[source]
        return found

    def context_of(self, learner: str, source: str, context: Context) -> Context:
        """The context of one learner and source."""
        context = dataclasses.replace(context, module=self.modules_of(learner, source), pair=None)
        if learner == STUDENT:
            return context
        parameters, initial = self.peer_parameters[learner], self.peer_initial[learner]
        return dataclasses.replace(context, parameters=parameters, initial=initial)

    def observe(
        self, result: StepResult, last: bool, over_ranks: Callable[[Tensor], Tensor]
    ) -> None:
        for learner, objective in self.objectives.items():
            own = [t for t in result.terms if (t.part.rpartition("/")[0] or STUDENT) == learner]
            own = [dataclasses.replace(t, part=t.part.rpartition("/")[2]) for t in own]
            modules = self.modules_of(learner)
            objective.observe(own, result.components, modules, last, over_ranks)

    def tensors(self) -> dict[str, Tensor]:
        held = {n.removeprefix("projections."): t for n, t in super().tensors().items()}
        for name, initial in self.peer_initial.items():
            held.update({f"initial_{name}.{n}": t for n, t in initial.items()})
        return held


def ensemble_of(signals: Mapping[str, Signal]) -> Signal:
    """The mean of the models' probabilities, as logits; for regression, of their outputs.

    Raises:
        ValueError: logits of several shapes, or none.
    """
    members = member_probs(signals.items(), temperature=1.0, partial=False)
    return mean_of(members, "probabilities", lambda member: member.log_probs.new_zeros(()))
