"""The README's picture and table: a student of two layers, with and without its teacher.

1,000 movie reviews have labels, 4,605 do not. The teacher, all-MiniLM-L6-v2 (6 layers), is
fine-tuned on the 1,000. The student is made of two of its layers and trained for 200 steps
(embeddings frozen), once on the 1,000 labels (the baseline) and once on the teacher's outputs for
all 5,605 reviews without any label, six seeds each; a third arm, "same", is distilled on the 1,000
reviews of the baseline alone. The 2,000 test reviews are rows that were only ever trained on
before, so no setting was chosen in view of them; learning rates are chosen on the validation split
with a seed that is not counted.

    python tests/benchmarks/headline.py train    # resumable; writes headline.json
    python tests/benchmarks/headline.py measure  # adds the latencies to headline.json
    python tests/benchmarks/headline.py draw     # headline.png from headline.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

HERE = Path(__file__).parent
RESULTS, PICTURE = HERE / "headline.json", HERE / "headline.png"
SEEDS, SEARCH_SEED = range(6), 100
STEPS, BATCH, RATES = 200, 32, (1e-4, 2e-4)
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": 100,
    "max_steps": STEPS,
    "eval_strategy": "steps",
    "eval_steps": 50,
    "save_steps": 50,
    "save_total_limit": 1,
    "save_only_model": True,
    "load_best_model_at_end": True,  # the best of four by validation accuracy, in both arms
    "metric_for_best_model": "accuracy",
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "train_sampling_strategy": "group_by_length",
    "bf16": True,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
}


def sources() -> Any:
    """recipes/sources.py as a module."""
    spec = importlib.util.spec_from_file_location("sources", HERE.parents[1] / "recipes/sources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sources"] = module
    spec.loader.exec_module(module)
    return module


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of examples whose likeliest class is the label."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


class Study:
    """Data, teacher and training of the two arms, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = sources()
        self.origin = found.all_minilm_l6_v2()
        self.tokenizer = AutoTokenizer.from_pretrained(self.origin)
        self.collator = DataCollatorWithPadding(self.tokenizer)
        rows = found.movie_reviews()
        rows = rows.map(
            lambda row: self.tokenizer(row["text"], truncation=True, max_length=64), batched=True
        )
        rows = rows.rename_column("label", "labels").remove_columns(["id", "rating", "text"])
        train = rows["train"]
        self.validation = rows["validation"].select(range(500))
        self.test = train.select(range(2000))
        self.labelled = train.select(range(2000, 3000))
        self.texts = train.select(range(2000, len(train))).remove_columns("labels")

    def fresh(self) -> PreTrainedModel:
        """The pre-trained encoder with a new classification layer."""
        names = {0: "negative", 1: "positive"}
        return AutoModelForSequenceClassification.from_pretrained(
            self.origin, id2label=names, label2id={name: at for at, name in names.items()}
        )

    def teacher(self) -> PreTrainedModel:
        """The encoder, fine-tuned on the labelled reviews."""
        kept = self.folder / "teacher"
        if not kept.exists():
            set_seed(0)
            options = {**COMMON, "max_steps": 124, "eval_steps": 31, "save_steps": 31}
            args = TrainingArguments(
                str(self.folder / "run"), seed=0, learning_rate=5e-5, **options
            )
            trainer = Trainer(self.fresh(), args, self.collator, self.labelled, self.validation,
                              compute_metrics=accuracy)  # fmt: skip
            trainer.train()
            trainer.save_model(str(kept))
        return AutoModelForSequenceClassification.from_pretrained(kept)

    def student(self, arm: str, seed: int, rate: float) -> tuple[PreTrainedModel, float]:
        """A student of one arm, and its best validation accuracy."""
        from hf_distill import (
            CachedTeacher,
            DistillationConfig,
            DistillationTrainer,
            ForwardKL,
            HardLabels,
            HiddenStates,
            student_from_teacher,
        )

        set_seed(seed)
        model = student_from_teacher(self.fresh(), layers=[0, 1])
        model.base_model.embeddings.requires_grad_(False)
        args = DistillationConfig(
            str(self.folder / "run"), seed=seed, learning_rate=rate, eval_teacher=False, **COMMON
        )
        options: dict[str, Any] = {"objective": HardLabels(), "train_dataset": self.labelled}
        if arm != "baseline":
            texts = self.texts if arm == "distilled" else self.texts.select(range(1000))
            options = {
                "objective": ForwardKL(2.0) + HiddenStates([(-1, -1)]),
                "train_dataset": texts,
                "teacher_model": CachedTeacher(str(self.folder / "cache")),
            }
        trainer = DistillationTrainer(
            model=model,
            args=args,
            data_collator=self.collator,
            eval_dataset=self.validation,
            compute_metrics=accuracy,
            **options,
        )
        trainer.train()
        return model, float(trainer.state.best_metric)

    def write_cache(self, teacher: PreTrainedModel) -> None:
        """The teacher's logits and last hidden states for all reviews but the test ones."""
        from hf_distill import ModelTeacher, write_cache

        validation = self.validation.remove_columns("labels")
        write_cache(self.folder / "cache", ModelTeacher(teacher), [self.texts, validation],
                    self.collator, hidden_states={"hidden": [-1]})  # fmt: skip

    @torch.no_grad()
    def logits(self, model: PreTrainedModel) -> np.ndarray:
        """Logits of the test reviews in float32."""
        model.eval()
        inputs = self.test.remove_columns("labels")
        batches = [self.collator([inputs[at] for at in range(start, start + 100)])
                   for start in range(0, len(inputs), 100)]  # fmt: skip
        return np.concatenate([model(**batch).logits.float().numpy() for batch in batches])


