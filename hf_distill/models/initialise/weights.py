"""A model as a table of named tensors, and slicing it to the sizes of a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

Weights = dict[str, Tensor]
Index = Callable[[str, int, int, int], Tensor]
"""(name, axis, size before, size after) -> kept indices of this axis."""


def weights_of(model: PreTrainedModel) -> Weights:
    """All tensors that determine a model's outputs: parameters and all buffers."""
    return {**dict(model.named_buffers()), **model.state_dict()}


def init_empty(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model without storage, from a config as saved and loaded.

    Raises:
        ValueError: a config that does not describe a model.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return kind(type(config).from_dict(config.to_dict()))
    except ValueError as error:  # a config that counts its layers in one more place
        raise ValueError(
            f"Expected the config of {kind.__name__} to describe the smaller model as well, got: "
            f"{error}. Build this student from a config instead."
        ) from error


def cut(weights: Weights, model: PreTrainedModel, index: Index) -> Weights:
    """Cut each axis that is shorter in the model of a changed config, a `fresh` one.

    Raises:
        ValueError: a model that has other tensors than before, not only smaller ones.
    """
    smaller = weights_of(model)
    others = model.state_dict().keys() - weights.keys()
    others |= {n for n in weights if n not in smaller or smaller[n].dim() != weights[n].dim()}
    if others:
        raise ValueError(
            f"Expected a smaller {type(model).__name__} to have the same weights, only shorter, "
            f"but {sorted(others)} are different ones. Build this student from a config instead."
        )
    result = {}
    for name, value in weights.items():
        for axis, new in enumerate(smaller[name].shape):
            if (old := value.shape[axis]) != new:
                value = value.index_select(axis, index(name, axis, old, new).to(value.device))
        result[name] = value
    return result


def most_important(values: Tensor, count: int) -> list[int]:
    """Sorted indices of the largest values; of equal ones the first.

    >>> most_important(torch.tensor([3.0, 0.0, 5.0, 3.0]), 2)
    [0, 2]
    """
    order = values.argsort(descending=True, stable=True)
    return sorted(order[:count].tolist())
