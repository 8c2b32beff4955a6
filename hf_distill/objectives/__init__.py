"""Objectives: one frozen dataclass of settings each.

Three edits add one: the function in `losses/`, its dataclass here, its row in the table of contract
tests. `OBJECTIVES` lists what this package exports by name.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_distill.objectives.adversarial import IAD, FreeLB
from hf_distill.objectives.adversaries import PGD, VirtualAdversary
from hf_distill.objectives.attention import AttentionMaps, MiniLM, MiniLMv2, TinyBERT
from hf_distill.objectives.base.loss_weights import Weight, weight_from
from hf_distill.objectives.base.objective import Objective, WeightedSum
from hf_distill.objectives.classes import NKD, DecoupledKD, Dist, LogitStandardizedKL, TopKKL
from hf_distill.objectives.cross_tokenizer import PrefixKL, SpanKL, UniversalLogitDistance
from hf_distill.objectives.decay import WeightDecay
from hf_distill.objectives.decisions import (
    Boundary,
    ConfidenceWeightedKL,
    HardTeacherLabels,
    LabelAgreement,
    Margin,
    MarginMSE,
    ProbabilityMSE,
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
from hf_distill.objectives.groups import GroupDRO, GroupWeights
from hf_distill.objectives.heads import OnHead
from hf_distill.objectives.input_perturbations import (
    Gaussian,
    InputPerturbation,
    PerturbedColumns,
    SecondDropout,
    TokenNoise,
    Uniform,
)
from hf_distill.objectives.labels import HardLabels, ModelLoss
from hf_distill.objectives.logits import Divergence
from hf_distill.objectives.maps import (
    NST,
    VID,
    ActivationBoundary,
    AttentionTransfer,
    Hint,
    ReviewKD,
)
from hf_distill.objectives.matryoshka import Matryoshka
from hf_distill.objectives.methods import (
    adaad,
    adversarial_training,
    ard,
    r_drop,
    rslad,
    smart,
    trades,
    vat,
)
from hf_distill.objectives.nested import AuxiliaryHead, FromTeacher
from hf_distill.objectives.noisy_labels import GeneralizedCrossEntropy, TrustedLabels
from hf_distill.objectives.perturbed import INPUT_PERTURBATIONS, OnPerturbed, Smoothness
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
from hf_distill.objectives.routing import RouterBalance

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for family in (
        # labels
        (HardLabels, ModelLoss, AuxiliaryHead),
        # distributions
        (ForwardKL, ReverseKL, Jeffreys, JensenShannon, SkewKL, SkewReverseKL, AdaptiveKL),
        (TotalVariation, AlphaBeta, Renyi, SoftCrossEntropy, LogitMSE, LogitStandardizedKL),
        (DecoupledKD, NKD, Dist, TopKKL, Mutual),
        # another tokenizer
        (PrefixKL, SpanKL, UniversalLogitDistance),
        # decisions
        (HardTeacherLabels, ConfidenceWeightedKL, LabelAgreement, Margin, Boundary),
        (ProbabilityMSE, MarginMSE),
        # features
        (HiddenStates, Hint, AttentionTransfer, NST, ReviewKD, ActivationBoundary, VID),
        (FSP, TokenGram, EarlyExits, PKD),
        # relations between examples, embeddings
        (RKD, SimilarityPreserving, PKT, CorrelationCongruence, CKA, InfoNCE, InBatchSimilarity),
        (Matryoshka,),
        # attention
        (AttentionMaps, MiniLM, MiniLMv2, TinyBERT),
        # gradients
        (Jacobian,),
        # perturbed inputs
        (OnPerturbed, Smoothness, IAD, FreeLB),
        # groups and wrong labels
        (GroupDRO, GroupWeights, TrustedLabels, GeneralizedCrossEntropy),
        # mixtures of experts, weights
        (RouterBalance, WeightDecay),
    )
    for objective in family
}
"""Name in a recipe -> class."""

METHODS: dict[str, Callable[..., WeightedSum]] = {
    method.__name__: method
    for method in (adversarial_training, trades, ard, rslad, adaad, r_drop, vat, smart)
}
"""Name in a recipe -> a published method, which is a sum of objectives."""

# One line per family, in a form that type checkers read.
__all__ = ["INPUT_PERTURBATIONS", "METHODS", "OBJECTIVES", "objective_from", "settings_of"]
__all__ += ["AuxiliaryHead", "Divergence", "FromTeacher", "HardLabels", "ModelLoss", "OnHead"]
__all__ += ["AdaptiveKL", "AlphaBeta", "ForwardKL", "Jeffreys", "JensenShannon", "Mutual", "Renyi"]
__all__ += ["ReverseKL", "SkewKL", "SkewReverseKL", "SoftCrossEntropy", "TopKKL", "TotalVariation"]
__all__ += ["NKD", "DecoupledKD", "Dist", "LogitMSE", "LogitStandardizedKL"]
__all__ += ["PrefixKL", "SpanKL", "UniversalLogitDistance"]
__all__ += ["Boundary", "ConfidenceWeightedKL", "HardTeacherLabels", "LabelAgreement", "Margin"]
__all__ += ["MarginMSE", "ProbabilityMSE"]
__all__ += ["FSP", "NST", "PKD", "VID", "ActivationBoundary", "AttentionTransfer", "EarlyExits"]
__all__ += ["HiddenStates", "Hint", "ReviewKD", "TokenGram"]
__all__ += ["CKA", "PKT", "RKD", "CorrelationCongruence", "InBatchSimilarity", "InfoNCE"]
__all__ += ["Matryoshka", "SimilarityPreserving"]
__all__ += ["AttentionMaps", "Jacobian", "MiniLM", "MiniLMv2", "TinyBERT"]
__all__ += ["IAD", "FreeLB", "OnPerturbed", "Smoothness"]
__all__ += ["PGD", "Gaussian", "InputPerturbation", "PerturbedColumns", "SecondDropout"]
__all__ += ["TokenNoise", "Uniform", "VirtualAdversary"]
__all__ += ["GeneralizedCrossEntropy", "GroupDRO", "GroupWeights", "TrustedLabels"]
__all__ += ["RouterBalance", "WeightDecay"]
__all__ += ["adaad", "adversarial_training", "ard", "r_drop", "rslad", "smart", "trades", "vat"]


def objective_from(rows: Sequence[Mapping[str, Any]]) -> WeightedSum:
    """Build an objective from a recipe's rows: ``[{name: forward_kl, weight: 0.7, …}, …]``.

    A row may name a method of several parts (``rslad``). An objective around another one takes it
    as a nested row:
    ``{name: on_perturbed, objective: {name: forward_kl}, by: {name: pgd, epsilon: 0.03}}``.

    Raises:
        ValueError: an unknown name or setting (the known ones are listed), or a bad value.
    """
    if not rows:
        raise ValueError(f"Expected at least one objective of {sorted(OBJECTIVES)}, got none.")
    parts: list[tuple[Weight, Objective]] = []
    for row in rows:
        settings = dict(row)
        name, weight = settings.pop("name", None), settings.pop("weight", 1.0)
        if name not in OBJECTIVES and name not in METHODS:
            known = sorted(OBJECTIVES)
            raise ValueError(
                f"Expected an objective of {known} or {sorted(METHODS)}, got {name!r}."
            )
        types = settings_of(name)
        member = None if "teacher" in types else settings.pop("teacher", None)
        head = settings.pop("head", None)
        unknown = set(settings) - set(types)
        if unknown:
            raise ValueError(
                f"Unknown setting(s) {sorted(unknown)} of objective {name!r}; "
                f"known are {sorted(types)}, weight, teacher and head."
            )
        for key, value in settings.items():
            if isinstance(value, str) and types[key] in ("float", "float | None"):
                settings[key] = float(value)  # YAML reads 1e-4 as a string
            elif key == "objective" and isinstance(value, Mapping):
                settings[key] = _single(value)
        found = 1.0 * (OBJECTIVES.get(name) or METHODS[name])(**settings)
        if member is not None:
            found = WeightedSum(
                tuple((own, FromTeacher(member, part)) for own, part in found.parts)
            )
        if head is not None:
            found = 1.0 * OnHead(head, found)
        parts.extend((found * weight_from(weight)).parts)
    return WeightedSum(tuple(parts))


def settings_of(name: str) -> dict[str, str]:
    """The settings of an objective or a method, with their types as written."""
    if name in OBJECTIVES:
        return {f.name: str(f.type) for f in dataclasses.fields(OBJECTIVES[name])}
    given = inspect.signature(METHODS[name]).parameters.values()
    return {parameter.name: str(parameter.annotation) for parameter in given}


def _single(row: Mapping[str, Any]) -> Objective:
    """Build the objective of a nested row."""
    parts = objective_from([row]).parts
    if len(parts) != 1 or parts[0][0] != 1:
        raise ValueError(
            f"Expected one objective without a weight within another, got {dict(row)}: weights and "
            "further parts belong to rows of their own."
        )
    return parts[0][1]
