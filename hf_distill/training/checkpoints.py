"""Writing and reading of checkpoints, with the parts that a plain student lacks."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_distill.models.modules import doubles_of
from hf_distill.models.sharding import copy_full_tensor, full_tensor, local_shard, shardable
from hf_distill.training.checkpoint_files import (
    SAVING,
    STATE,
    make_way,
    remove_whole,
    steps_of,
    superseded,
    write_list,
)

EXTRAS = "distillation.safetensors"
"""File of a checkpoint besides the student's: projections, initial weights, a moving teacher."""
ATTACHED = "distillation"
"""Name of the submodule that holds the projections on the student during training."""


@dataclass
class CheckpointInUse:
    """The checkpoint that `Trainer` writes or reads, for the methods that it calls meanwhile.

    Attributes:
        staging: Folder of a checkpoint that is being written; None: none is.
        source: Folder of the checkpoint whose weights were loaded last.
        step: Optimizer steps of the checkpoint that training resumes from; None: there is none.
    """

    staging: Path | None = None
    source: str = ""
    step: int | None = None

    @contextlib.contextmanager
    def writing(self, staging: Path) -> Iterator[None]:
        """Redirect a save to another folder."""
        self.staging = staging
        try:
            yield
        finally:
            self.staging = None


# ---- the student, without its projections ------------------------------------------------------


@contextlib.contextmanager
def attached(student: Any, projections: nn.Module) -> Iterator[None]:
    """Make the objective's projections part of the student, for the optimizer, gradient clipping
    and DDP; the saved student never contains them."""
    ignored = getattr(student, "_keys_to_ignore_on_save", None)
    if any(True for _ in projections.parameters()):
        student.add_module(ATTACHED, projections)
        if ignored is not None:  # a callback may call model.save_pretrained
            names = [f"{ATTACHED}.{name}" for name in projections.state_dict()]
            student._keys_to_ignore_on_save = {*ignored, *names}
    try:
        yield
    finally:
        student._modules.pop(ATTACHED, None)
        if ignored is not None:
            student._keys_to_ignore_on_save = ignored


@contextlib.contextmanager
def detached(student: Any) -> Iterator[None]:
    """Take the projections off the student while it is saved."""
    projections = student._modules.pop(ATTACHED, None)
    try:
        yield
    finally:
        if projections is not None:
            student.add_module(ATTACHED, projections)


def plain_state(student: Any, state: dict[str, Any] | None) -> dict[str, Any] | None:
    """State dict of the plain student: no projections, and tied weights once; None: left to
    `transformers.Trainer`."""
    if state is None and not isinstance(student, PreTrainedModel | PeftModel):
        state = student.state_dict()  # tied weights, which `Trainer` cannot save, once
    if state is None:
        return None
    kept = set(_own(state, doubles_of(student)))
    return {name: value for name, value in state.items() if name in kept}


def _own(names: Iterable[str], doubles: Collection[str]) -> list[str]:
    """Names without tied weights' doubles and projections."""
    return [n for n in names if n not in doubles and not n.startswith(f"{ATTACHED}.")]


def add_to_optimizer(optimizer: torch.optim.Optimizer, parameters: Iterator[nn.Parameter]) -> None:
    """Add parameters to the first group of an optimizer, unless it has them."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    optimizer.param_groups[0]["params"].extend(p for p in parameters if id(p) not in held)


def shard_for_evaluation(accelerator: Accelerator, student: nn.Module) -> nn.Module:
    """Shard a student that is evaluated before it is trained (FSDP2).

    accelerate (1.15) shards a model only along with an optimizer, so it gets one that is dropped.
    """
    with shardable(accelerator.state.fsdp_plugin, student):
        student, _ = accelerator.prepare(student, torch.optim.SGD(student.parameters()))
    accelerator._optimizers.pop()
    return student


def saves_shards(accelerator: Accelerator) -> bool:
    """Tell whether FSDP writes shards to checkpoints (SHARDED_STATE_DICT)."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    return plugin is not None and "SHARDED" in str(plugin.state_dict_type)


# ---- saving ------------------------------------------------------------------------------------


