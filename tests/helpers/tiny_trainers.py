"""A trainer over the models and data of `zoo`, in one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import CASES, ROWS, collate
from torch import nn
from transformers import EvalPrediction, TrainerCallback

from hf_distill import DistillationConfig, DistillationTrainer

TRAINER_OPTIONS = (
    "callbacks",
    "compute_metrics",
    "data_collator",
    "eval_dataset",
    "model_init",
    "objective",
    "optimizers",
    "peft_config",
    "preprocess_logits_for_metrics",
    "processing_class",
    "train_dataset",
)


class Recorder(TrainerCallback):
    """Keeps every set of figures that is logged."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append(dict(logs))

    @property
    def steps(self) -> list[dict[str, float]]:
        """What was logged for each training step."""
        return [logs for logs in self.logs if "loss" in logs]


def config(folder: Path, **arguments: Any) -> DistillationConfig:
    """Two steps of four examples in float32, logged one by one, on the CPU."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
    }
    return DistillationConfig(str(folder), **{**defaults, **arguments})


def models(name: str = "sequence_classification") -> tuple[Any, Any]:
    """Student and teacher of a head in float32."""
    return CASES[name].models(torch.float32)


def data(name: str = "sequence_classification", rows: int = ROWS) -> Any:
    """A list of examples in float32."""
    return CASES[name].data(rows, torch.float32)


def trainer(
    folder: Path,
    name: str = "sequence_classification",
    *,
    model: nn.Module | None = None,
    teacher_model: Any = None,
    cls: type[DistillationTrainer] = DistillationTrainer,
    **options: Any,
) -> Any:
    """A `DistillationTrainer` for a head of the zoo.

    Whatever is no option of the trainer goes into its arguments. (Typed as Any: the types of
    transformers leave out lists as data sets, and allow for no model.)
    """
    student, teacher = models(name)
    given = {key: options.pop(key) for key in TRAINER_OPTIONS if key in options}
    if "model_init" not in given:
        given["model"] = student if model is None else model
    given.setdefault("data_collator", collate)
    given.setdefault("train_dataset", data(name))
    given.setdefault("eval_dataset", data(name))
    teacher = teacher if teacher_model is None else teacher_model
    args = options.pop("args", None) or config(folder, **options)
    return cls(args=args, teacher_model=teacher, **given)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of labelled items whose class of highest logit is the label."""
    labels = np.asarray(prediction.label_ids)
    right = np.asarray(prediction.predictions).argmax(-1) == labels
    return {"accuracy": float(right[labels != -100].mean())}


def log_softmax(logits: Any) -> np.ndarray:
    """In float64, with numpy alone."""
    x = np.asarray(logits, dtype=np.float64)
    x = x - x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights, to compare with later."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit-equality of two sets of weights."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def finite(figures: dict[str, float]) -> bool:
    return all(math.isfinite(value) for value in figures.values())
