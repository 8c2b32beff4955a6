"""Weights that DeepSpeed's ZeRO-3 has spread over the processes (Rajbhandari et al., 2020, arXiv
1910.02054)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


def is_partitioned(parameter: Tensor) -> bool:
    """Whether DeepSpeed holds this parameter: outside its module's forward it is empty."""
    return hasattr(parameter, "ds_id")


@contextlib.contextmanager
def whole(parameters: Iterable[Tensor], changed: bool = False) -> Iterator[None]:
    """Make parameters whole on every process; all processes must do so together.

    Args:
        parameters: Those that are not partitioned are left alone.
        changed: Keep what the first process writes into them.
    """
    partitioned = [p for p in parameters if is_partitioned(p)]
    if not partitioned:
        yield
        return
    import deepspeed  # what partitioned them

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if changed else None):
        yield


def local_part(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter, whoever has spread it: FSDP2, ZeRO-3 or nobody."""
    held: Any = parameter.detach()
    if hasattr(held, "to_local"):
        return held.to_local()
    if not is_partitioned(parameter):
        return held
    spread: Any = parameter
    part = spread.ds_tensor.flatten()  # what fills it up to equal lengths may be anything
    rank = torch.distributed.get_rank(spread.ds_process_group)
    return part[: max(0, spread.ds_numel - rank * part.numel())]


def serve(model: nn.Module, accelerator: Accelerator) -> Any:
    """An engine that puts each module of a partitioned model together for its forward.

    ``from_pretrained`` partitions what it loads once the arguments of a ZeRO-3 training exist. The
    model is to be called, not the engine; it works for as long as the engine is kept.
    """
    import deepspeed

    plugin: Any = accelerator.state.deepspeed_plugin
    config = copy.deepcopy(plugin.deepspeed_config)
    for training in ("optimizer", "scheduler"):
        config.pop(training, None)
    config["zero_optimization"].pop("offload_optimizer", None)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    return engine
