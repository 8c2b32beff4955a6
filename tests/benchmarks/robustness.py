"""The promise, measured: teacher, student alone, the same with noise or attack, distilled, robust.

    python tests/benchmarks/robustness.py train fashion_mnist runs/robustness   # resumable
    python tests/benchmarks/robustness.py train movie_reviews runs/robustness
    python tests/benchmarks/robustness.py report fashion_mnist runs/robustness  # tables and plots

For every seed and budget all arms begin with the same weights and see the same data in the same
order for the same number of steps; the model after the last step is judged. The settings of the
arms were chosen on the validation split (`--judge`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from hf_distill import (
    CachedTeacher,
    DistillationConfig,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    ModelTeacher,
    student_from_teacher,
    write_cache,
)
from hf_distill.objectives.adversaries import PGD
from hf_distill.objectives.perturbations import Columns
from hf_distill.objectives.perturbed import OnPerturbed
from hf_distill.robustness.perturbations import perturb
from hf_distill.terms import Objective, Sum

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 8
VERSIONS = 8
"""How many misspelt versions of a text there are."""


@cache
def sources() -> Any:
    spec = importlib.util.spec_from_file_location("sources", ROOT / "recipes" / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Arm:
    """One way to train the student.

    Attributes:
        objective: What it minimises.
        teacher: The name of its teacher; None: none.
    """

    objective: Objective | Sum
    teacher: str | None = None


@dataclass(frozen=True)
class Study:
    """One data set with its models.

    Attributes:
        data: ``(split, size) -> examples`` as the trainer takes them.
        teacher: Makes a teacher before its fine-tuning.
        student: Makes a student from a seed (and a fresh teacher).
        processor: Of both.
        collator: Of both.
        teachers: Name -> objective and training arguments of a teacher.
        arms: Name -> arm.
        budgets: Name -> epochs.
        settings: Training arguments of all students.
    """

    data: Callable[[str], Any]
    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    processor: Any
    collator: Any
    teachers: dict[str, tuple[Objective | Sum, dict[str, Any]]]
    arms: dict[str, Arm]
    budgets: dict[str, int]
    settings: dict[str, Any] = field(default_factory=dict)


# ---- Fashion-MNIST ---------------------------------------------------------------------------

TRAIN, EPSILON = 2000, 8 / 255


def pictures() -> Study:
    mean, std = [0.286] * 3, [0.353] * 3
    processor = tf.ViTImageProcessor(
        size={"height": 28, "width": 28}, image_mean=mean, image_std=std, do_convert_rgb=True
    )

    @cache
    def data(split: str) -> list[dict[str, Any]]:
        rows = sources().fashion_mnist()[split].shuffle(seed=0)
        rows = rows.select(range(min(len(rows), {"train": TRAIN}.get(split, 1000))))
        pixels = np.stack([np.asarray(row["image"], np.float32) for row in rows]) / 255
        found = (torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1) - mean[0]) / std[0]
        return [
            {"pixel_values": x, "labels": int(y)} for x, y in zip(found, rows["label"], strict=True)
        ]

    def resnet(sizes: list[int], depth: int) -> nn.Module:
        config = tf.ResNetConfig(
            embedding_size=sizes[0],
            hidden_sizes=sizes,
            depths=[depth] * len(sizes),
            layer_type="basic",
            num_labels=10,
        )
        return tf.ResNetForImageClassification(config)

    attack = PGD(EPSILON / 2, steps=2)
    adversarial = OnPerturbed(HardLabels(), attack)
    return Study(
        data,
        lambda: resnet([32, 64, 128], 2),
        lambda: resnet([8, 16, 32], 1),
        processor,
        tf.default_data_collator,
        {
            "teacher": (1.0 * HardLabels(), {"num_train_epochs": 15, "learning_rate": 2e-3}),
            "robust_teacher": (
                0.5 * HardLabels() + 0.5 * adversarial,
                {"num_train_epochs": 20, "learning_rate": 2e-3},
            ),
        },
        {
            "alone": Arm(1.0 * HardLabels()),
            "control": Arm(0.5 * HardLabels() + 0.5 * adversarial),
            "distilled": Arm(0.1 * HardLabels() + 0.9 * ForwardKL(4.0), "teacher"),
            "robust": Arm(
                0.5 * ForwardKL() + 0.5 * OnPerturbed(ForwardKL(), attack), "robust_teacher"
            ),
        },
        {"short": 10, "long": 30},
        {"learning_rate": 5e-3, "per_device_train_batch_size": 100, "weight_decay": 0.01},
    )


# ---- movie reviews ---------------------------------------------------------------------------

SEEN = ("keyboard_typos", "character_drops")
"""What the noise-trained students see; it does not count when they are judged."""


class NoisyTexts(TorchDataset):
    """Tokenised texts, each with a misspelt version of it, another one each time it is read."""

    def __init__(self, rows: Dataset, tokenizer: Any):
        self.tokenizer, self.labels = tokenizer, rows["label"]
        self.texts = list(rows["text"])
        self.plain = tokenizer(self.texts, truncation=True, max_length=32)["input_ids"]
        self.versions = [self._misspelt(number) for number in range(VERSIONS)]

    def _misspelt(self, number: int) -> list[list[int]]:
        """Every text under one of the perturbations that are seen, at severity 1 to 4."""
        draw = np.random.default_rng(number)
        kinds = draw.integers(len(SEEN), size=len(self.texts))
        severities = draw.integers(1, 5, size=len(self.texts))
        noisy = list(self.texts)
        for kind, name in enumerate(SEEN):
            for severity in range(1, 5):
                own = np.flatnonzero((kinds == kind) & (severities == severity))
                found = perturb([self.texts[i] for i in own], name, severity, seed=number)
                for index, text in zip(own, found, strict=True):
                    noisy[index] = text
        ids: list[list[int]] = self.tokenizer(noisy, truncation=True, max_length=32)["input_ids"]
        return ids

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        version = int(torch.randint(VERSIONS, ()))
        return {
            "input_ids": self.plain[index],
            "noisy_input_ids": self.versions[version][index],
            "labels": self.labels[index],
        }


def both_padded(tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        asked = "noisy_input_ids" in rows[0]  # the trainer drops what no objective reads
        for prefix in ("", "noisy_") if asked else ("",):
            ids = {"input_ids": [row[f"{prefix}input_ids"] for row in rows]}
            for key, value in tokenizer.pad(ids, return_tensors="pt").items():
                batch[prefix + key] = value
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    return collate


def texts() -> Study:
    folder = sources().all_minilm_l6_v2()
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)

    @cache
    def data(split: str) -> NoisyTexts:
        rows = sources().movie_reviews()[split].shuffle(seed=0)
        return NoisyTexts(
            rows.select(range(min(len(rows), {"train": 1200}.get(split, 2000)))), tokenizer
        )

    def teacher() -> nn.Module:
        return tf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)

    def student() -> nn.Module:
        return student_from_teacher(teacher(), [0, 1], hidden_size=128)

    noisy = OnPerturbed(HardLabels(), Columns())
    fine_tuning = {"num_train_epochs": 3, "learning_rate": 5e-5}
    return Study(
        data,
        teacher,
        student,
        tokenizer,
        both_padded(tokenizer),
        {
            "teacher": (1.0 * HardLabels(), fine_tuning),
            "robust_teacher": (0.5 * HardLabels() + 0.5 * noisy, fine_tuning),
        },
        {
            "alone": Arm(1.0 * HardLabels()),
            "control": Arm(0.5 * HardLabels() + 0.5 * noisy),
            "distilled": Arm(1.0 * ForwardKL(2.0), "teacher"),
            "robust": Arm(
                0.5 * ForwardKL(2.0) + 0.5 * OnPerturbed(ForwardKL(2.0), Columns()),
                "robust_teacher",
            ),
        },
        {"short": 3, "long": 9},
        {
            "learning_rate": 5e-4,
            "per_device_train_batch_size": 32,
            "weight_decay": 0.01,
            "train_sampling_strategy": "group_by_length",
        },
    )


STUDIES: dict[str, Callable[[], Study]] = {"fashion_mnist": pictures, "movie_reviews": texts}


# ---- training --------------------------------------------------------------------------------


def fit(
    study: Study, model: nn.Module, objective: Any, teacher: Any, seed: int, where: Path, **own: Any
) -> float:
    """Train, and write the model only when it is finished; gives the seconds."""
    scratch = where.with_name(f".{where.name}.tmp")
    args = DistillationConfig(
        str(scratch),
        **{
            "use_cpu": True,
            "warmup_steps": 0.1,
            "lr_scheduler_type": "cosine",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 10_000,
            "seed": seed,
            "dataloader_drop_last": True,
            **study.settings,
            **own,
        },
    )
    trainer = DistillationTrainer(
        model,
        args,
        study.collator,
        study.data("train"),
        teacher_model=teacher,
        objective=objective,
        processing_class=study.processor,
    )
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    model.eval()
    model.save_pretrained(scratch)
    study.processor.save_pretrained(scratch)
    (scratch / "trained.json").write_text(
        json.dumps({"seconds": seconds, "steps": trainer.state.global_step})
    )
    shutil.rmtree(where, ignore_errors=True)
    scratch.rename(where)
    return seconds


def quiet(line: str) -> None:
    pass


def train(name: str, root: Path, only: str, seeds: list[int]) -> None:
    study = STUDIES[name]()
    loaded: dict[str, Any] = {}

    def teacher(wanted: str) -> Any:
        folder = root / name / wanted
        if not folder.is_dir():
            torch.manual_seed(0)
            objective, own = study.teachers[wanted]
            fit(study, study.teacher(), objective, None, 0, folder, **own)
        kept = root / name / f"{wanted}_outputs"
        if wanted not in loaded:
            model = type(study.teacher()).from_pretrained(folder)
            write_cache(kept, ModelTeacher(model), study.data("train"), study.collator, say=quiet)
            loaded[wanted] = CachedTeacher(kept)
        return loaded[wanted]

    for seed in seeds:
        for budget, epochs in study.budgets.items():
            for arm, what in study.arms.items():
                folder = root / name / budget / arm / f"seed-{seed}"
                if folder.is_dir() or only not in f"{budget}/{arm}":
                    continue
                folder.parent.mkdir(parents=True, exist_ok=True)
                taught = None if what.teacher is None else teacher(what.teacher)
                torch.manual_seed(seed)
                model = study.student()
                seconds = fit(
                    study, model, what.objective, taught, seed, folder, num_train_epochs=epochs
                )
                print(f"{name} {budget} {arm} seed {seed}: {seconds:.0f} s", flush=True)


# ---- choosing settings -----------------------------------------------------------------------


def judge(name: str, root: Path) -> None:
    """Clean, noisy and attacked accuracy on the validation split, for choosing settings."""
    from hf_distill.heads import Head
    from hf_distill.robustness.attacks.gradient import Attack, attack_batch
    from hf_distill.spaces import space_of

    study = STUDIES[name]()
    rows = study.data("validation")[:500]
    batch = {"pixel_values": torch.stack([r["pixel_values"] for r in rows])}
    labels = torch.tensor([r["labels"] for r in rows])
    for folder in sorted((root / name).glob("**/config.json")):
        model = tf.AutoModelForImageClassification.from_pretrained(folder.parent).eval()
        space = space_of(Head(model), study.processor)
        x = batch["pixel_values"]
        noisy = x + 0.2 / 0.353 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            clean = (model(x).logits.argmax(-1) == labels).float().mean()
            noise = (model(noisy).logits.argmax(-1) == labels).float().mean()
        attack = Attack("pgd", EPSILON, steps=10)
        attacked = attack_batch(model, batch, labels, attack, space).correct
        print(
            f"{folder.parent.relative_to(root / name)}: clean {clean:.3f} noise {noise:.3f} "
            f"attacked {np.asarray(attacked, dtype=float).mean():.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "judge", "report"])
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("root", type=Path)
    parser.add_argument("--only", default="", help="arms whose budget/name holds this")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tf.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    if arguments.what == "train":
        train(arguments.study, arguments.root, arguments.only, arguments.seeds)
    elif arguments.what == "judge":
        judge(arguments.study, arguments.root)


if __name__ == "__main__":
    main()
