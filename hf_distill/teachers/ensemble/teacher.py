"""Several teachers as one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from hf_distill.losses.numerics import above_zero
from hf_distill.models.batches import Batch
from hf_distill.models.class_order import align_classes
from hf_distill.models.signals import LOGITS, BatchItems, Needs, Signal, for_member, of_member
from hf_distill.models.task_model import TaskModel
from hf_distill.teachers.ensemble import members
from hf_distill.teachers.ensemble.fitting import fitted_weights, observations
from hf_distill.teachers.ensemble.mixing import MemberProbs, mean_of, member_probs
from hf_distill.teachers.ensemble.routing import Router
from hf_distill.teachers.group import TeacherGroup
from hf_distill.teachers.protocol import Teacher


class Ensemble(TeacherGroup):
    """Several teachers as one, with the classes in the order of the first.

    ``average="probabilities"``: log sum_i w_i softmax(z_i / T), times T, so that an objective at
    that T sees the mean of the softened distributions (for multi-label heads the mean of each
    class's probability). ``average="logits"``: sum_i w_i z_i, which objectives that use more than
    the differences between logits (`LogitMSE`) need. For regression both are the mean of the
    outputs. If only one member has a weight, the result is its own. Outputs of single members are
    available to `FromTeacher`.

    The tail mass of a top-k member (`SparseProbs`) is distributed over its other classes: in
    proportion to the mean probabilities of the full members, or evenly if there are none; then the
    result is sparse too, on the union of the classes. Sampled members have no tail: the mean is
    unbiased, for objectives that take samples.

    Args:
        teachers: Teachers or models, by name; without names they are ``teacher_0``, ….
        weights: One per member, normalised; None: equal; ``"confidence"``: per item
            exp(-H_i) / sum_j exp(-H_j), H the entropy at T; ``"labels"``: per item
            p_i(y) / sum_j p_j(y) at T, equal where there is no label (compare CA-MKD, Zhang et al.
            2022, arXiv 2201.00007, which weighs by the cross-entropy). `fit` learns fixed ones.
        average: ``"probabilities"`` or ``"logits"``.
        route: A batch column (int64, one per example) with the index of the single member for the
            example: each is run on its own examples only.
        temperature: T at which probabilities are averaged; that of sparse members.

    Raises:
        ValueError: members that do not fit together, with their names, or contradictory settings.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher | nn.Module] | Sequence[Teacher | nn.Module],
        weights: Sequence[float] | str | None = None,
        average: str = "probabilities",
        route: str | None = None,
        temperature: float = 1.0,
    ):
        self.teachers = members.named(teachers)
        self.average, self.route, self.temperature = average, route, float(temperature)
        self.fitted = 0
        above_zero(self.temperature)
        members.check_settings(weights, average, route)
        names = list(self.teachers)
        self.weights = weights if isinstance(weights, str) else members.normalised(weights, names)
        heads = [getattr(teacher, "task_model", None) for teacher in self.teachers.values()]
        self.task_model = next((head for head in heads if isinstance(head, TaskModel)), None)
        task = members.task_of_members(self.teachers, self.task_model)
        self._orders, self._tokens, cut = members.orders_of(self.teachers, task)
        if self.task_model is not None:
            members.check_kind(self.task_model.kind(None), self.weights)
        members.check_members({name: self.teachers[name] for name in self._mixed}, average, route)
        self._router = None if route is None else Router(route, names, task)
        self.config = next(iter(self.teachers.values())).config
        if cut is not None:
            self.config = copy.deepcopy(self.config)
            self.config.get_text_config().vocab_size = cut

    @property
    def _mixed(self) -> dict[str, float]:
        """The members that the average is made of, with their weights (1 where items decide)."""
        if isinstance(self.weights, str):
            return dict.fromkeys(self.teachers, 1.0)
        pairs = zip(self.teachers, self.weights, strict=True)
        return {name: weight for name, weight in pairs if weight > 0}

    @property
    def provides(self) -> Needs:
        """Logits, if all members provide them; everything else per member, for `FromTeacher`."""
        known = [self.teachers[name].provides for name in self._mixed]
        exact = all(p.unsampled for p in known)
        own = Needs(
            logits=all(p.logits for p in known),
            unsampled=exact,
            full_vocabulary=exact and any(p.full_vocabulary for p in known),
        )
        if self.route is not None:
            return own
        for name, teacher in self.teachers.items():
            own = own | of_member(name, teacher.provides)
        return own

    # ---- the signal ------------------------------------------------------------------------------

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        """Run the members one after another, see `Teacher`. ValueError for members of different
        kinds or shapes, temperatures that differ, or a wrong route."""
        if self._router is not None:
            return self._router(batch, LOGITS & needs, items, self._ask, self.task_model)
        outputs: dict[str, Signal] = {}
        signals = self._member_signals(batch, needs, items, outputs)
        if len(self._mixed) == 1:
            alone = next((signal for _, signal in [*signals]), Signal())
            combined = Signal(alone.logits, alone.kind, sparse=alone.sparse)
        else:
            mixed = self._member_probs(signals)
            combined = mean_of(mixed, self.average, lambda probs: self._score(probs, items))
        return replace(combined, members=outputs)

    def _member_signals(
        self, batch: Batch, needs: Needs, items: BatchItems, outputs: dict[str, Signal]
    ) -> Iterator[tuple[str, Signal]]:
        """Run every member; keep its own requested outputs, and pass on what is averaged."""
        for name in self.teachers:
            own = for_member(name, needs)
            shared = LOGITS & needs if name in self._mixed else Needs()
            if not (own or shared.logits):
                continue
            signal = self._ask(name, batch, own | shared, items)
            if own:
                outputs[name] = signal if own.logits else replace(signal, logits=None, sparse=None)
            if shared.logits:
                yield name, replace(signal, hidden_states={}, attentions={}, qkv={}, modules={})

    def _ask(self, name: str, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        """Signal of one member, in the order of the first."""
        teacher = self.teachers[name]
        return align_classes(teacher(batch, needs & teacher.provides, items), self._orders[name])

    def _member_probs(self, signals: Iterable[tuple[str, Signal]]) -> Iterator[MemberProbs]:
        partial = [name for name in self._mixed if not self.teachers[name].provides.full_vocabulary]
        for probs in member_probs(signals, self.temperature, bool(partial)):
            members.check_kind(probs.kind, self.weights)
            yield probs

    def _score(self, probs: MemberProbs, items: BatchItems) -> Tensor:
        """The log of a member's weight, up to a constant: a number, or one per item."""
        if self.weights == "confidence":
            return -probs.entropy()
        if self.weights == "labels":
            return probs.likelihood(items)
        return torch.tensor(math.log(self._mixed[probs.name]), dtype=torch.float64)

    # ---- learned weights -------------------------------------------------------------------------

    @torch.no_grad()
    def fit(
        self, batches: Iterable[Batch], items: Callable[[Batch], BatchItems] | None = None
    ) -> Ensemble:
        """Learn fixed weights: those under which held-out labels are most likely.

        Exact up to 1e-8 nats per item, the same for any split into batches. With
        ``average="logits"`` the logits of all labelled items are kept meanwhile (8 bytes for each
        item, member and class); otherwise one number per item and member.

        Args:
            batches: Collated batches with labels, in the first member's order of classes. Not those
                that the members were trained on: there the most overfitted one wins.
            items: Items of a batch; by default those of the first member that is a model.

        Raises:
            ValueError: no labels, or an ensemble that has no weights to learn.
        """
        if self._router is not None:
            raise ValueError("An ensemble with route has no weights to fit.")
        count = items if items is not None or self.task_model is None else self.task_model.items
        if count is None:
            raise ValueError(
                "None of the members is a model, which would say what is labelled in a batch. Pass "
                "items=Head(student).items."
            )
        if self.average == "logits" and not self.provides.full_vocabulary:
            raise ValueError(
                "Mean logits are fitted on those of every class, which none of the members gives. "
                "Use average='probabilities'."
            )
        self.weights = members.normalised(None, list(self.teachers))
        tables, targets, kind = [], [], ""
        for batch in batches:
            if self.task_model is not None:
                model = self.task_model.model
                batch = send_to_device(dict(batch), next(model.parameters()).device)
                batch = self.task_model.task.share(batch, model)
            rows, target, kind = self._observed(batch, count(batch))
            tables.append(rows.cpu())
            targets.append(target.cpu())
        if not sum(len(target) for target in targets):
            raise ValueError("Expected batches with labels to fit weights to, got no label at all.")
        fitted = fitted_weights(torch.cat(tables), torch.cat(targets), kind, self.average)
        self.weights = members.normalised(fitted.tolist(), list(self.teachers))
        self.fitted = sum(len(target) for target in targets)
        return self

    def _observed(self, batch: Batch, items: BatchItems) -> tuple[Tensor, Tensor, str]:
        """Outputs of each member for every label, ``(n, K, …)``, the labels, and the kind."""
        found, target, kind = {}, torch.empty(0), ""
        for probs in self._member_probs(self._member_signals(batch, LOGITS, items, {})):
            found[probs.name], target = observations(probs, self.average, items)
            kind = probs.kind
        return torch.stack([found[name] for name in self.teachers], 1), target, kind

    # ---- the rest of the protocol ----------------------------------------------------------------

    def columns(self) -> set[str]:
        read = super().columns()
        return read if self.route is None else read | {self.route}

    def tokens(self) -> Mapping[str, int] | None:
        return self._tokens

    def describe(self) -> dict[str, Any]:
        described = {name: teacher.describe() for name, teacher in self.teachers.items()}
        weights: Any = self.weights
        if not isinstance(weights, str):
            weights = dict(zip(self.teachers, weights, strict=True))
        rule = {"average": self.average, "temperature": self.temperature, "weights": weights}
        if self.route is not None:
            rule = {"route": self.route}
        if self.fitted:
            rule["weights_fitted_on_items"] = self.fitted
        return {"architecture": "Ensemble", "members": described, **rule}
