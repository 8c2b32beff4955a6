"""Weights and temperatures that change during training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hf_distill.objectives.base.loss_shares import LossShares
from hf_distill.objectives.base.loss_weights import LossShare
from hf_distill.objectives.base.objective import BALANCE, WeightedSum
from hf_distill.objectives.base.schedules import Progress, Schedule
from hf_distill.objectives.base.temperature import LearnedTemperature


def scheduled_values(
    objective: WeightedSum, modules: Mapping[str, nn.Module], progress: Progress
) -> dict[str, float | Tensor]:
    """Current weights and temperatures of an objective, of those that change during training.

    ``modules`` is the result of the objective's `build`, by name.
    """
    found: dict[str, float | Tensor] = {}
    balance = modules.get(BALANCE)
    shares = balance.weights() if isinstance(balance, LossShares) else {}
    for name, weight, part in objective.named():
        if isinstance(weight, Schedule):
            found[f"{name}_weight"] = weight.at(progress)
        elif isinstance(weight, LossShare):
            found[f"{name}_weight"] = shares[name]
        temperature = getattr(part, "temperature", None)
        if isinstance(temperature, Schedule):
            found[f"{name}_temperature"] = temperature.at(progress)
        elif isinstance(temperature, LearnedTemperature):
            found[f"{name}_temperature"] = temperature.of(modules[name], progress).detach()
    return found
