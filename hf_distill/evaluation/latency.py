"""Latency, throughput and size on disk."""

import contextlib
import dataclasses
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_distill.models.batches import batch_size
from hf_distill.models.modes import evaluating

WEIGHTS = (
    ("*.safetensors",),
    ("pytorch_model*.bin", "adapter_model*.bin"),
    ("*.onnx", "*.onnx_data", "*.onnx.data"),
)
"""Files of weights, by format; of a folder with several formats only the first one counts."""


@dataclass(frozen=True)
class Speed:
    """Latency and throughput of one forward pass without gradients.

    Attributes:
        latency_ms: Milliseconds for the batch: the median over the repeats.
        p10_ms: The 10th percentile of the repeats; ``p90_ms``: the 90th.
        throughput: Examples per second: batch size / latency.
        threads: CPU threads of torch's operators; None: another device computes.
        hardware: The CPU and its cores, or the name of the GPU.
        dtype: Of most of the weights: float32, bfloat16, int8, ….
    """

    latency_ms: float
    p10_ms: float
    p90_ms: float
    throughput: float
    batch_size: int
    repeats: int
    threads: int | None
    hardware: str
    dtype: str

    def on_card(self) -> tuple[dict[str, float], dict[str, Any]]:
        """A row of ``measured``, and ``measured_on``, as `StudentCard` has them."""
        told = dataclasses.asdict(self)
        row = ("latency_ms", "p10_ms", "p90_ms", "throughput")
        on = ("hardware", "threads", "batch_size", "dtype", "repeats")
        return {key: told[key] for key in row}, {key: told[key] for key in on}


def measure_speeds(
    pairs: Mapping[str, tuple[nn.Module, Mapping[str, Tensor]]],
    *,
    repeats: int = 20,
    warmup: int = 3,
) -> dict[str, Speed]:
    """Time several models, in turn in every round, so that other load affects all of them alike.

    Args:
        pairs: Name -> the model, on its device, and a batch of inputs without labels.
        repeats: Rounds that count, after ``warmup`` rounds that do not.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(
            f"Expected at least 1 repeat and no negative warm-up, got repeats={repeats}, "
            f"warmup={warmup}."
        )
    placed = {
        name: (model, {key: value.to(_device(model)) for key, value in batch.items()})
        for name, (model, batch) in pairs.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in pairs}
    for _ in range(warmup + repeats):
        for name, (model, batch) in placed.items():
            seconds[name].append(_seconds(model, batch))
    return {
        name: _speed(model, batch_size(batch), seconds[name][warmup:])
        for name, (model, batch) in placed.items()
    }


def size_on_disk(folder: str | Path) -> int:
    """Bytes of the weights in a model's folder itself (see `WEIGHTS`); ValueError without any."""
    for patterns in WEIGHTS:
        found = {path for pattern in patterns for path in Path(folder).glob(pattern)}
        if found:
            return sum(path.stat().st_size for path in found)
    raise ValueError(f"Expected a folder with weights (model.safetensors, …), got {folder}.")


def hardware_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type.upper()
    name = platform.processor() or platform.machine() or "CPU"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        name = next(names, name)
    return f"{name}, {os.cpu_count()} cores"


def _speed(model: nn.Module, size: int, seconds: Sequence[float]) -> Speed:
    low, middle, high = (1000 * float(value) for value in np.quantile(seconds, (0.1, 0.5, 0.9)))
    device = _device(model)
    return Speed(
        latency_ms=middle,
        p10_ms=low,
        p90_ms=high,
        throughput=1000 * size / middle,
        batch_size=size,
        repeats=len(seconds),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        hardware=hardware_of(device),
        dtype=_dtype(model),
    )


def _seconds(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    device = _device(model)
    with torch.inference_mode(), evaluating(model):
        _wait(device)
        start = time.perf_counter()
        model(**batch)
        _wait(device)
        return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _dtype(model: nn.Module) -> str:
    sizes: Counter[torch.dtype] = Counter()
    for value in model.parameters():
        sizes[value.dtype] += value.numel()
    return str(sizes.most_common(1)[0][0]).removeprefix("torch.") if sizes else "none"