def train(folder: Path) -> None:
    """Train what is missing and write headline.json after every run."""
    torch.set_num_threads(1)
    study = Study(folder)
    teacher = study.teacher()
    study.write_cache(teacher)
    labels, theirs = np.array(study.test["labels"]), study.logits(teacher)
    state = folder / "state.json"
    found: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {}
    found["teacher"] = {"accuracy": float((theirs.argmax(-1) == labels).mean())}
    found.setdefault("search", {})
    runs: list[dict[str, Any]] = found.setdefault("runs", [])
    for arm in ("baseline", "distilled"):
        tried = found["search"].setdefault(arm, {})
        for rate in RATES:
            if str(rate) not in tried:
                tried[str(rate)] = study.student(arm, SEARCH_SEED, rate)[1]
                state.write_text(json.dumps(found, indent=1))
    rates = {arm: float(max(tried, key=tried.get)) for arm, tried in found["search"].items()}
    rates["same"] = rates["distilled"]
    for seed in SEEDS:
        for arm, rate in rates.items():
            if any(run["arm"] == arm and run["seed"] == seed for run in runs):
                continue
            model, best = study.student(arm, seed, rate)
            answers = study.logits(model).argmax(-1)
            right, same = answers == labels, answers == theirs.argmax(-1)
            figures = {"accuracy": float(right.mean()), "agreement": float(same.mean())}
            runs.append({"arm": arm, "seed": seed, "validation": best, **figures})
            state.write_text(json.dumps(found, indent=1))
            print(runs[-1], flush=True)
    RESULTS.write_text(json.dumps(found | {"rates": rates}, indent=1) + "\n")


def measure(folder: Path) -> None:
    """Add the latencies of teacher and student to headline.json."""
    from hf_distill import student_from_teacher

    torch.set_num_threads(1)
    study = Study(folder)
    teacher = study.teacher()
    models = {"teacher": teacher, "student": student_from_teacher(teacher, layers=[0, 1])}
    found = json.loads(RESULTS.read_text()) | {"latency": latency(study, models)}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def latency(study: Study, models: dict[str, PreTrainedModel]) -> dict[str, Any]:
    """Processor time of a forward pass on 8 reviews in ms, one thread, the models in turn."""
    inputs = study.test.remove_columns("labels")
    batches = [study.collator([inputs[at + i] for i in range(8)]) for at in range(0, 800, 8)]
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for batch in batches[:10] + batches:
            for name, model in models.items():
                model.eval()
                start = time.process_time()
                model(**batch)
                times[name].append(1000 * (time.process_time() - start))
    found: dict[str, Any] = {}
    for name, model in models.items():
        low, middle, high = (
            float(value) for value in np.percentile(times[name][10:], (10, 50, 90))
        )
        found[name] = {"p10": low, "median": middle, "p90": high,
                       "parameters": model.num_parameters()}  # fmt: skip
    return found


