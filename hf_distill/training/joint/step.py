"""Who learns what from whom in one step of a joint training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.models.class_order import ClassOrder, align_classes
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.base.objective import Context, Term, WeightedSum, mean_term
from hf_distill.teachers.ensemble.mixing import mean_of, member_probs
from hf_distill.training.joint.peers import STUDENT, Peers
from hf_distill.training.trainer import DistillationTrainer


class JointStep(DistillationTrainer):
    """The part of the joint trainer that makes the terms of all models.

    A lesson is what one model, the learner, learns from one source: another model, the ensemble of
    all, or nobody. Each has learned parts of its own (projections).
    """

    _peers: Peers
    _ensemble: bool
    _peer_goals: dict[str, WeightedSum]
    _orders: dict[str, ClassOrder]
    _peer_parameters: dict[str, dict[str, Tensor]]
    _peer_initial: dict[str, dict[str, Tensor]]
    _said: Mapping[str, Signal] = {}

    @property
    def _goals(self) -> dict[str, WeightedSum]:
        """What each model minimises, the student first."""
        return {STUDENT: self.training_objective, **self._peer_goals}

    def _needs_of(self, name: str, learners: Iterable[str]) -> Needs:
        """What a model is asked for, by itself and by those who learn from it."""
        goals = self._goals
        needs = goals[name].student_needs if name in learners else Needs()
        for learner in learners:
            if self._ensemble or learner != name:
                needs = needs | goals[learner].needs
        return needs

    def _can_be_lean(self) -> bool:
        return False  # the models tell each other their logits

    def _asked(self) -> Needs:
        return self._needs_of(STUDENT, self._goals if self._student.training else (STUDENT,))

    def _ask_peers(
        self,
        batch: Mapping[str, Any],
        items: BatchItems,
        learners: Iterable[str],
        more: Needs | None = None,
    ) -> dict[str, Signal]:
        found = {}
        for name, order in self._orders.items():
            needs = self._needs_of(name, learners) | (more or Needs())
            found[name] = align_classes(self._peers.ask(name, batch, needs, items), order)
        return found

    def _teach(self, batch: Mapping[str, Any], needs: Needs, items: BatchItems) -> Signal | None:
        if self._student.training:
            return None  # the peers run within the wrapped forward, with their graphs
        self._peers.models.eval()
        with torch.no_grad():
            self._said = self._ask_peers(batch, items, (STUDENT,), needs)
        return self._said[self._peers.first]

    def _terms(
        self, student: Signal, teacher: Signal | None, batch: Mapping[str, Any], items: BatchItems
    ) -> list[Term]:
        training = self._student.training
        learners = tuple(self._goals) if training else (STUDENT,)
        said, self._said = self._said, {}
        peers = self._ask_peers(batch, items, learners) if training else said
        return self._learn({STUDENT: student, **peers}, items, learners)

    def _learn(
        self, signals: Mapping[str, Signal], items: BatchItems, learners: Iterable[str]
    ) -> list[Term]:
        """The terms of some models; those of the peers are prefixed by their names."""
        told, terms = self._told(signals), []
        for learner in learners:
            found = []
            for source, teacher in self._sources(learner, told).items():
                context = self._lesson_context(learner, source)
                found.append(self._goals[learner].terms(signals[learner], teacher, items, context))
            for same in zip(*found, strict=True):
                term = mean_term(same)
                if learner != STUDENT:
                    name, part = f"{learner}_{term.name}", f"{learner}/{term.part}"
                    term = dataclasses.replace(term, name=name, part=part)
                terms.append(term)
        return terms

    def _told(self, signals: Mapping[str, Signal]) -> dict[str, Signal]:
        """What each model tells the others, or what all of them do together: values alone."""
        told = {name: signal.detach() for name, signal in signals.items()}
        if self._ensemble and any(goal.needs for goal in self._goals.values()):
            return {"ensemble": ensemble_of(told)}
        return told

    def _sources(self, learner: str, told: Mapping[str, Signal]) -> dict[str, Signal | None]:
        """Whom a model learns from: one lesson each."""
        if not self._goals[learner].needs:
            return {"alone": None}
        return {name: signal for name, signal in told.items() if name != learner}

    def _lesson(self, learner: str, source: str | None = None) -> nn.ModuleDict:
        lessons: Any = self.projections["lessons"]
        own = lessons[learner]
        found: nn.ModuleDict = next(iter(own.values())) if source is None else own[source]
        return found

    def _learned(self) -> nn.ModuleDict:
        return self._lesson(STUDENT)

    def _lesson_context(self, learner: str, source: str) -> Context:
        context = self._context(self._lesson(learner, source))
        if learner == STUDENT:
            return context
        return dataclasses.replace(
            context,
            parameters=self._peer_parameters[learner],
            initial=self._peer_initial[learner],
        )

    def _observe(
        self,
        goal: WeightedSum,
        terms: list[Term],
        components: Mapping[str, Tensor],
        modules: nn.ModuleDict,
    ) -> None:
        for learner, own_goal in self._goals.items():
            own = [t for t in terms if (t.part.rpartition("/")[0] or STUDENT) == learner]
            own = [dataclasses.replace(t, part=t.part.rpartition("/")[2]) for t in own]
            super()._observe(own_goal, own, components, self._lesson(learner))


def ensemble_of(signals: Mapping[str, Signal]) -> Signal:
    """The mean of the models' probabilities, as logits; for regression, of their outputs.

    Raises:
        ValueError: logits of several shapes, or none.
    """
    heard = member_probs(signals.items(), temperature=1.0, partial=False)
    return mean_of(heard, "probabilities", lambda voice: voice.chances.new_zeros(()))
