"""On-policy trainers over the language models of `zoo`, and generators whose texts are known."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import CASES, VOCAB, collate

from hf_distill import DistillationTrainer, OnPolicyConfig, OnPolicyDistillationTrainer

END = 2
"""The end token of the models: a text may end with it, and no data have it."""
LONGEST = 6


class Fixed:
    """Completes a prompt with a text that follows from its tokens, wherever it stands."""

    def __call__(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
        return [self.of(prompt) for prompt in prompts]

    @staticmethod
    def of(prompt: list[int]) -> list[int]:
        random = np.random.default_rng(prompt)
        text = random.integers(3, VOCAB, random.integers(1, LONGEST + 1)).tolist()
        return [*text[:-1], END] if random.random() < 0.5 else text


class Given:
    """Gives texts one after the other, whatever the prompts."""

    def __init__(self, texts: list[list[int]]):
        self.texts = list(texts)

    def __call__(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
        return [self.texts.pop(0) for _ in prompts]


def config(folder: Path | str, **arguments: Any) -> OnPolicyConfig:
    """Windows of four texts that the student writes, all of them."""
    defaults: dict[str, Any] = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "lmbda": 1.0,
        "max_completion_length": LONGEST,
    }
    return OnPolicyConfig(str(folder), **{**defaults, **arguments})


OPTIONS = (
    "callbacks",
    "data_collator",
    "eval_dataset",
    "generator",
    "model",
    "objective",
    "peft_config",
    "processing_class",
    "teacher_model",
    "train_dataset",
)


def trainer(
    folder: Path | str,
    head: str = "causal_lm",
    cls: type[DistillationTrainer] = OnPolicyDistillationTrainer,
    dropout: float = 0.0,
    **options: Any,
) -> Any:
    """A trainer over a language model; what is no option of it goes into the arguments."""
    student, teacher = CASES[head].models()
    if dropout:
        student.config.attention_dropout = dropout
        for layer in student.model.layers:
            layer.self_attn.attention_dropout = dropout
    given = {name: options.pop(name) for name in OPTIONS if name in options}
    given.setdefault("model", student)
    given.setdefault("teacher_model", teacher)
    given.setdefault("data_collator", collate)
    given.setdefault("train_dataset", CASES[head].data())
    return cls(args=options.pop("args", None) or config(folder, **options), **given)


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def flat_gradient(model: torch.nn.Module) -> torch.Tensor:
    """All gradients in one row."""
    parameters = list(model.parameters())
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )
