"""The promise, measured: teacher, baseline, baseline with noise or attack, distilled, robust.

    python tests/benchmarks/robustness.py train fashion_mnist runs/robustness   # resumable
    python tests/benchmarks/robustness.py train movie_reviews runs/robustness
    python tests/benchmarks/robustness.py report fashion_mnist runs/robustness  # tables and plots

For every seed and budget all arms begin with the same weights and see the same data in the same
order for the same number of steps; the model after the last step is judged.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from datasets import ClassLabel, Dataset
from torch import nn
from torch.utils.data import ConcatDataset

from hf_distill import (
    CachedTeacher,
    DistillationConfig,
    DistillationTrainer,
    ForwardKL,
    GroupDRO,
    HardLabels,
    ModelTeacher,
    ReverseKL,
    WeightDecay,
    student_from_teacher,
    write_cache,
)
from hf_distill.models.initialise import with_dropout
from hf_distill.objectives.adversaries import PGD
from hf_distill.objectives.base.objective import Objective, WeightedSum
from hf_distill.objectives.input_perturbations import PerturbedColumns
from hf_distill.objectives.methods import rslad
from hf_distill.objectives.perturbed import OnPerturbed
from hf_distill.recipe.data_section import NoiseSection
from hf_distill.recipe.tasks import RandomVersionCollator, with_noise
from hf_distill.robustness import Examples, Predictor, RobustnessConfig, evaluate_robustness
from hf_distill.robustness.bias import balanced, with_spurious_patch
from hf_distill.robustness.perturbations import CORE

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
        split: What it trains on.
        dropout: Of the student; None: its own.
        epochs: How many times as many as the budget says.
        settings: Training arguments of its own.
    """

    objective: Objective | WeightedSum
    teacher: str | None = None
    split: str = "train"
    dropout: float | None = None
    epochs: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """One data set with its models.

    Attributes:
        data: ``(split, size) -> examples`` as the trainer takes them.
        teacher: Makes a teacher before its fine-tuning.
        student: Makes a student from a seed (and a fresh teacher).
        processor: Of both.
        collator: Of both.
        teachers: Name -> how a teacher is trained.
        arms: Name -> arm.
        budgets: Name -> epochs.
        settings: Training arguments of all students.
    """

    data: Callable[[str], Any]
    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    processor: Any
    collator: Any
    teachers: dict[str, Arm]
    arms: dict[str, Arm]
    budgets: dict[str, int]
    settings: dict[str, Any] = field(default_factory=dict)


# ---- Fashion-MNIST ---------------------------------------------------------------------------

SIZES, EPSILON = {"train": 2000, "more": 12_000}, 8 / 255


def pictures() -> Study:
    mean, std = [0.286] * 3, [0.353] * 3
    processor = tf.ViTImageProcessor(
        size={"height": 28, "width": 28}, image_mean=mean, image_std=std, do_convert_rgb=True
    )

    @cache
    def data(split: str) -> list[dict[str, Any]]:
        rows = sources().fashion_mnist()["train" if split == "more" else split].shuffle(seed=0)
        rows = rows.select(range(min(len(rows), SIZES.get(split, 1000))))
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
    warm = 0.5 * ForwardKL(4.0) + 0.5 * OnPerturbed(ForwardKL(4.0), attack)
    of_teacher = {"num_train_epochs": 10, "learning_rate": 2e-3}
    return Study(
        data,
        lambda: resnet([32, 64, 128], 2),
        lambda: resnet([8, 16, 32], 1),
        processor,
        tf.default_data_collator,
        {
            "teacher": Arm(1.0 * HardLabels(), None, "more", settings=of_teacher),
            "robust_teacher": Arm(
                0.5 * HardLabels() + 0.5 * adversarial, None, "more", settings=of_teacher
            ),
        },
        {
            "baseline": Arm(1.0 * HardLabels()),
            "control": Arm(0.5 * HardLabels() + 0.5 * adversarial),
            "distilled": Arm(0.1 * HardLabels() + 0.9 * ForwardKL(4.0), "teacher"),
            "robust": Arm(warm, "robust_teacher"),
            "unlabelled": Arm(warm, "robust_teacher", "more", epochs=1 / 6),
        },
        {"short": 10, "long": 30},
        {"learning_rate": 5e-3, "per_device_train_batch_size": 100, "weight_decay": 0.01},
    )


def tried() -> Study:
    """What else was tried to be more robust than a student without a teacher."""
    plain = pictures()
    attack = PGD(EPSILON / 2, steps=2)
    few = Arm(
        plain.teachers["robust_teacher"].objective,
        settings={"num_train_epochs": 20, "learning_rate": 2e-3},
    )

    def robustly(objective: Objective, share: float = 0.5) -> WeightedSum:
        return (1 - share) * objective + share * OnPerturbed(objective, attack)

    best, teacher = robustly(ForwardKL()), "robust_teacher"
    return replace(
        plain,
        teachers=plain.teachers | {"few": few},
        arms={
            "control": plain.arms["control"],
            "teacher of the same 2,000": Arm(best, "few"),
            "plain teacher": Arm(best, "teacher"),
            "robust teacher": Arm(best, teacher),
            "temperature 4": Arm(robustly(ForwardKL(4.0)), teacher),
            "temperature 4, 5/6 perturbed": Arm(robustly(ForwardKL(4.0), 5 / 6), teacher),
            "ReverseKL": Arm(robustly(ReverseKL()), teacher),
            "with labels": Arm(0.3 * plain.arms["control"].objective + 0.7 * best, teacher),
            "12,000 unlabelled pictures": Arm(best, teacher, "more", epochs=1 / 6),
            "RSLAD": Arm(rslad(EPSILON / 2, steps=2), teacher),
            "control, 3 times as long": Arm(plain.arms["control"].objective, epochs=3),
            "robust teacher, 3 times as long": Arm(best, teacher, epochs=3),
            "12,000 unlabelled pictures, 3 times as long": Arm(best, teacher, "more", epochs=0.5),
        },
        budgets={"long": 30},
    )


def compare_tried(name: str, root: Path) -> None:
    """Figures of each way on the validation split, less those of the control of the same length."""
    test = examples("fashion_mnist", "validation", 1000)
    plan = replace(plan_of("fashion_mnist"), attacks=("pgd",), gate_examples=0)
    figures = ("accuracy", "noise", "attacked", "nll")
    print(f"| | {' | '.join(figures)} |\n| :-- | {' | '.join('--:' for _ in figures)} |")
    controls: dict[bool, dict[str, list[float]]] = {}
    for arm in STUDIES[name]().arms:
        folders = sorted((root / name / "long" / arm).glob("seed-*"))
        models = {int(f.name.partition("-")[2]): Predictor.load(f) for f in folders}
        folder = root / name / "judged"
        facts = evaluate_robustness({"student": models}, test, plan=plan, folder=folder).facts
        found = {figure: facts["roles"]["student"][figure]["values"] for figure in figures}
        control = controls.setdefault("as long" in arm, found)
        cells = []
        for figure, values in found.items():
            less = np.mean(values) - np.mean(control[figure][: len(values)])
            cells.append(f"{np.mean(values):.3f}" + (f" ({less:+.3f})" if less else ""))
        print(f"| {arm} | {' | '.join(cells)} |", flush=True)


# ---- movie reviews ---------------------------------------------------------------------------

SEEN = ("keyboard_typos", "character_drops")
"""What the noise-trained students see; it does not count when they are judged."""
NOISE = NoiseSection(list(SEEN))


def texts() -> Study:
    folder = sources().all_minilm_l6_v2()
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)

    def encode(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(texts, truncation=True, max_length=32)["input_ids"]
        return ids

    @cache
    def data(split: str) -> Dataset:
        rows = sources().movie_reviews()[split].shuffle(seed=0)
        rows = rows.select(range(min(len(rows), {"train": 1200}.get(split, 1000))))
        read = list(rows["text"])
        columns = {"input_ids": encode(read), "labels": list(rows["label"])}
        return with_noise(Dataset.from_dict(columns), read, encode, NOISE, VERSIONS)

    def teacher() -> nn.Module:
        return tf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)

    def student() -> nn.Module:
        return student_from_teacher(teacher(), [0, 1], hidden_size=128)

    attack = PGD(0.03, steps=1, norm="l2")  # of each token's embedding length

    def robustly(objective: Objective) -> WeightedSum:
        noisy, attacked = OnPerturbed(objective, PerturbedColumns()), OnPerturbed(objective, attack)
        return 0.5 * objective + 0.3 * noisy + 0.2 * attacked

    fine_tuning = {"num_train_epochs": 3, "learning_rate": 5e-5}
    return Study(
        data,
        teacher,
        student,
        tokenizer,
        RandomVersionCollator(tf.DataCollatorWithPadding(tokenizer)),
        {
            "teacher": Arm(1.0 * HardLabels(), settings=fine_tuning),
            "robust_teacher": Arm(
                0.5 * HardLabels() + 0.5 * OnPerturbed(HardLabels(), PerturbedColumns()),
                settings=fine_tuning,
            ),
        },
        {
            "baseline": Arm(1.0 * HardLabels()),
            "control": Arm(robustly(HardLabels())),
            "distilled": Arm(1.0 * ForwardKL(2.0), "teacher"),
            "robust": Arm(robustly(ForwardKL(2.0)), "robust_teacher"),
        },
        {"short": 3, "long": 9},
        {
            "learning_rate": 5e-4,
            "per_device_train_batch_size": 32,
            "weight_decay": 0.01,
            "train_sampling_strategy": "group_by_length",
        },
    )


# ---- a spurious mark ---------------------------------------------------------------------------

SHIRTS, RATE, GROUPS = ("T-shirt/top", "Shirt"), 0.95, 4


@cache
def shirts(split: str) -> Dataset:
    """T-shirts and shirts with a patch of the class's grey: in training 95 %, in testing half."""
    part = "train" if split == "balanced" else split
    rows = sources().fashion_mnist()[part]
    names = rows.features["label"].names
    wanted = [names.index(name) for name in SHIRTS]
    labels = np.asarray(rows["label"])
    rows = rows.select(np.flatnonzero(np.isin(labels, wanted))).shuffle(seed=0)
    rows = rows.select(range(min(len(rows), {"train": 2000}.get(part, 2000))))
    label = [wanted.index(y) for y in rows["label"]]
    rows = rows.remove_columns("label").add_column("label", label)
    rows = rows.cast_column("label", ClassLabel(names=list(SHIRTS)))
    rows = with_spurious_patch(rows, "image", "label", RATE if part == "train" else 0.5)
    return balanced(rows, "group") if split == "balanced" else rows


def marked() -> Study:
    plain = pictures()

    @cache
    def data(split: str) -> list[dict[str, Any]]:
        rows = shirts(split)
        pixels = np.stack([np.asarray(picture, np.float32) for picture in rows["image"]]) / 255
        found = (torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1) - 0.286) / 0.353
        return [
            {"pixel_values": x, "labels": y, "group": g}
            for x, y, g in zip(found, rows["label"], rows["group"], strict=True)
        ]

    def binary(make: Callable[[], nn.Module]) -> nn.Module:
        config: Any = make().config
        config.num_labels = len(SHIRTS)
        config.id2label = dict(enumerate(SHIRTS))
        config.label2id = {name: number for number, name in enumerate(SHIRTS)}
        return tf.ResNetForImageClassification(config)

    kd = 0.1 * HardLabels() + 0.9 * ForwardKL(4.0)
    return replace(
        plain,
        data=data,
        teacher=lambda: binary(plain.teacher),
        student=lambda: binary(plain.student),
        teachers={
            "teacher": Arm(
                1.0 * HardLabels(), settings={"num_train_epochs": 15, "learning_rate": 2e-3}
            )
        },
        arms={
            "baseline": Arm(1.0 * HardLabels()),
            "distilled": Arm(kd, "teacher"),
            "group DRO, no teacher": Arm(1.0 * GroupDRO(HardLabels(), GROUPS)),
            "group DRO, distilled": Arm(1.0 * GroupDRO(ForwardKL(4.0), GROUPS), "teacher"),
            "balanced sampling, distilled": Arm(kd, "teacher", "balanced"),
            "balanced sampling, no teacher": Arm(1.0 * HardLabels(), None, "balanced"),
        },
        budgets={"short": 10},
    )


def compare_groups(name: str, root: Path) -> None:
    """Average and worst group, each arm judged against balanced sampling without a teacher."""
    rows = shirts("test")
    names = rows.features["group"].names
    read = Examples.read(rows.remove_columns("group"))
    test = replace(read, groups=tuple(names[g] for g in rows["group"]))
    plan = RobustnessConfig(perturbations=(), attacks=(), gate_examples=0, groups="group")
    arms = STUDIES[name]().arms
    print(
        "| | average | worst group | against balanced sampling, no teacher |\n"
        "| :-- | --: | --: | :-- |"
    )
    reference = "balanced sampling, no teacher"
    for arm in arms:
        folders = (root / name / "short" / which for which in (reference, arm))
        alone, student = (
            {
                int(f.name.partition("-")[2]): Predictor.load(f)
                for f in sorted(folder.glob("seed-*"))
            }
            for folder in folders
        )
        facts = evaluate_robustness(
            {"baseline": alone, "student": student}, test, plan=plan, folder=root / name / "judged"
        ).facts
        own, said = facts["roles"]["student"], facts["verdicts"]["baseline"]["worst_group"]
        row = [arm, *(f"{own[k]['mean']:.3f}" for k in ("accuracy", "worst_group"))]
        print(f"| {' | '.join([*row, '–' if arm == reference else told(said)])} |", flush=True)


