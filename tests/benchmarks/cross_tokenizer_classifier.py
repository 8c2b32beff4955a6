"""A classifier with another tokenizer as the teacher, on movie reviews.

The teacher, all-mpnet-base-v2 (12 layers, its own vocabulary), is fine-tuned on 2,000 labelled
reviews. The student has three layers of all-MiniLM-L6-v2 (embeddings frozen), and is trained for
equally many steps on the labels (the baseline), on the teacher's outputs for the same reviews, and
on these with 10,000 unlabelled texts of the same archive, paired by seed. Learning rates are chosen
for each arm on the validation split with a seed that is not counted; the 2,000 test reviews are
used once.

    python tests/benchmarks/cross_tokenizer_classifier.py --folder FOLDER  # resumable
    python tests/benchmarks/cross_tokenizer_classifier.py --table
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import headline
import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from headline import accuracy, sources
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

RESULTS = Path(__file__).with_suffix(".json")
SEEDS, SEARCH_SEED, RATES = range(6), 100, (1e-4, 3e-4)
ARMS = ("baseline", "labelled reviews", "with unlabelled texts")
LABELLED, TEST, VALIDATION = 2000, 2000, 500
STEPS, BATCH, LENGTH = 250, headline.BATCH, 64
COMMON: dict[str, Any] = {**headline.COMMON, "max_steps": STEPS}
NAMES = {0: "negative", 1: "positive"}
Texts = dict[str, Dataset]


class Study:
    """Data, teacher and training of the arms, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, found = folder, sources()
        self.small, self.large = found.all_minilm_l6_v2(), found.all_mpnet_base_v2()
        self.tokenizer = AutoTokenizer.from_pretrained(self.small)
        self.theirs = AutoTokenizer.from_pretrained(self.large)
        rows = found.movie_reviews()
        train = self.tokenized(rows["train"])
        self.validation = self.tokenized(rows["validation"]).select(range(VALIDATION))
        self.test = train.select(range(TEST))
        self.labelled = train.select(range(TEST, TEST + LABELLED))
        rest = train.select(range(TEST + LABELLED, len(train)))
        others = [self.tokenized(each()["test"]) for each in (found.tweets, found.amazon_reviews)]
        texts = [part.select_columns(["text", "input_ids"]) for part in (rest, *others)]
        self.unlabelled = concatenate_datasets(texts).select(range(10_000))
        self.collator = DataCollatorWithPadding(self.tokenizer)

    def tokenized(self, rows: Dataset) -> Dataset:
        """The student's tokens beside the texts."""
        rows = rows.map(
            lambda row: {"input_ids": self.tokenizer(row["text"], truncation=True,
                                                     max_length=LENGTH)["input_ids"]}
        )  # fmt: skip
        rows = rows.rename_column("label", "labels")
        return rows.select_columns(["text", "input_ids", "labels"])

    def fresh(self, origin: str) -> PreTrainedModel:
        """A pre-trained encoder with a new classification layer."""
        labels = {name: at for at, name in NAMES.items()}
        return AutoModelForSequenceClassification.from_pretrained(
            origin, id2label=NAMES, label2id=labels
        )

    def teacher(self) -> PreTrainedModel:
        """The large encoder, fine-tuned on the labelled reviews for two epochs."""
        kept = self.folder / "teacher"
        if not kept.exists():
            set_seed(0)

            def own(rows: Dataset) -> Dataset:
                rows = rows.map(
                    lambda row: self.theirs(row["text"], truncation=True, max_length=LENGTH)
                )
                return rows.select_columns(["input_ids", "attention_mask", "labels"])

            steps = 2 * LABELLED // BATCH
            options = {**COMMON, "max_steps": steps, "eval_steps": steps // 2}
            options["save_steps"] = steps // 2
            args = TrainingArguments(
                str(self.folder / "run"), seed=0, learning_rate=2e-5, **options
            )
            trainer = Trainer(
                self.fresh(self.large), args, DataCollatorWithPadding(self.theirs),
                own(self.labelled), own(self.validation), compute_metrics=accuracy,
            )  # fmt: skip
            trainer.train()
            trainer.save_model(str(kept))
            self.theirs.save_pretrained(str(kept))
        return AutoModelForSequenceClassification.from_pretrained(kept)

    def write_cache(self, teacher: PreTrainedModel) -> None:
        """The teacher's logits, with its own tokenizer, for all texts but the test reviews."""
        from hf_distill import ModelTeacher, write_cache

        taught = ModelTeacher(teacher, self.theirs, inputs="text", max_length=LENGTH)
        parts = [self.labelled, self.validation, self.unlabelled]
        parts = [part.select_columns(["text", "input_ids"]) for part in parts]
        write_cache(self.folder / "cache", taught, parts, self.collator)

    def student(self, arm: str, seed: int, rate: float) -> tuple[PreTrainedModel, float]:
        """A student of one arm, and its best validation accuracy."""
        from hf_distill import (
            CachedTeacher,
            DistillationConfig,
            DistillationTrainer,
            ForwardKL,
            HardLabels,
            student_from_teacher,
        )

        set_seed(seed)
        model = student_from_teacher(self.fresh(self.small), layers=[0, 2, 5])
        model.base_model.embeddings.requires_grad_(False)
        args = DistillationConfig(
            str(self.folder / "run"), seed=seed, learning_rate=rate, eval_teacher=False, **COMMON
        )
        options: dict[str, Any] = {"objective": HardLabels(), "train_dataset": self.labelled}
        if arm != ARMS[0]:
            texts = self.labelled.remove_columns("labels")
            if arm == ARMS[2]:
                texts = concatenate_datasets([texts, self.unlabelled])
            options = {
                "objective": 1.0 * ForwardKL(2.0),
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

    @torch.no_grad()
    def answers(self, model: PreTrainedModel, tokenizer: Any) -> np.ndarray:
        """The likeliest classes of the test reviews."""
        model.eval()
        texts = list(self.test["text"])
        found = []
        for start in range(0, len(texts), 50):
            batch = tokenizer(texts[start : start + 50], truncation=True, max_length=LENGTH,
                              padding=True, return_tensors="pt")  # fmt: skip
            found.append(model(**batch).logits.argmax(-1).numpy())
        return np.concatenate(found)


def train(folder: Path) -> None:
    """Train what is missing; RESULTS is written after every run."""
    torch.set_num_threads(1)
    study = Study(folder)
    teacher = study.teacher()
    study.write_cache(teacher)
    labels = np.array(study.test["labels"])
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if "teacher" not in found:
        theirs = study.answers(teacher, study.theirs)
        found = {"teacher": float((theirs == labels).mean()), "search": {}, "runs": []}
    del teacher

    def keep() -> None:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")

    for arm in ARMS:
        tried = found["search"].setdefault(arm, {})
        for rate in RATES:
            if str(rate) not in tried:
                tried[str(rate)] = study.student(arm, SEARCH_SEED, rate)[1]
                keep()
    for seed in SEEDS:
        for arm in ARMS:
            if any(run["arm"] == arm and run["seed"] == seed for run in found["runs"]):
                continue
            tried = found["search"][arm]
            model, best = study.student(arm, seed, float(max(tried, key=tried.get)))
            right = study.answers(model, study.tokenizer) == labels
            run = {"arm": arm, "seed": seed, "validation": best, "accuracy": float(right.mean())}
            found["runs"].append(run)
            keep()
            print(run, flush=True)


def table() -> str:
    """Accuracy, share of the teacher's, and the difference to the baseline by seed."""
    found = json.loads(RESULTS.read_text())
    arms = {
        arm: np.array([run["accuracy"] for run in found["runs"] if run["arm"] == arm])
        for arm in ARMS
    }
    seeds = min(len(values) for values in arms.values())
    teacher = 100 * found["teacher"]
    lines = [
        "| | learning rate | accuracy, % | retention, % | against the baseline, points |",
        "| :-- | --: | --: | --: | --: |",
        f"| teacher | | {teacher:.1f} | | |",
    ]
    for arm, values in arms.items():
        ours = 100 * values[:seeds]
        tried, gain = found["search"][arm], ""
        if arm != ARMS[0]:
            gaps = ours - 100 * arms[ARMS[0]][:seeds]
            test = stats.ttest_1samp(gaps, 0)
            low, high = test.confidence_interval()
            gain = f"{gaps.mean():+.1f} [{low:.1f}, {high:.1f}], p = {test.pvalue:.3f}"
        lines.append(
            f"| {arm} | {float(max(tried, key=tried.get)):g} | {ours.mean():.1f} ± "
            f"{ours.std(ddof=1):.1f} | {100 * ours.mean() / teacher:.1f} | {gain} |"
        )
    return "\n".join([*lines, "", f"{seeds} pairs of seeds."])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/cross_tokenizer_classifier"))
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
    else:
        train(arguments.folder)
