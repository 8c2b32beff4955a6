"""Objectives on whole feature maps: convolutional stages, or images as patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from hf_distill.losses import features
from hf_distill.objectives.base.alignment import LayerPair, as_map, same_size, width
from hf_distill.objectives.base.objective import bibtex
from hf_distill.objectives.features import FeatureObjective, Loss


@dataclass(frozen=True)
class MapObjective(FeatureObjective):
    """Base of objectives on whole feature maps, or images as patches.

    Maps of different resolution are average-pooled to the smaller one. Sequences with padding have
    no map: compare them with HiddenStates.
    """

    def prepare(self, pair: LayerPair, mask: Tensor | None) -> LayerPair:
        if mask is not None or pair.student.dim() == 2:
            raise ValueError(
                f"{type(self).__name__} compares feature maps, and {pair.key} is a sequence with "
                "padding or a single vector. Use HiddenStates, or name layers of an image model."
            )
        pair = same_size(pair)
        return replace(pair, student=as_map(pair.student), teacher=as_map(pair.teacher))


@dataclass(frozen=True)
class Hint(MapObjective):
    """FitNets' hint: the mean squared difference of two maps (arXiv 1412.6550)."""

    name: ClassVar[str] = "hint"
    loss: ClassVar[Loss] = staticmethod(features.hint_mse)
    citation: ClassVar[str] = bibtex("romero2015fitnets")


@dataclass(frozen=True)
class AttentionTransfer(MapObjective):
    """Attention transfer: squared differences of normalised activation energy maps (AT,
    1612.03928).

    Args:
        p: The power of the activations.
        form: ``code`` or ``paper``, see `hf_distill.losses.features.attention_transfer`.
    """

    p: int = 2
    form: Literal["code", "paper"] = "code"
    projects: ClassVar[bool] = False
    name: ClassVar[str] = "attention_transfer"
    loss: ClassVar[Loss] = staticmethod(features.attention_transfer)
    keywords: ClassVar[tuple[str, ...]] = ("p", "form")
    citation: ClassVar[str] = bibtex("zagoruyko2017paying")


@dataclass(frozen=True)
class NST(MapObjective):
    """Neuron selectivity transfer: the distance of two maps' channels as sets (1707.01219)."""

    projects: ClassVar[bool] = False
    name: ClassVar[str] = "nst"
    loss: ClassVar[Loss] = staticmethod(features.nst)
    citation: ClassVar[str] = bibtex("huang2017like")


@dataclass(frozen=True)
class ReviewKD(MapObjective):
    """Squared differences at several scales of every map: ReviewKD's pyramid (2104.09044)."""

    name: ClassVar[str] = "review_kd"
    loss: ClassVar[Loss] = staticmethod(features.review_hcl)
    citation: ClassVar[str] = bibtex("chen2021distilling")


@dataclass(frozen=True)
class ActivationBoundary(MapObjective):
    """Activation boundaries: a hinge on the signs of the activations (AB, arXiv 1811.03233).

    Args:
        layers: As in every feature objective; best the outputs of modules before their activation.
        margin: Of the hinge.
    """

    margin: float = 1.0
    name: ClassVar[str] = "activation_boundary"
    loss: ClassVar[Loss] = staticmethod(features.activation_boundary)
    keywords: ClassVar[tuple[str, ...]] = ("margin",)
    citation: ClassVar[str] = bibtex("heo2019knowledge")


class _LogScale(nn.Module):
    def __init__(self, channels: int, variance: float = 5.0):
        super().__init__()
        self.value = nn.Parameter(torch.full((channels,), variance).expm1().log())  # of softplus


@dataclass(frozen=True)
class VID(MapObjective):
    """Variational information distillation: a learned Gaussian per channel (arXiv 1904.05835).

    It is a log-likelihood: it is not 0 for equal maps, and may be negative.
    """

    name: ClassVar[str] = "vid"
    citation: ClassVar[str] = bibtex("ahn2019variational")

    def learned(self, pairs: Sequence[LayerPair]) -> dict[str, nn.Module]:
        return {f"scale_{pair.key}": _LogScale(width(pair.teacher)) for pair in pairs}

    def compare(
        self, pair: LayerPair, mask: Tensor | None, modules: dict[str, nn.Module]
    ) -> Tensor:
        scale = modules[f"scale_{pair.key}"].value
        return features.vid(pair.student, pair.teacher, scale)  # type: ignore[arg-type]
