"""What a student is trained towards: a frozen dataclass of settings per objective.

Adding one takes three edits: the function in `losses/`, its dataclass here, its row in the table of
contract tests. `OBJECTIVES` lists what this package exports by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hf_distill.objectives.attention import AttentionMaps, MiniLM, MiniLMv2, TinyBERT
from hf_distill.objectives.classes import NKD, DecoupledKD, Dist, LogitStandardizedKL, TopKKL
from hf_distill.objectives.decay import WeightDecay
from hf_distill.objectives.decisions import (
    Boundary,
    ConfidenceWeightedKL,
    HardTeacherLabels,
    LabelAgreement,
    Margin,
    MarginMSE,
    Reconstruction,
)
from hf_distill.objectives.distributions import (
    AdaptiveKL,
    AlphaBeta,
    ForwardKL,
    Jeffreys,
    JensenShannon,
    LogitMSE,
    Mutual,
    Renyi,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    SoftCrossEntropy,
    TotalVariation,
)
from hf_distill.objectives.exits import EarlyExits
from hf_distill.objectives.features import FSP, HiddenStates, TokenGram
from hf_distill.objectives.gradients import Jacobian
from hf_distill.objectives.labels import HardLabels
from hf_distill.objectives.logits import Divergence
from hf_distill.objectives.maps import (
    NST,
    VID,
    ActivationBoundary,
    AttentionTransfer,
    Hint,
    MultiScale,
)
from hf_distill.objectives.relations import (
    CKA,
    PKD,
    PKT,
    RKD,
    CorrelationCongruence,
    InBatchSimilarity,
    InfoNCE,
    SimilarityPreserving,
)
from hf_distill.objectives.taught import From
from hf_distill.terms import Objective, Sum
from hf_distill.weights import Weight, weight_from

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        # labels
        HardLabels,
        # distributions
        ForwardKL,
        ReverseKL,
        Jeffreys,
        JensenShannon,
        SkewKL,
        SkewReverseKL,
        AdaptiveKL,
        TotalVariation,
        AlphaBeta,
        Renyi,
        SoftCrossEntropy,
        LogitMSE,
        LogitStandardizedKL,
        DecoupledKD,
        NKD,
        Dist,
        TopKKL,
        Mutual,
        # decisions
        HardTeacherLabels,
        ConfidenceWeightedKL,
        LabelAgreement,
        Margin,
        Boundary,
        Reconstruction,
        MarginMSE,
        # features
        HiddenStates,
        Hint,
        AttentionTransfer,
        NST,
        MultiScale,
        ActivationBoundary,
        VID,
        FSP,
        TokenGram,
        EarlyExits,
        PKD,
        # relations between examples
        RKD,
        SimilarityPreserving,
        PKT,
        CorrelationCongruence,
        CKA,
        InfoNCE,
        InBatchSimilarity,
        # attention
        AttentionMaps,
        MiniLM,
        MiniLMv2,
        TinyBERT,
        # gradients
        Jacobian,
        # weights
        WeightDecay,
    )
}
"""Name in a recipe -> class."""

__all__ = [
    *sorted(objective.__name__ for objective in OBJECTIVES.values()),
    "OBJECTIVES",
    "Divergence",
    "From",
    "objective_from",
]


def objective_from(rows: Sequence[Mapping[str, Any]]) -> Sum:
    """Build an objective from a recipe's rows: ``[{name: forward_kl, weight: 0.7, …}, …]``.

    Raises:
        ValueError: an unknown name or setting (the known ones are listed), or a bad value.
    """
    if not rows:
        raise ValueError(f"Expected at least one objective of {sorted(OBJECTIVES)}, got none.")
    parts: list[tuple[Weight, Objective]] = []
    for row in rows:
        settings = dict(row)
        name, weight = settings.pop("name", None), settings.pop("weight", 1.0)
        member = settings.pop("teacher", None)
        if name not in OBJECTIVES:
            raise ValueError(f"Expected an objective of {sorted(OBJECTIVES)}, got {name!r}.")
        fields = {f.name: f for f in dataclasses.fields(OBJECTIVES[name])}
        unknown = set(settings) - set(fields)
        if unknown:
            raise ValueError(
                f"Unknown setting(s) {sorted(unknown)} of objective {name!r}; "
                f"known are {sorted(fields)}, weight and teacher."
            )
        for key, value in settings.items():  # YAML reads 1e-4 as a string
            if isinstance(value, str) and fields[key].type in ("float", "float | None"):
                settings[key] = float(value)
        part = OBJECTIVES[name](**settings)
        parts.append((weight_from(weight), part if member is None else From(member, part)))
    return Sum(tuple(parts))
