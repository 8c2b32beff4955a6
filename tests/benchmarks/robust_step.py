"""What a step of adversarial training costs against its forwards and backwards in a bare loop.

Both do the same passes: K forwards of the student and K backwards by the input alone, one forward
and one backward of the loss on the perturbed pictures; RSLAD adds a forward of the teacher and a
pass of the plain pictures. Run it on a quiet machine:

    python tests/benchmarks/robust_step.py

It prints a Markdown table (medians over the rounds; the ratio is the median of the paired ratios).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill import DistillationConfig, DistillationTrainer, adversarial_training, rslad

EPSILON, CLASSES = 0.1, 10
Batch = dict[str, Tensor]


def classifier(layers: int, hidden: int, pixels: int) -> nn.Module:
    config = tf.ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 32),
        intermediate_size=4 * hidden,
        image_size=pixels,
        patch_size=4,
        num_labels=CLASSES,
    )
    return tf.ViTForImageClassification(config)


def batches(number: int, rows: int, pixels: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "pixel_values": torch.rand(rows, 3, pixels, pixels, generator=generator),
            "labels": torch.randint(CLASSES, (rows,), generator=generator),
        }
        for _ in range(number)
    ]


def divergence(target: Tensor, other: Tensor) -> Tensor:
    pair = other.log_softmax(-1), target.log_softmax(-1)
    return F.kl_div(*pair, reduction="batchmean", log_target=True)


def bare_step(
    student: nn.Module, teacher: nn.Module, method: str, steps: int
) -> Callable[[Batch], Tensor]:
    """The loop that somebody would write by hand for this very model."""
    size = min(EPSILON, 2.5 * EPSILON / steps)

    def step(batch: Batch) -> Tensor:
        plain, labels = batch["pixel_values"], batch["labels"]
        if method == "rslad":
            with torch.no_grad():
                target = teacher(pixel_values=plain).logits
            ours = student(pixel_values=plain).logits
            x = plain + 0.001 * torch.randn_like(plain)
        else:
            x = plain + EPSILON * (2 * torch.rand_like(plain) - 1)
        student.eval()
        for _ in range(steps):
            x.requires_grad_()
            logits = student(pixel_values=x).logits
            if method == "rslad":
                loss = divergence(target, logits)
            else:
                loss = F.cross_entropy(logits, labels)
            (gradient,) = torch.autograd.grad(loss, [x])
            x = x.detach() + size * gradient.sign()
            x = plain + (x - plain).clamp(-EPSILON, EPSILON)
        student.train()
        logits = student(pixel_values=x).logits
        if method == "rslad":
            loss = 5 / 6 * divergence(target, logits) + divergence(target, ours) / 6
        else:
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        return loss.detach()

    return step


def measure(method: str, steps: int, given: argparse.Namespace) -> tuple[float, float, float]:
    """Milliseconds of ours and of the bare loop, and their ratio."""
    torch.manual_seed(0)
    data = batches(8, given.rows, given.pixels)
    teacher = classifier(2 * given.layers, 2 * given.hidden, given.pixels).eval()
    students = [classifier(given.layers, given.hidden, given.pixels).train() for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    make = {"adversarial_training": adversarial_training, "rslad": rslad}[method]
    with tempfile.TemporaryDirectory() as folder:
        arguments = DistillationConfig(folder, report_to="none", dataloader_pin_memory=False)
        trainer: Any = DistillationTrainer(
            students[0],
            arguments,
            train_dataset=[{k: v[0] for k, v in data[0].items()}],
            teacher_model=teacher if method == "rslad" else None,
            objective=make(EPSILON, steps=steps),
        )
    bare = bare_step(students[1], teacher, method, steps)
    optimizers = [torch.optim.AdamW(student.parameters(), lr=1e-5) for student in students]

    def ours(batch: Batch) -> Tensor:
        counts = trainer._get_num_items_in_batch([batch], arguments.device)
        return trainer.training_step(students[0], batch, counts)

    times: list[list[float]] = [[], []]
    for turn in range(given.rounds + 2):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            (ours if which == 0 else bare)(data[turn % len(data)])
            optimizers[which].step()
            optimizers[which].zero_grad()
            if turn >= 2:
                times[which].append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    mine, theirs = (1000 * statistics.median(t) for t in times)
    return mine, theirs, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=96)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tf.logging.set_verbosity_error()
    print(
        f"{platform.processor() or platform.machine()}, {given.threads} threads, torch "
        f"{torch.__version__}, {given.rounds} rounds; student ViT of {given.layers} layers of "
        f"{given.hidden}, teacher twice as deep and wide, {given.rows} pictures of "
        f"{given.pixels} x {given.pixels}\n"
    )
    print("| method | K | ours, ms | bare loop, ms | ratio |\n| :-- | --: | --: | --: | --: |")
    for method in ("adversarial_training", "rslad"):
        for steps in (1, 3, 7):
            mine, theirs, ratio = measure(method, steps, given)
            print(f"| {method} | {steps} | {mine:.1f} | {theirs:.1f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
