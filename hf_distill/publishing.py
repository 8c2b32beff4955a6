"""The publishing part of the trainer: the plain student with its card, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import PushInProgress

from hf_distill.card_facts import CardFacts
from hf_distill.hub import published_files, push_folder


class Publishing(CardFacts):
    """Pushes."""

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publish the plain student with its card, and nothing else; arguments as in `Trainer`.

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
        job = self._push_job(commit_message, token, revision or self.args.hub_revision)
        return job.result() if blocking else job

    def _push_job(self, message: str | None, token: str | None, revision: str | None) -> Any:
        return HfApi(token=token).run_as_future(
            push_folder,
            str(self.args.output_dir),
            str(self.hub_model_id),
            token=token,
            revision=revision,
            commit_message=message or "Upload the distilled student",
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publish the student of a checkpoint while training goes on, as ``hub_strategy`` says."""
        strategy, busy = self.args.hub_strategy, getattr(self, "push_in_progress", None)
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if busy is not None and not busy.is_done() and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        for name in published_files(checkpoint_folder):
            shutil.copy(Path(checkpoint_folder) / name, Path(str(self.args.output_dir)) / name)
        self.create_model_card()
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._push_job(message, self.args.hub_token, self.args.hub_revision)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = strategy == HubStrategy.CHECKPOINT
            jobs.append(
                HfApi(token=self.args.hub_token).upload_folder(
                    repo_id=str(self.hub_model_id),
                    folder_path=checkpoint_folder,
                    path_in_repo="last-checkpoint" if last else os.path.basename(checkpoint_folder),
                    commit_message=f"{message}, {PREFIX_CHECKPOINT_DIR}",
                    run_as_future=True,
                    revision=self.args.hub_revision,
                )
            )
        running: Any = PushInProgress()
        running.jobs = [*(busy.jobs if busy else []), *jobs]
        self.push_in_progress = running
