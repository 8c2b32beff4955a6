"""Dropout of a student, under any of its names in configs."""

from __future__ import annotations

import copy
import re
from typing import Any

from transformers import PreTrainedModel

DROPOUT = re.compile(r"dropout|pdrop")
"""Name parts of dropout settings; ``layerdrop`` and ``drop_path_rate`` drop whole layers."""


def with_dropout(model: PreTrainedModel, dropout: float) -> PreTrainedModel:
    """Copy a model with another dropout probability, wherever it has one.

    Args:
        model: The model, which is not changed.
        dropout: From 0 to 1, 1 excluded.

    Raises:
        ValueError: a chance out of range, or a model without dropout.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"Expected a chance of dropout from 0 to 1 (excluded), got {dropout}.")
    config: Any = copy.deepcopy(model.config)
    names = [
        name
        for name, value in config.to_dict().items()
        if DROPOUT.search(name) and isinstance(value, float | int) and not isinstance(value, bool)
    ]
    if not names:
        raise ValueError(
            f"Expected a model with dropout, got {type(model).__name__}, whose configuration has "
            "none. Use weight decay or early stopping."
        )
    for name in names:
        setattr(config, name, dropout)
    other = type(model)(config)
    other.load_state_dict(model.state_dict())
    return other.train(model.training).to(device=model.device, dtype=model.dtype)
