"""Run metadata as plain values, for model cards, reports and trackers."""

from __future__ import annotations

import contextlib
import csv
import os
import platform
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hf_distill.evaluation.statistics import wilson
from hf_distill.hub.exported import read_exports
from hf_distill.hub.inherit import local_card
from hf_distill.hub.leaks import scrub
from hf_distill.models.task_model import describe_model
from hf_distill.teachers import Teacher
from hf_distill.training.step import DistillationStep

CARD_ARGUMENTS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "optim", "weight_decay"),
    *("max_grad_norm", "label_smoothing_factor", "bf16", "fp16", "neftune_noise_alpha"),
    *("alpha", "temperature", "beta", "gamma", "load_best_model_at_end", "metric_for_best_model"),
    *("train_sampling_strategy", "optim_args", "parallelism_config"),
)
"""Training arguments that a card lists unless they have their default, of any type."""
ALWAYS = (
    *("learning_rate", "lr_scheduler_type", "num_train_epochs", "per_device_train_batch_size"),
    "optim",
)
"""Training arguments that a card always lists."""
_SILENT = (
    *("output_dir", "logging_", "log_", "save_", "eval_", "do_", "hub_", "push_", "report_to"),
    *("disable_tqdm", "dataloader_", "ddp_", "local_", "use_cpu", "remove_unused_columns", "seed"),
    *("data_seed", "skip_memory_metrics", "resume_", "prediction_loss_only", "trackio_", "project"),
)
"""Prefixes of training arguments that do not affect the student."""
PACKAGES = ("hf_distill", "transformers", "tokenizers", "accelerate", "datasets", "peft", "torch")
LOG_ROWS = 12
"""Rows of a card's training log, at most."""
SHOWN = tuple(
    f"eval_{name}"
    for name in ("accuracy", "f1", "perplexity", "agreement", "forward_kl_divergence")
)
"""Metrics of a card's training log besides the losses."""


def run_facts(step: DistillationStep) -> dict[str, Any]:
    """Metadata of a run for trackers: values that JSON can hold, without local paths and tokens."""
    objective, teacher = step.objective, step.teacher
    settings = {name: getattr(part, "temperature", None) for name, _, part in objective.named()}
    facts = {
        "objective": str(objective),
        "temperature": {name: t for name, t in settings.items() if t is not None},
        "labels_used": objective.needs_labels,
        "teacher": None if teacher is None else teacher.describe(),
        "student": describe_model(step.task_model.model),
    }
    return {name: _scrubbed(value) for name, value in facts.items()}


def _scrubbed(value: Any) -> Any:
    """A value that JSON can hold, with every text scrubbed."""
    if isinstance(value, Mapping):
        return {str(key): _scrubbed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(item) for item in value]
    return value if isinstance(value, bool | int | float | None) else scrub(str(value))


def plain(value: Any) -> Any:
    """An argument as a plain value: an enumeration's member as its text."""
    return str(getattr(value, "value", value)) if isinstance(value, str) else value


def is_on_card(name: str, value: Any) -> bool:
    """True for a training argument that may be on a card: `CARD_ARGUMENTS`, numbers and switches
    (texts may hold a path or something private)."""
    number = isinstance(value, bool | int | float)
    return name in CARD_ARGUMENTS or (number and not name.startswith(_SILENT))


def teacher_facts(teacher: Teacher) -> dict[str, Any]:
    """A teacher's description, the source of its outputs, and the licence in its own card."""
    facts = teacher.describe()
    more = local_card(facts.get("name"), facts.get("revision"))
    if "cache" not in facts:
        facts = {**facts, "outputs": "over HTTP" if "url" in facts else "computed in every step"}
    return {**facts, **{key: more[key] for key in ("license", "quote") if key in more}}


def exports_of(folder: Path) -> list[dict[str, Any]]:
    """Records of the files exported from the student in a folder; a warning for other weights."""
    try:
        return read_exports(folder)
    except (ValueError, OSError, KeyError, TypeError) as error:
        warnings.warn(f"The card leaves the exported files out. {error}", stacklevel=2)
        return []