def check_finite(student: nn.Module, accelerator: Accelerator, step: int) -> None:
    """Raise a FloatingPointError for trainable weights that are not finite, before a save."""
    trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
    parts = [local_shard(p) for p in trained.values()]
    broken = torch.stack([(~p.isfinite()).any().to(accelerator.device) for p in parts])
    broken = accelerator.reduce(broken.long(), "sum")
    if names := [n for n, b in zip(trained, broken.tolist(), strict=True) if b]:
        raise FloatingPointError(
            f"The weights are not finite after step {step}: {names[:4]} and "
            f"{len(names[4:])} more. This checkpoint is not written; earlier ones stay. "
            "Lower the learning rate, and look for a loss whose gradient is infinite."
        )


def point_to_best(state: TrainerState, run_dir: Path, name: str) -> None:
    """Set the path of the best checkpoint to its final place, while ``name`` is being written."""
    if state.best_global_step:
        best = f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
        if best == name or (run_dir / best).is_dir():
            state.best_model_checkpoint = str(run_dir / best)


def finish_checkpoint(staged: Path, place: Path, state: TrainerState) -> None:
    """Write the state and the list of files of a staged checkpoint, and rename it."""
    state.save_to_json(str(staged / STATE))
    write_list(staged)
    make_way(place, staged.parent)
    os.replace(staged, place)
    shutil.rmtree(staged.parent)


def rotate(run_dir: Path, limit: int | None, state: TrainerState) -> None:
    """Remove the oldest checkpoints over a limit, without the best one."""
    best = None if state.best_model_checkpoint is None else Path(state.best_model_checkpoint)
    remove_whole(superseded(run_dir, limit, state.global_step, best), run_dir / SAVING)


def remove_others(run_dir: Path, best: str) -> None:
    """Remove all checkpoints of a run but the best."""
    others = [path for path in steps_of(run_dir).values() if not path.samefile(best)]
    remove_whole(others, run_dir / SAVING)


# ---- extras ------------------------------------------------------------------------------------


def save_extras(folder: Path, tensors: Mapping[str, Tensor], writes: bool) -> None:
    """Write tensors to `EXTRAS`, if there are any and this process `writes`.

    All processes must take part, since tensors may be in shards.
    """
    held = without_aliases({name: full_tensor(t) for name, t in tensors.items()})
    if held and writes:
        save_file({k: v.contiguous() for k, v in held.items()}, folder / EXTRAS)


def load_extras(folder: str, tensors: Mapping[str, Tensor]) -> None:
    """Read `EXTRAS` into tensors, in place.

    Raises:
        ValueError: the file is missing, or contains tensors of other names or shapes.
    """
    held = without_aliases({name: full_tensor(t) for name, t in tensors.items()})
    if not held:
        return
    path = Path(folder) / EXTRAS
    remedy = (
        "Resume with the objective and teacher it was trained with, or start anew from its student."
    )
    if not path.is_file():
        parts = sorted({name.partition(".")[0] for name in held})
        raise ValueError(
            f"Expected {EXTRAS} in {folder}, found none: this checkpoint was made without the "
            f"{' and '.join(parts)} of the present objective and teacher. {remedy}"
        )
    saved = load_file(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in held.items()}
    differing = sorted(n for n in {*shapes, *wanted} if shapes.get(n) != wanted.get(n))
    if differing:
        found = [f"{n}: {shapes.get(n)} instead of {wanted.get(n)}" for n in differing[:4]]
        raise ValueError(
            f"Expected in {path} what the present objective and teacher need, got {found} and "
            f"{len(differing[4:])} more. {remedy}"
        )
    for name in held:
        copy_full_tensor(tensors[name], saved[name])


def complete_load(result: Any, student: Any, folder: str) -> None:
    """Load weights that `transformers.Trainer` did not find in a checkpoint.

    `save_pretrained` writes some models (ViT) under the names of older releases, and `Trainer`
    reads them by name. The keys of the `result` are changed in place.
    """
    missing, unexpected = result.missing_keys, result.unexpected_keys
    missing[:] = _own(missing, doubles_of(student))
    if missing and unexpected and isinstance(student, PreTrainedModel):
        loaded = type(student).from_pretrained(folder, config=student.config)
        missing[:], unexpected[:] = student.load_state_dict(loaded.state_dict(), strict=False)
        missing[:] = _own(missing, ())


def without_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor under its first name alone: tied weights have several, and safetensors one."""
    seen: set[tuple[Any, ...]] = set()
    kept = {}
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() == 0 or key not in seen:
            kept[name] = tensor
        seen.add(key)
    return kept
