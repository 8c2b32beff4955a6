"""What the constructor's comparison of the label loss costs, beside 100 steps of training.

The movie-review student of `recipes/text_classification/movie_reviews.yaml` (2 of 6 layers of
all-MiniLM-L6-v2, batches of 32) is constructed with and without ``check_label_loss``, in turn, and
trained for 100 steps. Times are those of the process (all threads), not of the clock, so that other
work on the machine does not count:

    python tests/benchmarks/probe_cost.py

It prints a Markdown table of medians.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import tempfile
import time

import torch
import transformers as tf
from objectives import sources

from hf_distill import DistillationConfig, DistillationTrainer, student_from_teacher

STEPS = 100


class Timed(DistillationTrainer):
    """Keeps how long the comparison took."""

    def _check_label_loss(self) -> None:
        began = time.process_time()
        super()._check_label_loss()
        self.probe = time.process_time() - began


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

    def made(checked: bool) -> tuple[Timed, float]:
        gc.collect()
        began = time.process_time()
        arguments = DistillationConfig(
            temporary,
            per_device_train_batch_size=32,
            max_steps=STEPS,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
            disable_tqdm=True,
            check_label_loss=checked,
        )
        trainer = Timed(
            student,
            arguments,
            train_dataset=data,
            processing_class=words,
            teacher_model=teacher,
        )
        return trainer, time.process_time() - began

    with tempfile.TemporaryDirectory() as temporary:
        made(True)  # what is done once in a process
        kinds = (True, False)
        rows = [[(kind, *made(kind)) for kind in kinds[:: 1 - 2 * (n % 2)]] for n in range(rounds)]
        began = time.process_time()
        made(True)[0].train()
        whole = time.process_time() - began
    print(
        f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}, "
        f"transformers {tf.__version__}, {rounds} rounds\n"
    )
    print("| check_label_loss | constructor, s | of it the comparison, s | share of 100 steps |")
    print("| :-- | --: | --: | --: |")
    for kind in kinds:
        found = [(t.probe, seconds) for row in rows for k, t, seconds in row if k is kind]
        probe, seconds = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {kind} | {seconds:.3f} | {probe:.4f} | {100 * probe / whole:.3f} % |")
    print(f"\nConstructor and 100 steps: {whole:.1f} s.")


if __name__ == "__main__":
    main()
