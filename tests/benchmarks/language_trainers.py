"""The trainers that language_step.py measures, ours and TRL's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import transformers as tf
from torch import Tensor

import hf_distill as hd

DRAWS = 12
LIKE_OURS = {"gradient_checkpointing": False, "bf16": False, "shuffle_dataset": False}
"""What TRL's trainers would else do otherwise."""


@dataclass
class Setting:
    """What all variants have in common."""

    teacher: Any
    tokenizer: Any
    rows: Tensor
    batch: int
    layers: int
    cache: Path
    folder: str

    @property
    def prompt(self) -> int:
        """Tokens of a text that are given; the rest is to be written."""
        return self.rows.shape[1] // 4

    @property
    def completions(self) -> dict[tuple[int, ...], list[int]]:
        texts = self.rows.tolist()
        return {tuple(text[: self.prompt]): text[self.prompt :] for text in texts}

    @property
    def data(self) -> datasets.Dataset:
        ids = self.rows.tolist()
        mask = self.rows.new_ones(self.rows.shape).tolist()
        return datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": mask, "labels": ids})

    def student(self) -> Any:
        return hd.student_from_teacher(self.teacher, f"uniform:{self.layers}")

    def arguments(self) -> dict[str, Any]:
        return {
            "output_dir": self.folder,
            "max_steps": len(self.rows) // self.batch,
            "per_device_train_batch_size": self.batch,
            "train_sampling_strategy": "sequential",
            "optim": "adamw_torch",
            "learning_rate": 1e-5,
            "lr_scheduler_type": "constant",
            "use_cpu": True,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
        }

    def generating(self) -> dict[str, Any]:
        """All completions have the same length."""
        longest = self.rows.shape[1] - self.prompt
        return {
            "max_completion_length": longest,
            "generation_kwargs": {"min_new_tokens": longest},
        }

    def common(self) -> dict[str, Any]:
        return {"train_dataset": self.data, "data_collator": tf.default_data_collator}


def fine_tuning(setting: Setting, beta: float) -> Any:
    student, setting.teacher = setting.student(), None
    return tf.Trainer(student, tf.TrainingArguments(**setting.arguments()), **setting.common())


def ours(setting: Setting, beta: float) -> Any:
    args = hd.DistillationConfig(alpha=1.0, temperature=1.0, beta=beta, **setting.arguments())
    return hd.DistillationTrainer(
        setting.student(), args, teacher_model=setting.teacher, **setting.common()
    )


def whole_logits(setting: Setting, beta: float) -> Any:
    trainer = ours(setting, beta)
    trainer.step.lazy_logits = False
    return trainer


def cached(setting: Setting, beta: float) -> Any:
    student = setting.student()
    setting.teacher = hd.CachedTeacher(setting.cache)
    args = hd.DistillationConfig(alpha=1.0, temperature=1.0, beta=beta, **setting.arguments())
    return hd.DistillationTrainer(student, args, teacher_model=setting.teacher, **setting.common())


def own_text(setting: Setting, beta: float, generator: Any = None) -> Any:
    args = hd.OnPolicyConfig(
        alpha=1.0,
        temperature=1.0,
        beta=beta,
        lmbda=1.0,
        prompt_length=setting.prompt,
        **setting.generating(),
        **setting.arguments(),
    )
    return hd.OnPolicyDistillationTrainer(
        setting.student(),
        args,
        teacher_model=setting.teacher,
        processing_class=setting.tokenizer,
        generator=generator,
        **setting.common(),
    )


def given_text(setting: Setting, beta: float) -> Any:
    known = setting.completions
    return own_text(setting, beta, lambda prompts, seed: [known[tuple(p)] for p in prompts])


def trl_gkd(setting: Setting, beta: float) -> Any:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    return GKDTrainer(
        setting.student(),
        setting.teacher,
        GKDConfig(lmbda=0.0, beta=beta, **LIKE_OURS, **setting.arguments()),
        processing_class=setting.tokenizer,
        **setting.common(),
    )


def trl_own_text(setting: Setting, beta: float, known: Any = None) -> Any:
    from trl import DistillationConfig, DistillationTrainer

    ids = setting.rows[:, : setting.prompt].tolist()

    class Numbered(DistillationTrainer):
        """A prompt is its number, so that its tokens are not made anew from text; and what
        completes it may be given."""

        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            return [ids[int(prompt)] for prompt in prompts], None, {}

        def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **options: Any) -> Any:
            if known is None:
                return super()._generate_single_turn(prompt_ids, *rest, **options)
            return [known[tuple(prompt)] for prompt in prompt_ids]

    return Numbered(
        setting.student(),
        setting.teacher,
        DistillationConfig(beta=beta, **LIKE_OURS, **setting.generating(), **setting.arguments()),
        train_dataset=datasets.Dataset.from_dict({"prompt": [str(i) for i in range(len(ids))]}),
        processing_class=setting.tokenizer,
    )


def trl_given_text(setting: Setting, beta: float) -> Any:
    return trl_own_text(setting, beta, setting.completions)


@dataclass(frozen=True)
class Variant:
    title: str
    make: Callable[[Setting, float], Any]
    beta: float
    against: str
    """The variant of ours to compare with."""


VARIANTS = {
    "fine_tuning": Variant("fine-tuning, `transformers.Trainer`", fine_tuning, 0.0, "kl"),
    "kl": Variant("KL, ours", ours, 0.0, "kl"),
    "kl_whole": Variant("KL, ours, whole logits", whole_logits, 0.0, "kl"),
    "kl_cached": Variant(f"KL, ours, cache of {DRAWS} draws", cached, 0.0, "kl"),
    "kl_gkd": Variant("KL, TRL `GKDTrainer`", trl_gkd, 0.0, "kl"),
    "jsd": Variant("JSD, ours", ours, 0.5, "jsd"),
    "jsd_gkd": Variant("JSD, TRL `GKDTrainer`", trl_gkd, 0.5, "jsd"),
    "given": Variant("KL, completions given, ours", given_text, 0.0, "given"),
    "given_trl": Variant(
        "KL, completions given, TRL `DistillationTrainer`", trl_given_text, 0.0, "given"
    ),
    "own": Variant("KL, completions generated, ours", own_text, 0.0, "own"),
    "own_trl": Variant(
        "KL, completions generated, TRL `DistillationTrainer`", trl_own_text, 0.0, "own"
    ),
}
DEAR = ("own", "own_trl")
"""Measured with the first shape alone."""
