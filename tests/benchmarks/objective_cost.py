"""What each objective adds to a step, as a ratio to ForwardKL on the same batches, in turn.

    python tests/benchmarks/objective_cost.py --threads 1

A text classifier (teacher 4 layers of 256, student 2 of 128, 8 heads each, batch 16 x 64) and a
picture classifier (two ResNets, batch 32 x 32 x 32). It prints a Markdown table: the median over
the rounds of the paired ratios of a training step (teacher, student, backward), and for text the
bytes kept for the backward pass beyond ForwardKL's, in units of one layer's attention maps.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers as tf
from torch import Tensor
from transformers import TrainerCallback

import hf_distill as hd
from hf_distill import DistillationConfig, DistillationTrainer, Objective

TEXT = (16, 64)
HEADS = 8
TEXT_ROWS: dict[str, Objective] = {
    "ReverseKL": hd.ReverseKL(2.0),
    "JensenShannon": hd.JensenShannon(2.0),
    "LogitMSE": hd.LogitMSE(),
    "DecoupledKD": hd.DecoupledKD(),
    "Dist": hd.Dist(),
    "TopKKL": hd.TopKKL(k=4),
    "HardTeacherLabels": hd.HardTeacherLabels(),
    "Reconstruction": hd.ProbabilityMSE(),
    "HiddenStates": hd.HiddenStates(),
    "HiddenStates, emd": hd.HiddenStates("emd"),
    "PKD": hd.PKD("last"),
    "TokenGram": hd.TokenGram(),
    "FSP": hd.FSP(),
    "RKD": hd.RKD(),
    "SimilarityPreserving": hd.SimilarityPreserving(),
    "CKA": hd.CKA(),
    "InfoNCE": hd.InfoNCE(),
    "AttentionMaps": hd.AttentionMaps(distance="kl"),
    "MiniLM": hd.MiniLM(),
    "MiniLMv2": hd.MiniLMv2(),
    "TinyBERT": hd.TinyBERT(),
    "Jacobian": hd.Jacobian(saliency=True),
}
PICTURE_ROWS: dict[str, Objective] = {
    "Hint": hd.Hint(),
    "AttentionTransfer": hd.AttentionTransfer(),
    "NST": hd.NST(),
    "MultiScale": hd.ReviewKD(),
    "VID": hd.VID(),
    "FSP": hd.FSP(),
    "RKD": hd.RKD(),
    "SimilarityPreserving": hd.SimilarityPreserving(),
    "Jacobian": hd.Jacobian(),
}


def bert(layers: int, hidden: int) -> Any:
    config = tf.BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * hidden,
        num_labels=10,
        vocab_size=4096,
    )
    return tf.BertForSequenceClassification(config)


def resnet(width: int) -> Any:
    config = tf.ResNetConfig(
        layer_type="basic",
        embedding_size=width,
        hidden_sizes=[width, 2 * width],
        depths=[2, 2],
        num_labels=10,
    )
    return tf.ResNetForImageClassification(config)


def texts() -> list[dict[str, Any]]:
    ids = torch.randint(5, 4096, (4 * TEXT[0], TEXT[1]))
    return [{"input_ids": row, "labels": int(i % 10)} for i, row in enumerate(ids)]


def pictures() -> list[dict[str, Any]]:
    pixels = torch.randn(4 * 32, 3, 32, 32)
    return [{"pixel_values": row, "labels": int(i % 10)} for i, row in enumerate(pixels)]


class Saved:
    """Counts the bytes that autograd keeps."""

    def __init__(self) -> None:
        self.total = 0

    def pack(self, tensor: Tensor) -> Tensor:
        self.total += tensor.numel() * tensor.element_size()
        return tensor

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
            yield


class Clock(TrainerCallback):
    """Seconds of each training step."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_step_begin(self, *arguments: Any, **others: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *arguments: Any, **others: Any) -> None:
        self.steps.append(time.perf_counter() - self.started)


class Bench:
    """One trainer per objective over the same two models and batches.

    Args:
        kind: ``text`` or ``picture``.
        folder: For the trainers.
    """

    def __init__(self, kind: str, folder: str):
        torch.manual_seed(0)
        self.kind, self.folder = kind, folder
        text = kind == "text"
        self.models = (bert(2, 128), bert(4, 256)) if text else (resnet(16), resnet(32))
        self.data = texts() if text else pictures()
        self.batch = TEXT[0] if text else 32

    def step(self, objective: Objective) -> tuple[float, int]:
        """Seconds of a step (the last of three), and the bytes kept by one forward."""
        student, teacher = self.models
        clock, saved = Clock(), Saved()
        arguments = DistillationConfig(
            self.folder,
            use_cpu=True,
            max_steps=3,
            per_device_train_batch_size=self.batch,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            learning_rate=0.0,
        )
        trainer = DistillationTrainer(
            student,
            arguments,
            train_dataset=self.data,
            teacher_model=teacher,
            objective=objective,
            callbacks=[clock],
        )
        trainer.train()
        batch = trainer._prepare_inputs(trainer.data_collator(self.data[: self.batch]))
        with saved.counting():
            trainer.compute_loss(trainer.model.train(), batch)
        return clock.steps[-1], saved.total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tf.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    maps = TEXT[0] * HEADS * TEXT[1] ** 2 * 4
    print("| head | objective | step, against ForwardKL | kept, in attention maps of one layer |")
    print("| :-- | :-- | --: | --: |")
    for kind, rows in (("text", TEXT_ROWS), ("picture", PICTURE_ROWS)):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(kind, folder)
            ratios: dict[str, list[float]] = {name: [] for name in rows}
            kept: dict[str, float] = {}
            for _ in range(options.rounds):
                for name, objective in rows.items():
                    base, base_kept = bench.step(hd.ForwardKL(2.0))
                    seconds, bytes_kept = bench.step(objective)
                    ratios[name].append(seconds / base)
                    kept[name] = (bytes_kept - base_kept) / maps
            for name, found in ratios.items():
                memory = f"{kept[name]:+.2f}" if kind == "text" else "–"
                print(
                    f"| {kind} | {name} | {statistics.median(found):.2f} | {memory} |", flush=True
                )
    machine = platform.processor() or platform.machine()
    print(f"\n{machine}, {options.threads} thread(s), torch {torch.__version__}")


if __name__ == "__main__":
    main()