def last_components(history: list[dict[str, Any]], terms: Iterable[str]) -> dict[str, float]:
    """The loss and its components in the last training entry of the log."""
    last: dict[str, float] = next((row for row in reversed(history) if "loss" in row), {})
    names = tuple(terms)
    return {key: v for key, v in last.items() if key == "loss" or key.startswith(names)}


def log_rows(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Rows of evaluations during training, `LOG_ROWS` at most: losses and the student's metrics."""
    rows, loss = [], None
    for entry in history:
        loss = entry.get("loss", loss)
        if "eval_loss" in entry and loss is not None:
            row = {"step": entry["step"], "training loss": loss}
            row["validation loss"] = entry["eval_loss"]
            rows.append(row | {k.removeprefix("eval_"): entry[k] for k in SHOWN if k in entry})
    rows = [row for row in rows if row.keys() == rows[-1].keys()]  # of evaluations of one kind
    return rows[:: -max(1, -(-len(rows) // LOG_ROWS))][::-1]


def label_names(config: Any) -> list[str]:
    """The names of a model's classes, if they were named and are 20 at most."""
    names = list((getattr(config, "id2label", None) or {}).values())
    given = names and not all(str(name).startswith("LABEL_") for name in names)
    return names if given and len(names) <= 20 else []


def accuracy_interval(accuracy: float, examples: int) -> dict[str, Any]:
    """Wilson's 95 % interval of an accuracy, in the form of `StudentCard.claim`."""
    low, high = wilson(round(accuracy * examples), examples)
    return {"low": low, "high": high, "level": 0.95, "method": "Wilson, over the examples"}


def describe_processor(processor: Any) -> dict[str, Any]:
    """Settings of a tokenizer, image processor or feature extractor that shape the inputs."""
    found: dict[str, Any] = {}
    if processor is None:
        return found
    length = getattr(processor, "model_max_length", None)
    if isinstance(length, int) and length < 1_000_000:
        found["max_length"] = length
    side = getattr(getattr(processor, "size", None), "get", dict[str, int]().get)
    if side("height") and side("width"):
        found["image_size"] = [side("height"), side("width")]
    for key in ("image_mean", "image_std", "sampling_rate"):
        value = getattr(processor, key, None)
        if value is not None:
            found[key] = list(value) if isinstance(value, list | tuple) else value
    return {**found, "processor": type(processor).__name__}


def measured_carbon(folder: Path) -> dict[str, Any]:
    """Emissions measured by codecarbon, whose callback writes ``emissions.csv`` into the folder."""
    file = folder / "emissions.csv"
    if not file.is_file():
        return {}
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        last = rows[-1] if rows else {}  # of every run the total so far
        measured = {
            name: float(last[column])
            for name, column in (("kg", "emissions"), ("kwh", "energy_consumed"))
            if last.get(column)
        }
    except (OSError, ValueError, csv.Error) as error:  # cut short by a kill, or another's
        warnings.warn(f"The card leaves the emissions out: {file}: {error}", stacklevel=2)
        return {}
    if "kg" not in measured:
        return {}
    tool = f"codecarbon {last.get('codecarbon_version', '')}".strip()
    facts = {**measured, "tool": tool, "country": last.get("country_name")}
    facts["hardware"] = last.get("gpu_model") or last.get("cpu_model")
    return facts


def environment() -> dict[str, str]:
    """Versions of Python and packages, and the hardware."""
    found = {"python": platform.python_version()}
    for name in [
        "hf_distill",
        "transformers",
        "tokenizers",
        "accelerate",
        "datasets",
        "peft",
        "torch",
    ]:
        with contextlib.suppress(PackageNotFoundError):  # a checkout that is not installed
            found[name] = version(name)
    cuda = torch.cuda.is_available()
    found["hardware"] = torch.cuda.get_device_name() if cuda else f"CPU, {os.cpu_count()} cores"
    return found
