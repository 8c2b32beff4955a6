"""Divergences from hidden states and heads: ours, whole logits, TRL's and Liger's kernels, in turn.

    pip install --no-deps --target peers trl==1.16.0 liger-kernel==0.8.5
    python tests/benchmarks/linear_divergence.py --peers peers

One step is a value and the gradients of the student's hidden states and head; the teacher's are
fixed. Each round runs every variant once; times are medians over the rounds, memory is the most
that a step takes besides its inputs (the peak of the resident set, or of the GPU's allocator).
``products`` is the bare minimum: the four matrix products of such a step, and nothing else.
Gradients that differ by more than 2 % are told. It prints a Markdown table.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_distill.losses.distribution import forward_kl, jensen_shannon
from hf_distill.losses.fused import LazyLogits, linear_loss

CPU = ((49_152, 576, 576), (151_936, 896, 896), (151_936, 896, 2_048))
GPU = ((128_256, 4_096, 4_096), (151_936, 2_048, 3_584))
"""(vocabulary, student's width, teacher's width)"""
MOST = 10 * 2**30
"""No variant is run that would take more than this by its whole logits."""
BETA = {"KL": 0.0, "JSD": 0.5}
Step = Callable[[], Tensor]


class Inputs:
    """Hidden states and heads of both models."""

    def __init__(self, items: int, shape: tuple[int, int, int], device: str, dtype: torch.dtype):
        self.vocabulary, own, other = shape
        draw = torch.Generator().manual_seed(0)

        def normal(*size: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(*size, generator=draw)).to(device, dtype)

        self.student = normal(items, own).requires_grad_()
        self.weight = normal(self.vocabulary, own, scale=2 * own**-0.5).requires_grad_()
        self.teacher = normal(items, other)
        self.taught = normal(self.vocabulary, other, scale=2 * other**-0.5)
        self.labels = torch.zeros(items, dtype=torch.long, device=device)

    def clear(self) -> None:
        self.student.grad = self.weight.grad = None


def divergence(kind: str, student: Tensor, teacher: Tensor) -> Tensor:
    if kind == "KL":
        return forward_kl(student, teacher)
    return jensen_shannon(student, teacher, BETA[kind])


def variants(inputs: Inputs, kind: str) -> dict[str, Step]:
    """Each gives the mean over the items."""
    count = len(inputs.student)

    def ours() -> Tensor:
        return linear_loss(
            LazyLogits((inputs.student,), (inputs.weight,)),
            LazyLogits((inputs.teacher,), (inputs.taught,)),
            lambda s, t, rows: divergence(kind, s, t).sum() / count,
        )

    def plain() -> Tensor:
        with torch.no_grad():
            teacher = inputs.teacher @ inputs.taught.t()
        return divergence(kind, inputs.student @ inputs.weight.t(), teacher).mean()

    found: dict[str, Step] = {"ours": ours, "plain": plain}
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        def trl() -> Tensor:
            value: Tensor = ChunkedDivergenceFunction.apply(
                inputs.student,
                inputs.weight,
                None,
                inputs.teacher,
                inputs.taught,
                None,
                BETA[kind],
            )[0]
            return value.mean()

        found["TRL"] = trl
    except ImportError as error:
        print(f"TRL: {error}", file=sys.stderr)
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA[kind], compiled=False
        )

        def liger() -> Tensor:
            value: Tensor = loss(
                inputs.student, inputs.weight, inputs.teacher, inputs.taught, inputs.labels
            )
            return value

        found["Liger"] = liger
    except ImportError as error:
        print(f"Liger: {error}", file=sys.stderr)
    return found


def products(inputs: Inputs) -> Step:
    """The four products of a step, a few items at a time so that they fit."""
    step = max(1, 2**28 // inputs.vocabulary)

    def run() -> Tensor:
        with torch.no_grad():
            total = torch.zeros_like(inputs.weight)
            for rows in range(0, len(inputs.student), step):
                hidden = inputs.student[rows : rows + step]
                logits = hidden @ inputs.weight.t()
                inputs.teacher[rows : rows + step] @ inputs.taught.t()
                logits @ inputs.weight
                total.addmm_(logits.t(), hidden)
        return total

    return run


def synchronised(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(inputs: Inputs, step: Step, device: str) -> float:
    inputs.clear()
    start = synchronised(device)
    value = step()
    if value.requires_grad:
        value.backward()
    return synchronised(device) - start


def status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{key}:\s+(\d+) kB", text)
    return 0 if found is None else int(found[1]) * 1024


def watched(inputs: Inputs, step: Step, device: str) -> tuple[float, float]:
    """The seconds of a step, and the most bytes that it takes besides its inputs."""
    inputs.clear()
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = timed(inputs, step, device)
        return seconds, torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    seconds = timed(inputs, step, device)
    return seconds, status("VmHWM") - before


def gradients(inputs: Inputs) -> tuple[float, ...]:
    """What a step has computed, to be compared."""
    found = (inputs.student.grad, inputs.weight.grad)
    return tuple(gradient.norm().item() for gradient in found if gradient is not None)


def rows(items: int, shape: tuple[int, int, int], options: Any) -> list[str]:
    inputs = Inputs(items, shape, options.device, getattr(torch, options.dtype))
    lines = []
    for kind in BETA:
        steps = variants(inputs, kind)
        if 6 * 4 * items * inputs.vocabulary > MOST:
            del steps["plain"]
        steps["products"] = products(inputs)
        times: dict[str, list[float]] = {name: [] for name in steps}
        taken: dict[str, float] = {}
        norms: dict[str, tuple[float, ...]] = {}
        for _ in range(options.rounds):
            for name, step in steps.items():
                seconds, most = watched(inputs, step, options.device)
                times[name].append(seconds)
                taken[name] = max(most, taken.get(name, 0.0))
                norms[name] = gradients(inputs)
        del taken["products"], norms["products"]
        for name, found in norms.items():
            if any(abs(a - b) > 2e-2 * b for a, b in zip(found, norms["ours"], strict=True)):
                print(f"{name} gives {found}, ours {norms['ours']}", file=sys.stderr)
        middle = {name: statistics.median(found) for name, found in times.items()}
        for name in taken:
            ratios = [a / b for a, b in zip(times["ours"], times[name], strict=True)]
            lines.append(
                f"| {kind} | {items:,} | {shape[0]:,} | {shape[1]:,} ← {shape[2]:,} | {name} "
                f"| {1000 * middle[name]:,.0f} | {taken[name] / 2**20:,.0f} "
                f"| {statistics.median(ratios):.2f} | {taken['ours'] / taken[name]:.2f} "
                f"| {middle['products'] / middle[name]:.0%} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=None, help="folder with trl and liger_kernel")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--items", type=int, nargs="+", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", type=int, nargs="+", default=None, help="which, by index")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peers:
        sys.path.insert(0, options.peers)
    cuda = options.device == "cuda"
    options.dtype = options.dtype or ("bfloat16" if cuda else "float32")
    shapes = GPU if cuda else CPU
    machine = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    print(f"{machine}, {options.threads} threads, {options.dtype}, {options.rounds} rounds\n")
    print(
        "| | items | vocabulary | widths | by | ms | MiB | ours / it, time | ours / it, memory "
        "| of the products' speed |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for index in range(len(shapes)) if options.shapes is None else options.shapes:
        for items in options.items or ((1_024, 8_192) if cuda else (256, 1_024, 4_096)):
            rows(items, shapes[index], options)


if __name__ == "__main__":
    main()
