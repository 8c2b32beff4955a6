"""The publishing part of the trainer: the plain student with its card, and nothing else."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from hf_distill.hub import published_files, push_folder
from hf_distill.hub.files import STALE, listed_files
from hf_distill.hub.leaks import copy_inside, lies_inside, scrub
from hf_distill.hub.push import push_checkpoint
from hf_distill.training.checkpoint_files import LIST, write_list
from hf_distill.training.model_card import CardFacts
from hf_distill.training.safe_state import STATES, STRUCTURE, TENSORS, pack_states, unpack_states

logger = logging.getLogger(__name__)

RESUMING = (
    *("trainer_state.json", "distillation.safetensors", "log-*.safetensors"),
    *(STRUCTURE, TENSORS),
)
"""What a published checkpoint holds besides the student: all that resuming needs, no pickle."""
PUSHING = "_pushing"
"""Where in the output folder that lies which is on its way to the Hub."""


class Publishing(CardFacts):
    """Pushes."""

    _publisher: HfApi | None = None
    _told_left_out = False

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Publish the plain student with its card, and nothing else; arguments as in `Trainer`.

        ``create_pr`` opens a pull request against main instead.

        Returns:
            The commit, or with ``blocking=False`` a future; None on the other processes.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        job = self._one_by_one().run_as_future(
            push_folder,
            str(self.args.output_dir),
            str(self.hub_model_id),
            token=token,
            revision=revision or (None if create_pr else self.args.hub_revision),
            create_pr=create_pr,
            commit_message=commit_message or "Upload the distilled student",
        )
        return job.result() if blocking else job

    def _one_by_one(self) -> HfApi:
        """What runs the pushes of this trainer in the background, in their order."""
        if self._publisher is None:
            self._publisher = HfApi()
        return self._publisher

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publish the student of a checkpoint while training goes on, as ``hub_strategy`` says.

        What goes up is put aside first: training may delete the checkpoint meanwhile.
        """
        strategy, busy = self.args.hub_strategy, getattr(self, "push_in_progress", None)
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if busy is not None and not busy.is_done() and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.create_model_card()
        checkpoint, path_in_repo = Path(checkpoint_folder), None
        if strategy == HubStrategy.CHECKPOINT:
            path_in_repo = "last-checkpoint"
        elif strategy == HubStrategy.ALL_CHECKPOINTS:
            path_in_repo = checkpoint.name
        staging = Path(str(self.args.output_dir)) / PUSHING / checkpoint.name
        shutil.rmtree(staging, ignore_errors=True)
        message = f"Training in progress, step {self.state.global_step}"
        try:
            self._stage_student(checkpoint, staging / "student")
            if path_in_repo is not None:
                self._stage_checkpoint(checkpoint, staging / "checkpoint")
        except (OSError, ValueError) as error:
            logger.warning("%s: this push was left out: %s", message, error)
            shutil.rmtree(staging, ignore_errors=True)
            return
        job = self._one_by_one().run_as_future(self._push_staged, staging, path_in_repo, message)
        running: Any = PushInProgress()
        running.jobs = [*(busy.jobs if busy else []), job]
        self.push_in_progress = running

    def _push_staged(self, staging: Path, path_in_repo: str | None, message: str) -> None:
        """In the background. A push that fails must not end the training, nor pass unnoticed."""
        repo, revision = str(self.hub_model_id), self.args.hub_revision
        where: dict[str, Any] = {"token": self.args.hub_token, "revision": revision}
        try:
            push_folder(staging / "student", repo, commit_message=message, **where)
            if path_in_repo is not None:
                folder = staging / "checkpoint"
                states = {path.name for pattern in STATES for path in folder.glob(pattern)}
                self._tell_left_out(states - set(pack_states(folder)), folder)
                files = published_files(folder)
                files += _resuming(folder)
                write_list(folder, files)
                files.append(LIST)
                message += ", checkpoint"
                push_checkpoint(folder, files, repo, path_in_repo, commit_message=message, **where)
        except Exception as error:
            logger.warning("%s: this push to %s failed: %s", message, repo, error)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            with contextlib.suppress(OSError):  # another push lies there
                staging.parent.rmdir()

    def _stage_student(self, checkpoint: Path, student: Path) -> None:
        """The checkpoint's student, with the card, pictures and papers of the output folder."""
        out = Path(str(self.args.output_dir))
        for name in listed_files(out):
            if not any(fnmatchcase(name, pattern) for pattern in STALE):
                _put(out, name, student / name)
        for name in listed_files(checkpoint):
            _put(checkpoint, name, student / name)

    def _stage_checkpoint(self, checkpoint: Path, staged: Path) -> None:
        states = [path.name for pattern in STATES for path in checkpoint.glob(pattern)]
        names = [*listed_files(checkpoint), *states]
        names += _resuming(checkpoint)
        for name in names:
            _put(checkpoint, name, staged / name)
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if state.get("best_model_checkpoint"):
            state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
        (staged / "trainer_state.json").unlink()  # the original stays as it is
        text = scrub(json.dumps(state, indent=2) + "\n")
        (staged / "trainer_state.json").write_text(text, encoding="utf-8")
        self._tell_left_out({path.name for path in checkpoint.iterdir()} - set(names), checkpoint)

    def _tell_left_out(self, names: set[str], checkpoint: Path) -> None:
        """Once: resuming does without `training_args.bin`, but not without the others."""
        names = names - {"training_args.bin", LIST}
        if names and not self._told_left_out:
            self._told_left_out = True
            logger.warning(
                "Of the checkpoint these are not pushed, as they may be pickles: %s. Resuming from "
                "the Hub starts them anew (without an optimizer or scheduler: if it is given "
                "save_only_model=True, and is refused otherwise). To push all of it: hf upload %s "
                "%s last-checkpoint",
                ", ".join(sorted(names)),
                self.hub_model_id,
                checkpoint,
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            unpack_states(checkpoint)  # of a checkpoint that comes from the Hub
        super()._load_optimizer_and_scheduler(checkpoint)


def _resuming(checkpoint: Path) -> list[str]:
    return sorted(path.name for pattern in RESUMING for path in checkpoint.glob(pattern))


def _put(root: Path, name: str, target: Path) -> None:
    """Weights as a second name of the same file, which costs nothing; small files copied.

    Raises:
        OutsideError: the file is a link, or none.
    """
    if name.endswith((".safetensors", ".pt")) and lies_inside(root, name):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(root / name, target, follow_symlinks=False)
            return
        except (OSError, NotImplementedError):  # another file system, or one without links
            pass
    copy_inside(root, name, target)
