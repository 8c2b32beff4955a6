"""The beginning of a training: alone in its folder, and from a checkpoint that is whole."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from hf_distill.training.checkpoint_files import CheckpointError, check_checkpoint, steps_of
from hf_distill.utils.folders import FolderError, held

logger = logging.getLogger(__name__)


class Resuming(Trainer):
    """The part of the trainer that begins, or goes on from a checkpoint."""

    _resumed_step: int | None = None

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any
    ) -> Any:
        """As in `transformers.Trainer`; a checkpoint is compared with the list of its files first.
        A run that saves is the only one in its output folder, until it ends or is killed.

        Raises:
            FolderError: another run saves in the output folder, saying which.
            CheckpointError: a file of the checkpoint is missing or was changed, saying which and
                what to do. Optimizer, schedule and random states may be missing with
                ``save_only_model``.
        """
        found: Any = resume_from_checkpoint
        trial = options.get("trial", args[0] if args else None)
        self._resumed_step = None
        saves = self.args.save_strategy != "no" and trial is None
        with self._alone(saves):
            if found is True and os.path.isdir(str(self.args.output_dir)):
                found = get_last_checkpoint(str(self.args.output_dir))
            if isinstance(found, str | os.PathLike):
                self._resumed_step = self._check_files(Path(found))
            if saves and self.is_world_process_zero():
                tell_of_others(Path(str(self.args.output_dir)), self._resumed_step or 0)
            return super().train(
                resume_from_checkpoint if found is None else found, *args, **options
            )

    @contextlib.contextmanager
    def _alone(self, saves: bool) -> Iterator[None]:
        """Hold the output folder: two runs would write one checkpoint together."""
        with contextlib.ExitStack() as lock:
            problem = ""
            if saves and self.args.should_save:
                try:
                    lock.enter_context(held(Path(str(self.args.output_dir))))
                except FolderError as error:
                    problem = str(error)
            self._agree(problem, FolderError)
            yield

    def _agree(self, problem: str, kind: type[ValueError]) -> None:
        """Raise on all processes what one has found."""
        found = [problem]
        if self.accelerator.num_processes > 1:
            found = gather_object(found)
        if told := [problem for problem in found if problem]:
            raise kind(told[0])

    def _check_files(self, folder: Path, states: bool = True) -> int:
        """`check_checkpoint` on one process of each machine; gives the steps that it has done."""
        problem, step = "", 0
        if self.accelerator.is_local_main_process:
            try:
                step = check_checkpoint(folder, states, anew=self.args.save_only_model)
            except CheckpointError as error:
                problem = str(error)
        self._agree(problem, CheckpointError)
        return max(gather_object([step])) if self.accelerator.num_processes > 1 else step

    def _init_training_state(self, *args: Any, **options: Any) -> Any:
        begun = super()._init_training_state(*args, **options)
        if self._resumed_step not in (None, self.state.global_step):
            raise CheckpointError(
                f"Expected to go on from step {self._resumed_step}, got step "
                f"{self.state.global_step}: the checkpoint was changed or removed while it was "
                "read, by another run in this folder. Let that one end, then start this one again."
            )
        return begun


def tell_of_others(run: Path, step: int) -> None:
    """Warn of checkpoints of more steps than a run begins with, for which they could be taken."""
    if later := sorted(other for other in steps_of(run) if other > step):
        logger.warning(
            "%s holds checkpoints of other steps, up to %d, and this run begins at %d: until it is "
            "there, resume_from_checkpoint=True would go on from those. Move them, or choose "
            "another output_dir.",
            run,
            later[-1],
            step,
        )
