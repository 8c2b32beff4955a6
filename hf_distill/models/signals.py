"""Signals: the outputs of one model for one batch, in one form for all heads."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

from torch import Tensor

from hf_distill.losses.fused import LazyLogits

Unit = str
"""Name of what is counted: ``samples``, ``items``, ``labels``, ``batches`` or a hidden-state group.
Every term is divided by the number of its unit, and by nothing else."""


WEIGHTED = ("items", "labels")
"""The units whose members may have weights."""
WORDS = {
    "unsampled": "exact probabilities (not draws)",
    "full_vocabulary": "the logits of every class (not the likeliest alone)",
    "cross_tokenizer": "a teacher with another tokenizer (CrossTokenizerTeacher)",
    "own_loss": "a loss of its own forward",
}
"""Descriptions of missing needs, for messages."""


@dataclass(frozen=True)
class Needs:
    """Outputs requested from a model, or that it can provide.

    Attributes:
        logits: Its logits.
        hidden_states: The outputs of its embeddings and layers.
        attentions: Its attention maps.
        qkv: The queries, keys and values of its self-attention.
        inputs: Logits that can be differentiated with respect to the model's input.
        unsampled: Exact probabilities, not an estimate from draws.
        full_vocabulary: The logits of every class; else the top classes and their rest suffice.
        lazy_logits: Factors of the logits in their place, see `Signal.lazy_logits`.
        router_loss: The balancing loss of its routers (mixture of experts).
        cross_tokenizer: Outputs in the tokens of another tokenizer than the student's.
        own_loss: The loss that its own forward computes from the labels of the batch.
        modules: Paths of modules whose outputs are requested.
    """

    logits: bool = False
    hidden_states: bool = False
    attentions: bool = False
    qkv: bool = False
    inputs: bool = False
    unsampled: bool = False
    full_vocabulary: bool = False
    lazy_logits: bool = False
    router_loss: bool = False
    cross_tokenizer: bool = False
    own_loss: bool = False
    modules: frozenset[str] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            **{f.name: getattr(self, f.name) | getattr(other, f.name) for f in fields(self)}
        )

    def __and__(self, other: Needs) -> Needs:
        return Needs(
            **{f.name: getattr(self, f.name) & getattr(other, f.name) for f in fields(self)}
        )

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self))

    def with_lazy_logits(self, provides: Needs) -> Needs:
        """The same needs with ``lazy_logits`` in place of logits, where provided."""
        if not (self.logits and provides.lazy_logits):
            return self
        return replace(self, logits=False, unsampled=False, full_vocabulary=False, lazy_logits=True)

    def missing_from(self, provides: Needs) -> list[str]:
        """Names of needs that are not provided, module paths included."""
        switches = [f.name for f in fields(self) if f.name != "modules"]
        missing = [name for name in switches if getattr(self, name) and not getattr(provides, name)]
        if "logits" in missing:  # which implies the others
            missing = [name for name in missing if name not in WORDS]
        return [WORDS.get(name, name) for name in missing] + sorted(self.modules - provides.modules)


NOTHING = Needs()
LOGITS = Needs(logits=True, unsampled=True, full_vocabulary=True)
"""The logits of every class, exactly."""


@dataclass(frozen=True)
class BatchItems:
    """Masks, labels and weights of the items of a batch, read before any model runs.

    Attributes:
        masks: A boolean tensor per unit, true where an item is counted. ``samples`` is ``(B,)``;
            ``items`` has the shape of the logits without their last dimension; ``labels`` marks the
            items that carry a label, ``spans`` those and answers on padding; a hidden-state group
            that has padding has ``(B, T)`` under its own name; ``batches`` is a single true.
        labels: The labels in the shape of the items, or None for an unlabelled batch.
        weights: Weight of each item, in the shape of the items; None: all 1.
        own_labels: Unit of a model's own loss: the labels or, for answers in a text, those on
            padding too (``spans``).
        members: Of a model with several heads the items of each, by name.
    """

    masks: Mapping[Unit, Tensor]
    labels: Tensor | None = None
    weights: Tensor | None = None
    own_labels: Unit = "labels"
    members: Mapping[str, BatchItems] = field(default_factory=dict)

    def counts(self) -> dict[Unit, Tensor]:
        """The number of items of each unit, as 0-dimensional tensors (no host sync); where items
        have weights, the sum of those. The units of a head have its name in front: `unit_of`."""
        found = {unit: self._weighted(unit, mask).sum() for unit, mask in self.masks.items()}
        for name, member in self.members.items():
            found |= {unit_of(name, unit): count for unit, count in member.counts().items()}
        return found

    @property
    def labelled(self) -> bool:
        """True if the batch has labels, of one head at least."""
        return self.labels is not None or any(m.labels is not None for m in self.members.values())

    def class_ids(self, who: str) -> Tensor:
        """The labels, one class for each item.

        Args:
            who: The caller, for messages.

        Raises:
            ValueError: soft labels.
        """
        if self.labels is None:
            raise ValueError(f"{who} needs labels, and this batch has none.")
        if self.soft:
            raise ValueError(
                f"{who} reads one class for each example, got soft labels "
                f"{tuple(self.labels.shape)}: probabilities. Use HardLabels, which takes them, or "
                "give integers."
            )
        return self.labels

    @property
    def soft(self) -> bool:
        """True if the labels are probabilities (or 0 and 1 per class, for a multi-label head), not
        class indices."""
        mask = self.masks.get("labels")
        if self.labels is None or mask is None or not self.labels.is_floating_point():
            return False
        return self.labels.dim() > mask.dim()

    def _weighted(self, unit: Unit, mask: Tensor) -> Tensor:
        if self.weights is None or unit not in WEIGHTED:
            return mask
        return self.weights.where(mask, 0.0)


@dataclass(frozen=True)
class SparseProbs:
    """The probabilities of some classes of every item, and of all the others together.

    Attributes:
        ids: ``(..., k)`` int64, each class once per item; what an unused slot holds is ignored.
        log_probs: ``(..., k)``, log softmax(logits / temperature) of these classes; -inf marks an
            unused slot.
        log_rest: ``(...)``, the log of the mass of all other classes; -inf: none.
        classes: How many classes there are.
        temperature: Temperature of the softmax.
        unsampled: False for draws, whose log_probs are log(count / draws).
    """

    ids: Tensor
    log_probs: Tensor
    log_rest: Tensor
    classes: int
    temperature: float = 1.0
    unsampled: bool = True

    @property
    def likeliest(self) -> Tensor:
        """Most likely class of each item, ``(...)``."""
        best = self.log_probs.argmax(-1, keepdim=True)
        return self.ids.gather(-1, best).squeeze(-1)


@dataclass(frozen=True)
class CrossTokenizerLogits:
    """Outputs of a teacher with another tokenizer on the student's text.

    Attributes:
        logits: ``(B, T, C_t)``, at the student's positions; arbitrary where there is no item.
        student_classes: ``(C_s,)``: for each of the student's tokens one of the K shared tokens
            (itself, or its longest shared prefix); K: none.
        teacher_classes: ``(C_t,)``: the same for the teacher's.
        classes: K + 1; K if one of the vocabularies has only shared tokens.
        tokens: ``(B, T)``, the token that follows each of the student's positions.
        spans: ``(B, T)``, for each of these tokens the position that predicts the first one of its
            span (the tokens of both that cover the same bytes); -1: none.
        log_probs: ``(B, T)``, where a span is predicted the log-probability of its text.
    """

    logits: Tensor
    student_classes: Tensor
    teacher_classes: Tensor
    classes: int
    tokens: Tensor
    spans: Tensor
    log_probs: Tensor


@dataclass(frozen=True)
class Signal:
    """Outputs of one model for one batch.

    Attributes:
        logits: ``(..., C)``: classes last (see `tasks.py` for each head).
        sparse: In place of logits, the probabilities of some classes.
        lazy_logits: In place of logits, hidden states and the head's weights.
        kind: Form of the logits: ``softmax``, ``sigmoid``, ``regression``, ``ctc`` (softmax over
            frames with a CTC label loss) or ``none`` (a model without logits).
        hidden_states: For each group the outputs of the embeddings and of every layer, each
            ``(B, T, H)``, or ``(B, H)`` for a pooled embedding. Feature maps are ``(B, C, h, w)``.
        attentions: For each group the attention maps of every layer, ``(B, heads, T, T)``.
        qkv: For each group the queries, keys and values of every layer, each ``(B, heads, T, d)``,
            before any rotary position.
        modules: The outputs of the requested modules, by path.
        traced: The logits with their graph and the input that they depend on, see `Needs.inputs`.
        members: The signals of the members of an ensemble, by name.
        router_loss: The load-balancing loss of its routers, a number.
        cross_tokenizer: Outputs of a teacher with another tokenizer, in addition to ``sparse``.
        label_logits: Logits for the label loss if they differ from ``logits``: spans including
            padding.
        own_loss: A number, or ``(B,)``: the loss of the model's own forward.
        blank: The blank class of a ``ctc`` head.
        zero_infinity: A target of a ``ctc`` head with too few frames counts 0, not infinity.
        who: The model, for messages: ``the teacher (BertModel)``.
    """

    logits: Tensor | None = None
    kind: str = "softmax"
    hidden_states: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    attentions: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    qkv: Mapping[str, tuple[tuple[Tensor, Tensor, Tensor], ...]] = field(default_factory=dict)
    modules: Mapping[str, Tensor] = field(default_factory=dict)
    traced: tuple[Tensor, Tensor] | None = None
    sparse: SparseProbs | None = None
    lazy_logits: LazyLogits | None = None
    members: Mapping[str, Signal] = field(default_factory=dict)
    router_loss: Tensor | None = None
    cross_tokenizer: CrossTokenizerLogits | None = None
    label_logits: Tensor | None = None
    own_loss: Tensor | None = None
    blank: int = 0
    zero_infinity: bool = True
    who: str = ""

    def detach(self) -> Signal:
        """The same values without the graph; ``traced`` keeps its own."""
        return replace(
            self,
            logits=None if self.logits is None else self.logits.detach(),
            lazy_logits=None if self.lazy_logits is None else self.lazy_logits.detach(),
            hidden_states=_detached(self.hidden_states),
            attentions=_detached(self.attentions),
            qkv={
                group: tuple((q.detach(), k.detach(), v.detach()) for q, k, v in layers)
                for group, layers in self.qkv.items()
            },
            modules={path: output.detach() for path, output in self.modules.items()},
            members={name: member.detach() for name, member in self.members.items()},
        )


def _detached(groups: Mapping[str, tuple[Tensor, ...]]) -> dict[str, tuple[Tensor, ...]]:
    return {name: tuple(t.detach() for t in tensors) for name, tensors in groups.items()}


MEMBER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""Permitted names of members: they become part of the names in logs and of learned parts."""
_FLAGS = tuple(f.name for f in dataclasses.fields(Needs) if f.name != "modules")


def of_member(name: str, needs: Needs) -> Needs:
    """Needs from one member of an ensemble: paths ``name/logits``, ``name/encoder.layer.3``.

    An ensemble provides exactly such paths, so that a member computes only what an objective needs
    from it.
    """
    paths = {flag for flag in _FLAGS if getattr(needs, flag)} | needs.modules
    return Needs(modules=frozenset(f"{name}/{path}" for path in paths))


def unit_of(head: str, unit: Unit) -> Unit:
    """Name of a unit of one head of a model with several."""
    return f"{head}/{unit}"


def for_member(name: str, needs: Needs) -> Needs:
    """Inverse of `of_member`: the needs from this member only."""
    own = {p.removeprefix(f"{name}/") for p in needs.modules if p.startswith(f"{name}/")}
    flags = {flag: True for flag in _FLAGS if flag in own}
    return Needs(**flags, modules=frozenset(own - set(_FLAGS)))


def of_members(names: Iterable[str], needs: Needs) -> Needs:
    """The same needs from each of several members."""
    return Needs(modules=frozenset().union(*(of_member(name, needs).modules for name in names)))