# ---- regularisers ------------------------------------------------------------------------------


def regularised() -> Study:
    """The distilled movie-review student with one regulariser at a time."""
    plain = texts()
    kd: WeightedSum = 1.0 * ForwardKL(2.0)
    none = {"weight_decay": 0.0}
    stopping = {
        **none,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    return replace(
        plain,
        arms={
            "none": Arm(kd, "teacher", dropout=0.0, settings=none),
            "weight_decay 0.1": Arm(kd, "teacher", dropout=0.0, settings={"weight_decay": 0.1}),
            "WeightDecay(1e-5) in the loss": Arm(
                kd + WeightDecay(1e-5), "teacher", dropout=0.0, settings=none
            ),
            "WeightDecay(1e-4) to the initial weights": Arm(
                kd + WeightDecay(1e-4, target="init"), "teacher", dropout=0.0, settings=none
            ),
            "dropout 0.1": Arm(kd, "teacher", dropout=0.1, settings=none),
            "dropout 0.3": Arm(kd, "teacher", dropout=0.3, settings=none),
            "early stopping": Arm(kd, "teacher", dropout=0.0, settings=stopping),
        },
        budgets={"long": 9},
    )


def compare_regularisers(name: str, root: Path) -> None:
    """Figures of each arm on the test split, mean and deviation over the seeds."""
    test = examples("movie_reviews", "test", 1000)
    plan = replace(
        plan_of("movie_reviews"), severities=(3,), attacks=(), invariance=(), gate_examples=0
    )
    figures = ("accuracy", "noise", "nll", "ece")
    print(f"| | {' | '.join(figures)} |\n| :-- | {' | '.join('--:' for _ in figures)} |")
    for arm in STUDIES[name]().arms:
        folders = sorted((root / name / "long" / arm).glob("seed-*"))
        models = {n: replace(Predictor.load(f), max_length=32) for n, f in enumerate(folders)}
        folder = root / name / "judged"
        facts = evaluate_robustness({"student": models}, test, plan=plan, folder=folder).facts
        own = [facts["roles"]["student"][figure]["values"] for figure in figures]
        cells = [f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" for values in own]
        print(f"| {arm} | {' | '.join(cells)} |", flush=True)


STUDIES: dict[str, Callable[[], Study]] = {
    "fashion_mnist": pictures,
    "movie_reviews": texts,
    "spurious_mark": marked,
    "tried": tried,
    "regularisers": regularised,
}


# ---- training --------------------------------------------------------------------------------


def fit(
    study: Study,
    model: nn.Module,
    objective: Any,
    teacher: Any,
    seed: int,
    where: Path,
    split: str = "train",
    **own: Any,
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
    stops = bool(own.get("load_best_model_at_end"))
    trainer = DistillationTrainer(
        model,
        args,
        study.collator,
        study.data(split),
        study.data("validation") if stops else None,
        callbacks=[tf.EarlyStoppingCallback(1)] if stops else None,
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
            how = study.teachers[wanted]
            fit(study, study.teacher(), how.objective, None, 0, folder, how.split, **how.settings)
        kept = root / name / f"{wanted}_outputs"
        if wanted not in loaded:
            model = type(study.teacher()).from_pretrained(folder)
            taught = {arm.split for arm in study.arms.values() if arm.teacher == wanted}
            data = ConcatDataset([study.data(split) for split in ("validation", *sorted(taught))])
            write_cache(kept, ModelTeacher(model), data, study.collator, say=quiet)
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
                if what.dropout is not None:
                    model = with_dropout(model, what.dropout)
                seconds = fit(
                    study,
                    model,
                    what.objective,
                    taught,
                    seed,
                    folder,
                    what.split,
                    num_train_epochs=epochs * what.epochs,
                    **what.settings,
                )
                print(f"{name} {budget} {arm} seed {seed}: {seconds:.0f} s", flush=True)


# ---- judging ---------------------------------------------------------------------------------

AXES = ("accuracy", "noise", "attacked", "shifted", "worst_group", "nll", "ece")
JUDGED = {"accuracy": "clean"}


def examples(name: str, split: str, size: int) -> Examples:
    rows = sources().__dict__[name]()[split].shuffle(seed=0)
    rows = rows.select(range(min(size, len(rows))))
    found = Examples.read(rows)
    if name != "fashion_mnist":
        return found
    return replace(found, groups=tuple(found.names[y] for y in found.labels))  # worst class


def plan_of(name: str) -> RobustnessConfig:
    if name == "fashion_mnist":
        return RobustnessConfig(
            epsilon=EPSILON, steps=10, queries=100, perturbed_examples=400, groups="class"
        )
    unseen = tuple(p for p in CORE["text"] if p not in SEEN)
    return RobustnessConfig(
        perturbations=unseen,
        severities=(1, 3, 5),
        epsilon=0.05,
        steps=5,
        queries=30,
        gate_examples=16,
    )


def report(name: str, root: Path, budgets: list[str]) -> None:
    """A report for each budget and way to distil, and tables of all of them."""
    test = examples(name, "test", 1000)
    validation = examples(name, "validation", 1000)
    others = ("tweets", "amazon_reviews", "nyt_editorials") if name == "movie_reviews" else ()
    shifted = {other: examples(other, "test", 500) for other in others}
    plan, length = plan_of(name), 32 if name == "movie_reviews" else None
    arms = STUDIES[name]().arms

    def loaded(path: Path) -> Predictor:
        return replace(Predictor.load(path), max_length=length)

    for budget in budgets:
        folder = root / name / budget
        seeds = sorted(
            int(path.name.partition("-")[2])
            for path in (folder / "baseline").glob("seed-*")
            if all((folder / arm / path.name).is_dir() for arm in arms)
        )

        def models_of(which: str, folder: Path = folder, seeds: list[int] = seeds) -> Any:
            return {seed: loaded(folder / which / f"seed-{seed}") for seed in seeds}

        found: dict[str, dict[str, Any]] = {}
        for student in [arm for arm in arms if arm not in ("baseline", "control")]:
            models: dict[str, Any] = {
                "student": models_of(student),
                "baseline": models_of("baseline"),
                "teacher": loaded(root / name / str(arms[student].teacher)),
            }
            if robust := student != "distilled":
                models["control"] = models_of("control")
            made = evaluate_robustness(
                models,
                test,
                plan=replace(plan, robust_objective=robust),
                validation=validation,
                shifted=shifted,
                folder=root / name / "judged",
                say=lambda line: print(line, flush=True),
            )
            made.write(root / name / f"report-{budget}-{student}", f"{name}, {budget}, {student}")
            found[student] = made.facts
        print(f"\n{tables(found, budget, len(seeds))}\n", flush=True)


def tables(found: dict[str, dict[str, Any]], budget: str, seeds: int) -> str:
    """Means over the seeds, one row per axis; then the differences that are judged, in points."""
    last = found[list(found)[-1]]
    columns = {"teacher": found["distilled"]["roles"]["teacher"]}
    columns |= {"robust teacher": last["roles"]["teacher"]}
    columns |= {role: last["roles"][role] for role in ("baseline", "control")}
    columns |= {student: facts["roles"]["student"] for student, facts in found.items()}
    pairs = {
        f"{student} - {other}": verdicts
        for other in ("baseline", "control")
        for student, facts in found.items()
        if (verdicts := facts["verdicts"].get(other))
    }
    axes = [axis for axis in AXES if axis in columns["baseline"]]
    means = [[f"{budget}, {seeds} seeds", *columns]]
    means += [[a, *(f"{figures[a]['mean']:.3f}" for figures in columns.values())] for a in axes]
    judged = [["", *pairs]]
    for axis in axes:
        said = [verdicts.get(JUDGED.get(axis, axis)) for verdicts in pairs.values()]
        if any(said):
            judged.append([axis, *("–" if one is None else told(one) for one in said)])
    return "\n\n".join(
        "\n".join(
            [f"| {' | '.join(row)} |" for row in (rows[0], [":--"] + [rule] * (len(rows[0]) - 1))]
            + [f"| {' | '.join(row)} |" for row in rows[1:]]
        )
        for rows, rule in ((means, "--:"), (judged, ":--"))
    )


def told(said: dict[str, Any]) -> str:
    difference, low, high = (said[k] for k in ("difference", "low", "high"))
    found = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}], p {said['p_adjusted']:.3f}"
    return f"{found}: {said['word']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "report"])
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("root", type=Path)
    parser.add_argument("--only", default="", help="arms whose budget/name holds this")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--budgets", nargs="+", default=["short", "long"])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tf.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    if arguments.what == "train":
        train(arguments.study, arguments.root, arguments.only, arguments.seeds)
    elif arguments.study == "regularisers":
        compare_regularisers(arguments.study, arguments.root)
    elif arguments.study == "tried":
        compare_tried(arguments.study, arguments.root)
    elif arguments.study == "spurious_mark":
        compare_groups(arguments.study, arguments.root)
    else:
        report(arguments.study, arguments.root, arguments.budgets)


if __name__ == "__main__":
    main()
