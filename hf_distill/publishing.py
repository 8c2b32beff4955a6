"""The publishing part of the trainer: a true model card, and pushes of the plain student only."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from peft import PeftModel
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import PushInProgress

from hf_distill.heads import Head, describe_model
from hf_distill.hub import StudentCard, published_files, push_folder, write
from hf_distill.teachers import Teacher
from hf_distill.terms import Sum

PIPELINES = {
    "sequence_classification": "text-classification",
    "image_classification": "image-classification",
    "audio_classification": "audio-classification",
    "video_classification": "video-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "masked_lm": "fill-mask",
    "causal_lm": "text-generation",
    "seq2seq_lm": "text2text-generation",
    "semantic_segmentation": "image-segmentation",
    "ctc": "automatic-speech-recognition",
    "speech_seq2seq": "automatic-speech-recognition",
    "dual_encoder": "zero-shot-image-classification",
    "encoder": "feature-extraction",
}
"""Task -> the Hub's pipeline tag."""

TOLD = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "optim", "weight_decay"),
    *("max_grad_norm", "label_smoothing_factor", "bf16", "fp16", "neftune_noise_alpha"),
    *("alpha", "temperature", "beta", "gamma", "load_best_model_at_end", "metric_for_best_model"),
)
"""The arguments that a card tells where they are not the default."""

SPEED = ("runtime", "_per_second", "preparation_time", "epoch", "step")
COMPARED = ("teacher_", "retained_")


class Publishing(Trainer):
    """Cards and pushes."""

    teacher: Teacher | None
    goal: Sum
    _head: Head

    @property
    def _student(self) -> nn.Module:
        raise NotImplementedError

    def student_card(self) -> StudentCard:
        """The facts of this run, as far as the trainer knows them; change what you know better."""
        student: Any = self._student
        adapted = isinstance(student, PeftModel)
        teacher = {} if self.teacher is None else self.teacher.describe()
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        return StudentCard(
            model_name=name,
            task=PIPELINES.get(self._head.task.name),
            library_name="peft" if adapted else "transformers",
            base_model=self._head.config._name_or_path or None,
            base_model_revision=getattr(self._head.config, "_commit_hash", None),
            teacher=teacher,
            student=describe_model(self._head.model),
            objective=self.goal.describe(),
            formula=str(self.goal),
            data={"labels_used": self.goal.needs_labels, "splits": self._split_sizes()},
            results=self._last_results(),
            training=self._training_facts(),
            environment=environment(),
            tags=["lora"] * (adapted and "LORA" in str(student.peft_config["default"].peft_type)),
        )

    def _split_sizes(self) -> dict[str, int]:
        splits = {"train": self.train_dataset, "evaluation": self.eval_dataset}
        return {n: len(d) for n, d in splits.items() if d is not None and hasattr(d, "__len__")}

    def _last_results(self) -> dict[str, dict[str, float]]:
        """The last evaluation: the student's figures, and the teacher's own."""
        last: dict[str, Any] = {}
        for row in self.state.log_history:
            if any(key.startswith("eval_") for key in row):
                last = row
        figures = {
            key.removeprefix("eval_"): value
            for key, value in last.items()
            if key.startswith("eval_") and not key.endswith(SPEED)
        }
        terms = ("loss", "other", *(name for name, _, _ in self.goal.named()))
        student = {k: v for k, v in figures.items() if not k.startswith((*COMPARED, *terms))}
        theirs = {k: v for k, v in figures.items() if k.startswith("teacher_")}
        teacher = {k.removeprefix("teacher_"): v for k, v in theirs.items()}
        return {model: rows for model, rows in (("student", student), ("teacher", teacher)) if rows}

    def _training_facts(self) -> dict[str, Any]:
        defaults = {field.name: field.default for field in dataclasses.fields(self.args)}
        values = {name: getattr(self.args, name) for name in TOLD}
        facts = {
            n: str(v) if isinstance(v, str) else v for n, v in values.items() if v != defaults[n]
        }
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        facts["effective batch size"] = batch * self.args.world_size
        facts["seed"] = self.args.seed
        facts["optimizer steps"] = self.state.global_step
        return facts

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the student's card to ``output_dir/README.md``; arguments as in `Trainer`."""
        if not self.is_world_process_zero():
            return
        card = self.student_card()
        given: dict[str, Any] = {
            "language": language,
            "license": license,
            "model_name": model_name,
            "base_model": finetuned_from,
            "task": _first(tasks),
        }
        card = dataclasses.replace(card, **{k: v for k, v in given.items() if v is not None})
        data = {"name": _first(dataset_tags) or _first(dataset), "config": _first(dataset_args)}
        card.data.update({key: value for key, value in data.items() if value})
        card.tags.extend([tags] if isinstance(tags, str) else tags or [])
        write(card, str(self.args.output_dir))

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


def environment() -> dict[str, str]:
    """Versions and hardware."""
    packages = ("hf_distill", "transformers", "accelerate", "datasets", "peft", "torch")
    found = {name: version(name) for name in packages if name != "hf_distill"}
    cuda = torch.cuda.is_available()
    hardware = torch.cuda.get_device_name() if cuda else f"CPU, {os.cpu_count()} cores"
    return {"python": platform.python_version(), **found, "hardware": hardware}


def _first(value: str | list[str] | None) -> str | None:
    if isinstance(value, list):
        return value[0] if value else None
    return value
