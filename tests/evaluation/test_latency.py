"""Speed and size of finished models."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hf_distill.evaluation.latency import measure_speeds, size_on_disk


class Sleeper(nn.Module):
    """Takes the time that it is told; ten times that where gradients are kept or dropout is on."""

    def __init__(self, seconds: float, calls: list[float]):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        self.seconds, self.calls = seconds, calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(self.seconds)
        slow = torch.is_grad_enabled() or self.training
        time.sleep(self.seconds * (10 if slow else 1))
        return x


def test_speed_of_one_model() -> None:
    """Milliseconds and seconds, or a batch and its examples, are easily confused."""
    model = Sleeper(0.01, [])
    batch = {"x": torch.zeros(4, 2)}
    found = measure_speeds({"it": (model, batch)}, repeats=5, warmup=2)["it"]
    assert len(model.calls) == 7
    assert 10 <= found.latency_ms < 60
    assert found.p10_ms <= found.latency_ms <= found.p90_ms
    assert found.throughput == pytest.approx(4 / found.latency_ms * 1000)
    assert (found.batch_size, found.repeats, found.dtype) == (4, 5, "bfloat16")
    assert found.threads == torch.get_num_threads()
    assert "cores" in found.hardware
    assert model.training, "the model is left as it was"
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


def test_models_take_turns() -> None:
    """A load that comes in the middle would make the one that is measured second look slow."""
    calls: list[float] = []
    batch = {"x": torch.zeros(1)}
    pairs: dict[str, tuple[nn.Module, dict[str, Tensor]]] = {
        name: (Sleeper(seconds, calls), batch) for name, seconds in (("a", 0.001), ("b", 0.002))
    }
    found = measure_speeds(pairs, repeats=3, warmup=1)
    assert calls == [0.001, 0.002] * 4
    assert found["a"].latency_ms < found["b"].latency_ms


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": -1}])
def test_speed_of_no_run(options: dict[str, int]) -> None:
    """A median of nothing is NaN, which a card then shows."""
    with pytest.raises(ValueError, match="Expected at least 1 repeat"):
        measure_speeds({"it": (Sleeper(0, []), {"x": torch.zeros(1)})}, **options)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"model.safetensors": 7, "pytorch_model.bin": 9, "training_args.bin": 5}, 7),
        ({"model-00001-of-00002.safetensors": 7, "model-00002-of-00002.safetensors": 4}, 11),
        ({"pytorch_model.bin": 9, "training_args.bin": 5, "optimizer.pt": 90}, 9),
        ({"adapter_model.safetensors": 3, "checkpoint-1/model.safetensors": 70}, 3),
        ({"model.onnx": 3, "model.onnx_data": 40}, 43),
    ],
)
def test_size_on_disk(tmp_path: Path, files: dict[str, int], expected: int) -> None:
    """Weights that are counted twice, or an optimizer's state, make a student look large."""
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert size_on_disk(tmp_path) == expected


def test_size_of_a_folder_without_weights(tmp_path: Path) -> None:
    """0 bytes would be printed."""
    with pytest.raises(ValueError, match="Expected a folder with weights"):
        size_on_disk(tmp_path)
