"""Self-distillation from deeper to shallower layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill.models.places import check_length
from hf_distill.models.pooling import POOLINGS, pooled
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.base.objective import (
    Context,
    Objective,
    Term,
    bibtex,
    built_modules,
    mean_term,
)
from hf_distill.objectives.base.schedules import check_weight
from hf_distill.objectives.distributions import ForwardKL
from hf_distill.objectives.labels import HardLabels


@dataclass(frozen=True)
class EarlyExits(Objective):
    """Self-distillation: exits at inner layers are trained towards the last layer (Zhang et al.
    2019).

    Every exit is a linear head on one layer's hidden states: on each position, where the task has
    logits for each, or else on their mean over the real positions. It minimises KL(last || exit),
    where the last layer's logits are fixed, and trains the layers below it too. The heads are
    trained with the student and never published. Needs no teacher. arXiv 1905.08094.

    Args:
        layers: The layers with an exit: 0 is the output of the embeddings (or the first stage of a
            model that does not give it, such as SegFormer), 1 the first layer's; None: all layers
            between the first and the last of them.
        temperature: Of both distributions.
        labels: The weight of each exit's own loss of the labels; 0: none.
        pooling: ``mean``, ``first``, ``last``, … of the real positions, see
            `hf_distill.models.pooling.pooled`.
        label_smoothing: Of the exits' own losses, as in `HardLabels`.
    """

    layers: tuple[int, ...] | None = None
    temperature: float = 1.0
    labels: float = field(default=0.0, kw_only=True)
    pooling: str = field(default="mean", kw_only=True)
    label_smoothing: float | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "early_exits"
    student_needs: ClassVar[Needs] = Needs(logits=True, hidden_states=True)
    citation: ClassVar[str] = bibtex("zhang2019own")

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
            if not self.layers or min(self.layers) < 0:
                raise ValueError(f"Expected layers from 0 on, got {self.layers}.")
        if self.pooling not in POOLINGS:
            raise ValueError(f"Expected a pooling of {list(POOLINGS)}, got {self.pooling!r}.")
        check_weight(self.labels)
        ForwardKL(self.temperature)
        HardLabels(self.label_smoothing)
        object.__setattr__(self, "needs_labels", self.labels > 0)

    def check(self, kind: str, classes: int | None = None) -> None:
        if kind == "none":
            raise ValueError(
                "EarlyExits teaches with the last layer's logits, and a plain encoder has none. "
                "Train a model with a head."
            )
        if self.labels:
            HardLabels(self.label_smoothing).check(kind, classes)

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        logits, (_, states) = _logits(student), _stack(student)
        form = _form(logits, states[-1])
        classes = {"spans": 2, "choices": 1}.get(form, logits.shape[-1])
        found = self.layers or tuple(range(1, len(states) - 1))
        if not found or max(found) > len(states) - 2:
            raise ValueError(
                f"Expected layers with an exit from 0 to {len(states) - 2} (the last is the one "
                f"that teaches), got {found or 'none'}. Choose others, or a deeper student."
            )
        return nn.ModuleDict({str(n): Exit(states[n], classes, form) for n in found})

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        group, states = _stack(student)
        last, mask = _logits(student), items.masks.get(group)
        exits: list[Signal] = []
        for layer, head in built_modules(context).items():
            if mask is not None and states[int(layer)].dim() == 3:
                length = states[int(layer)].shape[1]
                check_length(student.who or "the student", f"states of layer {layer}", length, mask)
            found = head(states[int(layer)], last, mask, self.pooling)
            exits.append(replace(student, logits=found, traced=None))
        taught = replace(student, logits=last.detach(), traced=None)
        kl, labels = ForwardKL(self.temperature), HardLabels(self.label_smoothing)
        terms = [mean_term([kl.terms(e, taught, items, context)[0] for e in exits], self.name)]
        if self.labels:
            name = f"{self.name}_labels"
            own = mean_term([labels.terms(e, None, items, context)[0] for e in exits], name)
            terms.append(replace(own, weight=self.labels))
        return terms


class Exit(nn.Module):
    """A linear head on a layer's hidden states, whose logits have the last layer's form."""

    def __init__(self, states: Tensor, classes: int, form: str):
        super().__init__()
        width = states.shape[1] if states.dim() == 4 else states.shape[-1]
        self.form = form
        self.linear = nn.Linear(width, classes, dtype=states.dtype)

    def forward(self, states: Tensor, like: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
        """Logits in the shape of ``like``.

        ``states`` is ``(B, T, H)`` or a map ``(B, H, h, w)``, ``mask`` ``(B, T)`` marks the real
        positions (None: all), ``pooling`` makes one vector of an example's positions, ``like`` are
        the last layer's logits.
        """
        states = states.to(self.linear.weight.dtype)
        if self.form in ("examples", "choices"):
            found: Tensor = self.linear(pooled(states, mask, pooling))
            return found.view(like.shape)
        if self.form == "pixels":
            maps = self.linear(states.movedim(1, -1)).movedim(-1, 1)
            maps = F.interpolate(maps, like.shape[1:-1], mode="bilinear", align_corners=False)
            return maps.movedim(1, -1)
        found = self.linear(states)
        if self.form != "spans":
            return found
        found = found.movedim(-1, 0)  # masked positions stay masked
        return found if mask is None else torch.where(mask, found, like.detach())


def _form(logits: Tensor, states: Tensor) -> str:
    """Classes and reading of the last layer's logits, which those of an exit share."""
    size, shape = states.shape, logits.shape
    if len(shape) == 4 and len(size) == 4 and shape[0] == size[0]:
        return "pixels"
    if len(shape) == 3 and len(size) == 3:
        if shape[:2] == size[:2]:
            return "tokens"
        if shape[0] == 2 and shape[1:] == size[:2]:
            return "spans"
    if len(shape) == 2:
        if shape[0] == size[0]:
            return "examples"
        if shape.numel() == size[0]:
            return "choices"
    raise ValueError(
        f"Expected logits for each example or each position of the hidden states {tuple(size)}, "
        f"got {tuple(shape)}: EarlyExits does not know this head. Use another objective."
    )


def _logits(student: Signal) -> Tensor:
    if student.logits is None:
        raise ValueError("Expected logits of the student, got none.")
    return student.logits


def _stack(student: Signal) -> tuple[str, Sequence[Tensor]]:
    """The stack of layers that ends in the logits."""
    groups = student.hidden_states
    for name in ("decoder", "hidden"):
        if name in groups:
            return name, groups[name]
    raise ValueError(
        f"Expected one stack of layers below the logits, got {sorted(groups)}: EarlyExits does not "
        "know this head. Use another objective."
    )
