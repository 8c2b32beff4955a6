"""What a model says about a batch: the seam between teachers and objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

Unit = str
"""Name of the thing that is counted: ``samples``, ``items``, ``labels``, ``batches`` or a
hidden-state group. Every term is divided by the number of its unit, and by nothing else."""


@dataclass(frozen=True)
class Needs:
    """What an objective wants from a model, or what a teacher can provide."""

    logits: bool = False
    hidden_states: bool = False
    attentions: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.logits or other.logits,
            self.hidden_states or other.hidden_states,
            self.attentions or other.attentions,
        )

    def __and__(self, other: Needs) -> Needs:
        return Needs(
            self.logits and other.logits,
            self.hidden_states and other.hidden_states,
            self.attentions and other.attentions,
        )

    def __bool__(self) -> bool:
        return self.logits or self.hidden_states or self.attentions

    def missing_from(self, provides: Needs) -> list[str]:
        """The names of what is needed here and not provided there."""
        names = ("logits", "hidden_states", "attentions")
        return [name for name in names if getattr(self, name) and not getattr(provides, name)]


@dataclass(frozen=True)
class Items:
    """What a batch itself says, before any model has seen it.

    Attributes:
        masks: For each unit a boolean tensor, true where there is something to count.
            ``samples`` is ``(B,)``; ``items`` has the shape of the logits without their last
            dimension; ``labels`` marks the items that carry a label; a hidden-state group that has
            padding has ``(B, T)`` under its own name; ``batches`` is a single true.
        labels: The labels in the shape of the items, or None for an unlabelled batch.
    """

    masks: Mapping[Unit, Tensor]
    labels: Tensor | None = None

    def counts(self) -> dict[Unit, Tensor]:
        """The number of items of each unit, as 0-dimensional tensors (no host sync)."""
        return {unit: mask.sum() for unit, mask in self.masks.items()}


@dataclass(frozen=True)
class Signal:
    """What one model says about one batch.

    Attributes:
        logits: ``(..., C)``: classes last, one row per item (see `tasks.py` for each head).
        kind: How the logits are read: ``softmax``, ``sigmoid``, ``regression``, ``ctc`` (softmax
            over frames with a CTC label loss) or ``none`` (a model without logits).
        hidden_states: For each group the outputs of the embeddings and of every layer, each
            ``(B, T, H)``, or ``(B, H)`` for a pooled embedding.
        attentions: For each group the attention maps of every layer, ``(B, heads, T, T)``.
    """

    logits: Tensor | None = None
    kind: str = "softmax"
    hidden_states: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    attentions: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def detach(self) -> Signal:
        """The same values, cut off from the graph."""
        return replace(
            self,
            logits=None if self.logits is None else self.logits.detach(),
            hidden_states=_detached(self.hidden_states),
            attentions=_detached(self.attentions),
        )


def _detached(groups: Mapping[str, tuple[Tensor, ...]]) -> dict[str, tuple[Tensor, ...]]:
    return {name: tuple(t.detach() for t in tensors) for name, tensors in groups.items()}
