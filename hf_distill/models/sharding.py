"""Weights that FSDP2 or DeepSpeed's ZeRO-3 spreads over the processes (Rajbhandari et al., 2020,
arXiv 1910.02054)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.integrations import deepspeed as deepspeed_settings


def choose_blocks(plugin: Any, model: nn.Module) -> None:
    """Choose the blocks to shard, unless the user has: those of the model's class without the one
    around its input embeddings.

    accelerate (1.15) shards the embeddings separately and fails if a block contains them: BERT and
    ViT list their embeddings among their blocks.

    Args:
        plugin: `accelerate.utils.FullyShardedDataParallelPlugin`, version 2.
        model: The student.
    """
    owner: Any = model
    names = getattr(owner, "_no_split_modules", None)
    if not names or plugin.transformer_cls_names_to_wrap is not None:
        return
    inner = owner.get_input_embeddings() if hasattr(owner, "get_input_embeddings") else None
    found = [module for module in owner.modules() if type(module).__name__ in names]
    around = {type(m).__name__ for m in found if m is not inner and inner in set(m.modules())}
    plugin.transformer_cls_names_to_wrap = sorted({type(m).__name__ for m in found} - around)


@contextlib.contextmanager
def shardable(plugin: Any, model: nn.Module) -> Iterator[None]:
    """Context that works around two faults of accelerate (1.15) in preparing a model.

    It puts embeddings and head into separate groups, and torch rejects parameters that several
    groups share (T5's three embeddings, the bias of BERT's head for masked words): here they stay
    with the rest of the model. It also applies activation checkpointing to the blocks of a sharded
    model a second time.

    Args:
        plugin: `accelerate.utils.FullyShardedDataParallelPlugin`, version 2.
        model: The student, sharded already or not.
    """
    owner: Any = model
    checkpointing, again = plugin.activation_checkpointing, isinstance(model, FSDPModule)
    shared = not again and _shares_elsewhere(owner)
    if shared:
        owner.get_input_embeddings = owner.get_output_embeddings = lambda: None
    plugin.activation_checkpointing = checkpointing and not again
    try:
        yield
    finally:
        plugin.activation_checkpointing = checkpointing
        if shared:
            del owner.get_input_embeddings, owner.get_output_embeddings


def _shares_elsewhere(model: Any) -> bool:
    """True if a parameter belongs to several modules other than embeddings and head."""
    names = ("get_input_embeddings", "get_output_embeddings")
    ends = {getattr(model, name, lambda: None)() for name in names}
    holders: dict[int, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(module)
    return any(len(found) > 1 and not found <= ends for found in holders.values())


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of shards; a collective call of all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_full_tensor(tensor: Tensor, value: Tensor) -> None:
    """Copy a full value into a tensor, sharded or not."""
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    with torch.no_grad():
        tensor.copy_(value)


# ---- ZeRO-3 --------------------------------------------------------------------------------------


def is_partitioned(parameter: Tensor) -> bool:
    """True if DeepSpeed partitions this parameter: outside its module's forward it is empty."""
    return hasattr(parameter, "ds_id")


@contextlib.contextmanager
def loaded_unsharded() -> Iterator[None]:
    """Context in which `from_pretrained` loads full models, even with the arguments of a ZeRO-3
    training."""
    reference = deepspeed_settings._hf_deepspeed_config_weak_ref
    settings = None if reference is None else reference()
    deepspeed_settings.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if settings is not None:
            deepspeed_settings.set_hf_deepspeed_config(settings)


@contextlib.contextmanager
def gathered_parameters(parameters: Iterable[Tensor], changed: bool = False) -> Iterator[None]:
    """Gather parameters on every process; a collective call of all processes.

    Args:
        parameters: Those that are not partitioned are not changed.
        changed: Keep changes by the first process.
    """
    partitioned = [p for p in parameters if is_partitioned(p)]
    if not partitioned:
        yield
        return
    import deepspeed  # what partitioned them

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if changed else None):
        yield


def is_sharded(model: nn.Module) -> bool:
    """True if all processes must run a model together."""
    return any(isinstance(p, DTensor) or is_partitioned(p) for p in model.parameters())


def remote_numel(model: nn.Module) -> int:
    """Number of a model's elements that are not on this process."""
    spread: list[Any] = [p for p in model.parameters() if is_partitioned(p)]
    return sum(int(p.ds_numel) - p.numel() for p in spread)


def local_shard(parameter: Tensor) -> Tensor:
    """This process's part of a parameter under FSDP2 or ZeRO-3, or all of it."""
    held = parameter.detach()
    if isinstance(held, DTensor):
        return held.to_local()
    if not is_partitioned(parameter):
        return held
    spread: Any = parameter
    part = spread.ds_tensor.flatten()  # what fills it up to equal lengths may be anything
    rank = torch.distributed.get_rank(spread.ds_process_group)
    return part[: max(0, spread.ds_numel - rank * part.numel())]


def zero3_inference_engine(model: nn.Module, accelerator: Accelerator) -> Any:
    """An engine that gathers each module of a partitioned model for its forward.

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
