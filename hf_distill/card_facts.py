"""What a run knows of itself, for the card of its student."""

from __future__ import annotations

import dataclasses
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import Trainer

from hf_distill.heads import Head, describe_model
from hf_distill.hub import StudentCard, write
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


class CardFacts(Trainer):
    """The part of the trainer that writes the model card."""

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
