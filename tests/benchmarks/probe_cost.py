"""What the constructor's comparison of the label loss costs, beside 100 steps of training.

The movie-review student of `recipes/text_classification/movie_reviews.yaml` (2 of 6 layers of
all-MiniLM-L6-v2, batches of 32) is constructed with and without ``check_label_loss``, in turn, and
trained for 100 steps. Times are those of the process (all threads), not of the clock, so that other
work on the machine does not count:

    python tests/benchmarks/probe_cost.py

It prints a Markdown table; the probe is the median of the paired differences.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import tempfile
import time
from typing import Any

import torch
import transformers as tf
from objectives import sources

from hf_distill import DistillationConfig, DistillationTrainer, student_from_teacher

STEPS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    tf.logging.set_verbosity_error()
    folder = sources().all_minilm_l6_v2()
    words = tf.AutoTokenizer.from_pretrained(folder)
    teacher = tf.AutoModelForSequenceClassification.from_pretrained(folder)
    data = sources().movie_reviews()["train"].select(range(32 * STEPS))
    data = data.map(lambda rows: words(rows["text"], truncation=True, max_length=64), batched=True)
    student = student_from_teacher(teacher, (0, 1))

    def made(checked: bool) -> tuple[Any, float]:
        gc.collect()
        began = time.process_time()
        trainer = DistillationTrainer(
            student,
            DistillationConfig(
                temporary,
                per_device_train_batch_size=32,
                max_steps=STEPS,
                train_sampling_strategy="group_by_length",
                save_strategy="no",
                report_to="none",
                dataloader_pin_memory=False,
                disable_tqdm=True,
                check_label_loss=checked,
            ),
            train_dataset=data,
            processing_class=words,
            teacher_model=teacher,
        )
        return trainer, time.process_time() - began

    with tempfile.TemporaryDirectory() as temporary:
        made(True)  # what is done once in a process
        pairs = []
        for turn in range(rounds):
            order = (True, False) if turn % 2 else (False, True)
            times = {checked: made(checked)[1] for checked in order}
            pairs.append((times[True], times[False]))
        trainer, _ = made(True)
        began = time.process_time()
        trainer.train()
        training = time.process_time() - began
    probe = statistics.median(a - b for a, b in pairs)
    whole = statistics.median(b for _, b in pairs) + training
    print(
        f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}, "
        f"transformers {tf.__version__}, {rounds} rounds\n"
    )
    print("| constructor with the probe, s | without, s | 100 steps, s | the probe's share |")
    print("| --: | --: | --: | --: |")
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"| {first:.3f} | {second:.3f} | {training:.1f} | {100 * probe / whole:.2f} % |")


if __name__ == "__main__":
    main()
