"""Checkpoints that are whole or absent, and hold what a plain student does not."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_distill.models.modules import doubles_of
from hf_distill.models.sharding import (
    copy_full_tensor,
    full_tensor,
    gathered_parameters,
    local_shard,
    shardable,
)
from hf_distill.teachers import Teacher
from hf_distill.training.checkpoint_files import (
    SAVING,
    STATE,
    clear_staging,
    make_way,
    remove_whole,
    steps_of,
    superseded,
    write_list,
)
from hf_distill.training.resuming import Resuming

EXTRAS = "distillation.safetensors"
"""What a checkpoint holds besides the student: projections, initial weights, a moving teacher."""
ATTACHED = "distillation"
"""Name under which the projections hang on the student while it trains."""


class Checkpoints(Resuming):
    """The saving part of the trainer.

    The projections are part of the student only while it trains, so that the optimizer, gradient
    clipping and DDP see them; what is saved as the student never holds them.
    """

    projections: nn.ModuleDict
    teacher: Teacher | None
    _initial: dict[str, Tensor]
    _saving: str | None = None
    _loading: str = ""

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        owner: Any = self.model
        ignored = getattr(owner, "_keys_to_ignore_on_save", None)
        if any(True for _ in self.projections.parameters()):
            owner.add_module(ATTACHED, self.projections)
            if ignored is not None:  # a callback may call model.save_pretrained
                names = [f"{ATTACHED}.{name}" for name in self.projections.state_dict()]
                owner._keys_to_ignore_on_save = {*ignored, *names}
        try:
            yield
        finally:
            owner._modules.pop(ATTACHED, None)
            if ignored is not None:
                owner._keys_to_ignore_on_save = ignored

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Add the projections to an optimizer that was made before there were any."""
        brought = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if brought:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            new = [p for p in self.projections.parameters() if id(p) not in held]
            optimizer.param_groups[0]["params"].extend(new)
        return optimizer

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> Any:
        """Shard a student that is evaluated before it is trained.

        accelerate (1.15) shards a model only along with an optimizer, so it gets one to forget.
        """
        accelerator = self.accelerator
        if not training and accelerator.is_fsdp2 and not accelerator._models:
            with self._attached(), shardable(accelerator.state.fsdp_plugin, model):
                model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
            accelerator._optimizers.pop()
        return super()._wrap_model(model, training, dataloader)

    def _prepare_for_training(self, *args: Any, **options: Any) -> Any:
        if not self.accelerator.is_fsdp2:
            return super()._prepare_for_training(*args, **options)
        student: Any = self.model
        with shardable(self.accelerator.state.fsdp_plugin, student):
            return super()._prepare_for_training(*args, **options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `transformers.Trainer`, and under FSDP with SHARDED_STATE_DICT a whole student too:
        a checkpoint alone may do with shards, unless it is pushed."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        sharded = plugin is not None and "SHARDED" in str(plugin.state_dict_type)
        if sharded and (self._saving is None or self.args.push_to_hub):
            state = self.accelerator.get_state_dict(self.model)  # all processes take part
            if self.args.should_save:
                self._save(output_dir, state)
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        owner: Any = self.model
        if state_dict is None and not isinstance(owner, PreTrainedModel | PeftModel):
            state_dict = owner.state_dict()  # tied weights, which `Trainer` cannot save, once
        if state_dict is not None:
            doubles = doubles_of(owner)
            kept = {k: v for k, v in state_dict.items() if k not in doubles}
            state_dict = {k: v for k, v in kept.items() if not k.startswith(f"{ATTACHED}.")}
        attached = owner._modules.pop(ATTACHED, None)
        try:
            super()._save(output_dir, state_dict)
        finally:
            if attached is not None:
                owner.add_module(ATTACHED, attached)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._saving is None else self._saving

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save under another name and rename, so that every ``checkpoint-N`` is a whole one."""
        self._check_weights()
        run_dir = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging = run_dir / SAVING
        if self.args.should_save:
            clear_staging(staging)
        self.accelerator.wait_for_everyone()
        self._saving = str(staging)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = None
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step:
            best = f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best == name or (run_dir / best).is_dir():
                self.state.best_model_checkpoint = str(run_dir / best)
        self._save_extras(staging / name)
        if self.args.should_save:
            self.state.save_to_json(str(staging / name / STATE))
            write_list(staging / name)
            make_way(run_dir / name, staging)
            os.replace(staging / name, run_dir / name)
            shutil.rmtree(staging)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run_dir / name))
        if self.args.should_save:
            self._rotate(run_dir, self.args.save_total_limit)

    def _rotate(self, run_dir: Path, limit: int | None) -> None:
        found = self.state.best_model_checkpoint
        best = None if found is None else Path(found)
        remove_whole(superseded(run_dir, limit, self.state.global_step, best), run_dir / SAVING)

    def _finalize_training(self, trial: Any, *args: Any, **options: Any) -> Any:
        """As in `Trainer`, which with ``save_total_limit=1`` keeps the best checkpoint alone and
        removes every folder whose name begins like one's: of these, real ones only."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            output = super()._finalize_training(trial, *args, **options)
        finally:
            self.args.save_total_limit = limit
        best = self.state.best_model_checkpoint
        if self.args.should_save and limit == 1 and best is not None:
            run_dir = Path(self._get_output_dir(trial))
            others = [p for p in steps_of(run_dir).values() if not p.samefile(best)]
            remove_whole(others, run_dir / SAVING)
        return output

    def _check_weights(self) -> None:
        """Raise FloatingPointError after a broken gradient, whose loss may have been finite."""
        owner: Any = self.model
        trained = {n: p for n, p in owner.named_parameters() if p.requires_grad}
        parts = [local_shard(p) for p in trained.values()]
        broken = torch.stack([(~p.isfinite()).any().to(self.args.device) for p in parts])
        broken = self.accelerator.reduce(broken.long(), "sum")
        if names := [n for n, b in zip(trained, broken.tolist(), strict=True) if b]:
            raise FloatingPointError(
                f"The weights are not finite after step {self.state.global_step}: {names[:4]} and "
                f"{len(names[4:])} more. This checkpoint is not written; earlier ones stay. "
                "Lower the learning rate, and look for a loss whose gradient is infinite."
            )

    def _held(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the student: the tensors themselves, by name."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "projections": self.projections.state_dict(),
            "initial": self._initial,
            "teacher": {} if self.teacher is None else self.teacher.tensors(),
        }
        return {f"{part}.{name}": t for part, found in parts.items() for name, t in found.items()}

    def _save_extras(self, folder: Path) -> None:
        """All processes must take part: the projections may be in shards."""
        with gathered_parameters(self.projections.parameters()):
            held = without_aliases({name: full_tensor(t) for name, t in self._held().items()})
            if held and self.args.should_save:
                save_file({k: v.contiguous() for k, v in held.items()}, folder / EXTRAS)

    def _load_extras(self, folder: str) -> None:
        with gathered_parameters(self.projections.parameters(), changed=True):
            self._load_held(folder)

    def _load_held(self, folder: str) -> None:
        tensors = self._held()
        held = without_aliases({name: full_tensor(t) for name, t in tensors.items()})
        if not held:
            return
        path = Path(folder) / EXTRAS
        remedy = (
            "Resume with the objective and teacher it was trained with, or start anew from its "
            "student."
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._loading = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self._loading = str(self.state.best_model_checkpoint)
        self._check_files(Path(self._loading), states=False)
        super()._load_best_model()
        self._load_extras(self._loading)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """See that all weights were loaded.

        `save_pretrained` writes some models (ViT) under the names of older releases, and `Trainer`
        reads them by name: without this, a resumed student would keep its first weights.
        """
        missing, unexpected = load_result.missing_keys, load_result.unexpected_keys
        missing[:] = [key for key in missing if not key.startswith(f"{ATTACHED}.")]
        owner: Any = self.model
        doubles = doubles_of(owner)
        missing[:] = [key for key in missing if key not in doubles]
        if missing and unexpected and isinstance(owner, PreTrainedModel):
            loaded = type(owner).from_pretrained(self._loading, config=owner.config)
            missing[:], unexpected[:] = owner.load_state_dict(loaded.state_dict(), strict=False)
            missing[:] = [key for key in missing if not key.startswith(f"{ATTACHED}.")]
        super()._issue_warnings_after_load(load_result)


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