def column(found: dict[str, Any], arm: str, key: str) -> np.ndarray:
    """One figure of an arm, by seed."""
    return np.array([run[key] for run in found["runs"] if run["arm"] == arm])


def gain(found: dict[str, Any], arm: str) -> str:
    """Difference of an arm to the baseline, paired t interval, and the larger p of two tests."""
    values = column(found, arm, "accuracy") - column(found, "baseline", "accuracy")
    paired = stats.ttest_1samp(values, 0)
    flips = stats.permutation_test((values,), np.mean, permutation_type="samples")
    low, high = (100 * value for value in paired.confidence_interval())
    return (
        f"{100 * values.mean():+.1f} points [{low:.1f}, {high:.1f}], "
        f"p = {max(paired.pvalue, flips.pvalue):.3f}, {(values > 0).sum()} of {len(values)} seeds"
    )


def table(found: dict[str, Any]) -> str:
    """The rows of README.md."""

    def start(name: str, model: str) -> str:
        facts = found["latency"][model]
        return f"| {name} | {facts['parameters'] / 1e6:.1f} M | {facts['median']:.0f} ms"

    teacher = 100 * found["teacher"]["accuracy"]
    lines = [
        "| | parameters | 8 reviews | accuracy, % | retention, % |",
        "| :-- | --: | --: | --: | --: |",
        f"{start('teacher', 'teacher')} | {teacher:.1f} | |",
    ]
    for arm in ("baseline", "distilled"):
        values = 100 * column(found, arm, "accuracy")
        cells = (
            f"{values.mean():.1f} ± {values.std(ddof=1):.1f} | {100 * values.mean() / teacher:.1f}"
        )
        lines.append(f"{start(arm, 'student')} | {cells} |")
    return "\n".join(lines)


COLOURS = {"teacher": "#444444", "baseline": "#d1730f", "distilled": "#1668b3"}
LABELS = {
    "teacher": "teacher, 6 layers",
    "baseline": "baseline, 2 layers",
    "distilled": "distilled, 2 layers",
}


def draw() -> None:
    """Write headline.png, and print the table of README.md."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = json.loads(RESULTS.read_text())
    latency = found["latency"]
    points = {"teacher": (100 * found["teacher"]["accuracy"], 0.0)}
    for arm in ("baseline", "distilled"):
        values = 100 * column(found, arm, "accuracy")
        points[arm] = (values.mean(), values.std(ddof=1))
    picture, axes = plt.subplots(figsize=(6.4, 3.4), dpi=120)
    for arm, (mean, spread) in points.items():
        speed = latency["teacher" if arm == "teacher" else "student"]
        across = [[speed["median"] - speed["p10"]], [speed["p90"] - speed["median"]]]
        axes.errorbar(speed["median"], mean, spread or None, across, "o",
                      color=COLOURS[arm], capsize=3)  # fmt: skip
        axes.annotate(f"{LABELS[arm]}\n{mean:.1f} %", (speed["median"], mean), (9, 6),
                      textcoords="offset points", fontsize=9, color=COLOURS[arm])  # fmt: skip
    axes.set_xlim(0, 1.55 * latency["teacher"]["p90"])
    axes.set_xlabel("processor time for 8 reviews, ms (one thread; bars: 10th to 90th percentile)")
    axes.set_ylabel("test accuracy, %")
    axes.margins(y=0.3)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    picture.tight_layout()
    picture.savefig(PICTURE)
    print(table(found), gain(found, "distilled"), gain(found, "same"), sep="\n\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["train", "measure", "draw"])
    parser.add_argument("--folder", type=Path, default=Path("runs/headline"))
    args = parser.parse_args()
    if args.command == "draw":
        draw()
    else:
        {"train": train, "measure": measure}[args.command](args.folder)
