"""Checks before a training: its output folder is free, and its checkpoint complete."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from hf_distill.training.checkpoint_files import CheckpointError, check_checkpoint, steps_of
from hf_distill.utils.folders import FolderError, held

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def hold_folder(folder: Path, saves: bool, accelerator: Accelerator) -> Iterator[None]:
    """Lock the output folder if this process `saves`, since two runs would write one checkpoint
    together; a FolderError on all processes if another run holds it."""
    with contextlib.ExitStack() as lock:
        problem = ""
        if saves:
            try:
                lock.enter_context(held(folder))
            except FolderError as error:
                problem = str(error)
        raise_everywhere(problem, FolderError, accelerator)
        yield


def raise_everywhere(problem: str, kind: type[ValueError], accelerator: Accelerator) -> None:
    """Raise on all processes an error that one of them has found; no error is an empty text."""
    found = [problem]
    if accelerator.num_processes > 1:
        found = gather_object(found)
    if told := [problem for problem in found if problem]:
        raise kind(told[0])


def check_on_all(
    folder: Path, accelerator: Accelerator, states: bool = True, anew: bool = False
) -> int:
    """Run `check_checkpoint` on one process of each machine; its error is raised on all."""
    problem, step = "", 0
    if accelerator.is_local_main_process:
        try:
            step = check_checkpoint(folder, states, anew=anew)
        except CheckpointError as error:
            problem = str(error)
    raise_everywhere(problem, CheckpointError, accelerator)
    return max(gather_object([step])) if accelerator.num_processes > 1 else step


def check_step(expected: int | None, step: int) -> None:
    """Raise CheckpointError if a checkpoint was changed after its check; None: there was none."""
    if expected not in (None, step):
        raise CheckpointError(
            f"Expected to go on from step {expected}, got step {step}: the checkpoint was changed "
            "or removed while it was read, by another run in this folder. Let that one end, then "
            "start this one again."
        )


def warn_of_later_checkpoints(run: Path, step: int) -> None:
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
