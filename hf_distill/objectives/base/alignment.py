"""Alignment of the features of two models: pairs of layers, common shapes, learned projections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal

from hf_distill.models.signals import Signal
from hf_distill.objectives.base.layers import LayerSpec, check_group, layer_map, module_pairs

PROJECTIONS = ("linear", "orthogonal", "shared", "none")
MODULES = "modules"
"""Group name of module outputs."""


@dataclass(frozen=True)
class LayerPair:
    """One layer of the student and its counterpart in the teacher.

    Attributes:
        key: A name that may be part of a parameter's: ``hidden_2_6``.
        group: The stack of layers that both belong to.
        student: ``(B, T, H)``, ``(B, C, h, w)`` or ``(B, H)``.
        teacher: The same, of the teacher.
        who: Whose they are, for messages.
    """

    key: str
    group: str
    student: Tensor
    teacher: Tensor
    who: tuple[str, str] = ("the student", "the teacher")


def align(
    spec: LayerSpec,
    student: Signal,
    teacher: Signal,
    groups: Sequence[str] | None = None,
) -> list[LayerPair]:
    """Pairs of layers of a map, in all groups or in some.

    Raises:
        ValueError: a group that one of the models does not have, or an error of `layer_map`.
    """
    paths = module_pairs(spec)
    who = (student.who or "the student", teacher.who or "the teacher")
    pairs = [
        LayerPair(
            f"{s}__{t}".replace(".", "_"), MODULES, student.modules[s], teacher.modules[t], who
        )
        for s, t in paths
    ]
    if paths and not student.hidden_states:
        return pairs
    for group in student.hidden_states if groups is None else groups:
        check_group("hidden-state", group, student.hidden_states, teacher.hidden_states)
        ours, theirs = student.hidden_states[group], teacher.hidden_states[group]
        mapping = layer_map(spec, len(ours) - 1, len(theirs) - 1)
        pairs += [LayerPair(f"{group}_{s}_{t}", group, ours[s], theirs[t], who) for s, t in mapping]
    return pairs


# ---- shapes ----------------------------------------------------------------------------------


def is_square(positions: int) -> bool:
    return math.isqrt(positions) ** 2 == positions


def as_map(features: Tensor) -> Tensor:
    """Reshape a sequence ``(B, T, H)`` of patches to its image ``(B, C, *positions)``.

    A class token (a first position before a square number of others) is dropped; a sequence whose
    length is not a square stays one-dimensional, ``(B, H, T)``.
    """
    if features.dim() != 3:
        return features
    count = features.shape[1]
    if not is_square(count) and is_square(count - 1):
        features = features[:, 1:]
        count -= 1
    features = features.transpose(1, 2)
    side = math.isqrt(count)
    return features.unflatten(2, (side, side)) if is_square(count) and count > 1 else features


def same_size(pair: LayerPair) -> LayerPair:
    """Average-pool two feature maps of different resolution to the smaller one.

    Raises:
        ValueError: one of them has no spatial dimensions.
    """
    ours, theirs = pair.student, pair.teacher
    if ours.shape[2:] == theirs.shape[2:] and ours.dim() == 4:
        return pair
    if ours.dim() == theirs.dim() == 3 and ours.shape[1] == theirs.shape[1]:
        return pair
    ours, theirs = as_map(pair.student), as_map(pair.teacher)
    if ours.dim() != 4 or theirs.dim() != 4:
        raise ValueError(
            f"Expected as many positions in the hidden states of {pair.who[0]} as in those of "
            f"{pair.who[1]}, got {tuple(pair.student.shape)} and {tuple(pair.teacher.shape)} at "
            f"{pair.key}. Only images can be resized: choose layers of one length (explicit "
            "pairs), or an objective on the logits."
        )
    size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
    resized = [F.adaptive_avg_pool2d(x, size) if x.shape[2:] != size else x for x in (ours, theirs)]
    return replace(pair, student=resized[0], teacher=resized[1])


# ---- learned parts ---------------------------------------------------------------------------


class TransportPlan(nn.Module):
    """Learned weights of layer pairs: a transport plan between two stacks.

    Every student layer has the same total weight, as does every teacher layer (an earth mover's
    plan with uniform marginals, by Sinkhorn iterations on learned scores). BERT-EMD (Li et al.
    2020, arXiv 2010.06133) solves for the plan in every batch instead, which would depend on the
    split into batches; here training itself moves mass to the cheap pairs.
    """

    def __init__(self, student: int, teacher: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(student, teacher))

    def forward(self) -> Tensor:
        """The plan, ``(student * teacher,)``; its sum is 1."""
        log_plan: Tensor = self.scores
        for _ in range(20):
            log_plan = log_plan - log_plan.logsumexp(0, keepdim=True)
            log_plan = log_plan - log_plan.logsumexp(1, keepdim=True)
        return log_plan.exp().flatten() / self.scores.shape[0]


def projection_key(pair: LayerPair, kind: str) -> str:
    """Key of the projection of a pair: its own, or that of all pairs of these widths."""
    widths = f"shared_{width(pair.student)}_{width(pair.teacher)}"
    return widths if kind == "shared" else pair.key


def width(features: Tensor) -> int:
    """The number of features or channels."""
    return features.shape[1] if features.dim() == 4 else features.shape[-1]


def build_projections(pairs: Iterable[LayerPair], kind: str) -> dict[str, nn.Module]:
    """Make learned projections from the student's width to the teacher's where they differ.

    On feature maps it is a 1x1 convolution: the same map at every position.

    Raises:
        ValueError: ``none``, and the widths differ.
    """
    built: dict[str, nn.Module] = {}
    for pair in pairs:
        ours, theirs, key = width(pair.student), width(pair.teacher), projection_key(pair, kind)
        if ours == theirs or key in built:
            continue
        if kind == "none":
            raise ValueError(
                f"Expected the same width without a projection, got {ours} (student) and {theirs} "
                f"(teacher) at {pair.key}. Use projection='linear'."
            )
        linear = nn.Linear(ours, theirs, bias=kind != "orthogonal", dtype=pair.student.dtype)
        built[key] = orthogonal(linear) if kind == "orthogonal" else linear
    return built


def project(pair: LayerPair, projections: Mapping[str, nn.Module], kind: str) -> LayerPair:
    """Project the student's features of a pair to the teacher's width."""
    module = projections.get(projection_key(pair, kind))
    if module is None:
        return pair
    ours = pair.student.to(next(module.parameters()).dtype)  # bf16_full_eval casts the student only
    if ours.dim() == 4:
        return replace(pair, student=module(ours.movedim(1, -1)).movedim(-1, 1))
    return replace(pair, student=module(ours))
