"""Pushes of a student and its checkpoints to the Hub, in the background."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from hf_distill.hub import published_files, push_folder
from hf_distill.hub.files import STALE, listed_files
from hf_distill.hub.leaks import copy_inside, lies_inside, scrub
from hf_distill.hub.push import push_checkpoint
from hf_distill.training.checkpoint_files import LIST, write_list
from hf_distill.training.safe_state import STATES, STRUCTURE, TENSORS, pack_states
from hf_distill.utils.files import write_text

logger = logging.getLogger(__name__)

RESUMING = (
    *("trainer_state.json", "distillation.safetensors", "log-*.safetensors"),
    *(STRUCTURE, TENSORS),
)
"""Patterns of the files that a published checkpoint holds besides the student: enough to resume,
without a pickle."""
PUSHING = "_pushing"
"""Subfolder of the output folder with the files of pending pushes."""


class Publisher:
    """Queue of one run's pushes: one thread sends them in order.

    ``output_dir`` and all arguments that begin with ``hub_`` are read at each push. ``queue`` holds
    the pushes of checkpoints, in the form of `Trainer.push_in_progress`.
    """

    def __init__(self, args: TrainingArguments):
        self.args = args
        self.queue: Any = PushInProgress()
        self._thread = ThreadPoolExecutor(1)
        self._warned = False

    def push(
        self,
        repo_id: str,
        commit_message: str | None,
        token: str | None,
        revision: str | None,
        create_pr: bool,
    ) -> Future[CommitInfo]:
        """Queue a push of the output folder, without revision and create_pr to ``hub_revision``."""
        return self._thread.submit(
            push_folder,
            str(self.args.output_dir),
            repo_id,
            token=token,
            revision=revision or (None if create_pr else self.args.hub_revision),
            create_pr=create_pr,
            commit_message=commit_message or "Upload the distilled student",
        )

    @property
    def pushes_checkpoints(self) -> bool:
        """True if ``hub_strategy`` pushes during training, and no earlier push is in its way."""
        free = self.args.hub_always_push or self.queue.is_done()
        return free and self.args.hub_strategy != HubStrategy.END

    def push_checkpoint(self, repo_id: str, checkpoint: Path, step: int) -> None:
        """Queue a push of a checkpoint's student, and of its states if ``hub_strategy`` says so.

        The files are staged under `PUSHING` at once, since training may delete the checkpoint
        before they are sent. A push that fails is logged and does not end the training.
        """
        kinds = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: checkpoint.name,
        }
        path_in_repo = kinds.get(HubStrategy(self.args.hub_strategy))
        out = Path(str(self.args.output_dir))
        staging = out / PUSHING / checkpoint.name
        shutil.rmtree(staging, ignore_errors=True)
        message = f"Training in progress, step {step}"
        try:
            stage_student(out, checkpoint, staging / "student")
            if path_in_repo is not None:
                left_out = _stage_states(checkpoint, staging / "checkpoint")
                self._warn_once(left_out, repo_id, checkpoint)
        except (OSError, ValueError) as error:
            logger.warning("%s: this push was left out: %s", message, error)
            shutil.rmtree(staging, ignore_errors=True)
            return
        job = self._thread.submit(self._send, staging, repo_id, path_in_repo, message)
        self.queue.jobs.append(job)

    def _send(self, staging: Path, repo_id: str, path_in_repo: str | None, message: str) -> None:
        """Push staged files, then delete them; runs in the background."""
        where: dict[str, Any] = {"token": self.args.hub_token, "revision": self.args.hub_revision}
        try:
            push_folder(staging / "student", repo_id, commit_message=message, **where)
            if path_in_repo is not None:
                folder = staging / "checkpoint"
                files = self._packed_files(folder, repo_id)
                where["commit_message"] = message = f"{message}, checkpoint"
                push_checkpoint(folder, files, repo_id, path_in_repo, **where)
        except Exception as error:
            logger.warning("%s: this push to %s failed: %s", message, repo_id, error)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            with contextlib.suppress(OSError):  # another push lies there
                staging.parent.rmdir()

    def _packed_files(self, folder: Path, repo_id: str) -> list[str]:
        """Rewrite the pickles of a staged checkpoint, and list the files to publish."""
        states = {path.name for pattern in STATES for path in folder.glob(pattern)}
        self._warn_once(states - set(pack_states(folder)), repo_id, folder)
        files = published_files(folder) + _states_of(folder)
        write_list(folder, files)
        return [*files, LIST]

    def _warn_once(self, left_out: set[str], repo_id: str, checkpoint: Path) -> None:
        """Warn once about files of a checkpoint that are not uploaded but needed to resume."""
        names = left_out - {"training_args.bin", LIST}
        if names and not self._warned:
            self._warned = True
            logger.warning(
                "Of the checkpoint these are not pushed, as they may be pickles: %s. Resuming from "
                "the Hub starts them anew (without an optimizer or scheduler: if it is given "
                "save_only_model=True, and is refused otherwise). To push all of it: hf upload %s "
                "%s last-checkpoint",
                ", ".join(sorted(names)),
                repo_id,
                checkpoint,
            )


def stage_student(out: Path, checkpoint: Path, target: Path) -> None:
    """Copy a checkpoint's student, and the card and figures of the output folder, to ``target``.

    Raises an OutsideError if one of the files is a link.
    """
    for name in listed_files(out):
        if not any(fnmatchcase(name, pattern) for pattern in STALE):
            _put(out, name, target / name)
    for name in listed_files(checkpoint):
        _put(checkpoint, name, target / name)


def _stage_states(checkpoint: Path, target: Path) -> set[str]:
    """Copy the files that resuming needs to ``target``, without local paths in the state; return
    the names of all others."""
    states = [path.name for pattern in STATES for path in checkpoint.glob(pattern)]
    names = [*listed_files(checkpoint), *states, *_states_of(checkpoint)]
    for name in names:
        _put(checkpoint, name, target / name)
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
    write_text(target / "trainer_state.json", scrub(json.dumps(state, indent=2) + "\n"))
    return {path.name for path in checkpoint.iterdir()} - set(names)


def _states_of(checkpoint: Path) -> list[str]:
    return sorted(path.name for pattern in RESUMING for path in checkpoint.glob(pattern))


def _put(root: Path, name: str, target: Path) -> None:
    """Hard-link weights and states to ``target``; copy small files. Links raise OutsideError."""
    if name.endswith((".safetensors", ".pt")) and lies_inside(root, name):
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError, NotImplementedError):  # another file system, no links
            os.link(root / name, target, follow_symlinks=False)
            return
    copy_inside(root, name, target)
