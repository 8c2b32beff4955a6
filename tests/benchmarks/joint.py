"""A teacher that is trained first, against one that learns along, at equal compute.

    python tests/benchmarks/joint.py --folder runs/joint

Movie reviews, all-MiniLM-L6-v2 (6 layers) and 2 of its layers, as in `objectives.py`. Compute is
counted in layers times batches: a forward costs the number of layers, a training step three times
that. The frozen teacher's fine-tuning counts. Every row gets the same budget; the student alone
is also shown at the frozen row's number of steps. Finished runs are kept in the folder. It prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from objectives import HARD, accuracy, minilm, reviews, two_layers
from transformers import set_seed

from hf_distill import (
    DistillationConfig,
    DistillationTrainer,
    ForwardKL,
    Mutual,
    OnlineDistillationTrainer,
)

TEACHER, STUDENT, BATCH = 6, 2, 32
SOFT = 0.1 * HARD + 0.9 * ForwardKL(2.0)
BOTH = 0.5 * HARD + 0.5 * Mutual()
ROWS = (
    "student alone, equal steps",
    "student alone",
    "frozen teacher",
    "teacher learns along",
    "mutual learning",
    "ensemble of both",
)


def config(folder: str, steps: int, rate: float, seed: int) -> DistillationConfig:
    return DistillationConfig(
        folder,
        use_cpu=True,
        seed=seed,
        max_steps=steps,
        learning_rate=rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=250,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=steps,
    )


def run(name: str, seed: int, loaded: Any, teaching: int, steps: int) -> dict[str, Any]:
    """Train a row with a seed, and judge the student (and its teacher) on the test split."""
    _, train, test, collator = loaded
    budget = teaching * 3 * TEACHER + steps * (TEACHER + 3 * STUDENT)
    set_seed(seed)
    student = two_layers(seed, None)
    common = {"compute_metrics": accuracy}
    with tempfile.TemporaryDirectory() as folder:
        if name.startswith("student alone"):
            count = steps if name.endswith("steps") else budget // (3 * STUDENT)
            arguments = config(folder, count, 5e-4, seed)
            trainer: Any = DistillationTrainer(
                student, arguments, collator, train, test, objective=1.0 * HARD, **common
            )
        elif name == "frozen teacher":
            count = steps
            teacher = minilm()
            first = config(folder, teaching, 2e-4, seed)
            DistillationTrainer(teacher, first, collator, train, objective=1.0 * HARD).train()
            arguments = config(folder, steps, 5e-4, seed)
            trainer = DistillationTrainer(
                student,
                arguments,
                collator,
                train,
                test,
                teacher_model=teacher,
                objective=SOFT,
                **common,
            )
        else:
            count = budget // (3 * TEACHER + 3 * STUDENT)
            arguments = config(folder, count, 5e-4, seed)
            along = name == "teacher learns along"
            trainer = OnlineDistillationTrainer(
                student,
                arguments,
                collator,
                train,
                test,
                peers=minilm(),
                objective=BOTH,
                peer_objective=1.0 * HARD if along else BOTH,
                peer_learning_rate=2e-4,
                targets="ensemble" if name.startswith("ensemble") else "others",
                **common,
            )
        trainer.train()
        figures = trainer.evaluate()
    found = {"steps": count, "accuracy": figures["eval_accuracy"]}
    if "eval_teacher_accuracy" in figures:
        found["teacher"] = figures["eval_teacher_accuracy"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/joint"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--teaching", type=int, default=48, help="steps of the frozen teacher")
    parser.add_argument("--steps", type=int, default=64, help="steps of its student")
    arguments = parser.parse_args()
    tf.logging.set_verbosity_error()
    loaded = reviews()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for seed in arguments.seeds:
        for name in ROWS:
            key = f"{name}/{seed}"
            if key not in results:
                results[key] = run(name, seed, loaded, arguments.teaching, arguments.steps)
                path.write_text(json.dumps(results, indent=1))
                print(key, results[key], flush=True)
    budget = arguments.teaching * 3 * TEACHER + arguments.steps * (TEACHER + 3 * STUDENT)
    print(
        f"\n{platform.processor() or platform.machine()}, torch {torch.__version__}; budget "
        f"{budget:,} layers x batches of {BATCH}; {len(arguments.seeds)} seeds\n\n"
        "| | steps of the student | its accuracy, % | its teacher's, % |\n| :-- | --: | --: | --: |"
    )
    for name in ROWS:
        runs = [results[f"{name}/{seed}"] for seed in arguments.seeds]
        own = [100 * r["accuracy"] for r in runs]
        theirs = [100 * r["teacher"] for r in runs if "teacher" in r]
        spread = statistics.stdev(own) if len(own) > 1 else 0.0
        shown = f"{statistics.mean(theirs):.2f}" if theirs else "–"
        print(
            f"| {name} | {runs[0]['steps']} | {statistics.mean(own):.2f} ± {spread:.2f} | {shown} |"
        )


if __name__ == "__main__":
    main()
