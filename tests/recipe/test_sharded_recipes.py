"""Recipes whose models are in shards, as `accelerate launch` starts them, on two CPU processes."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fsdp_on_cpu import allow_cpu
from launch import launch
from safetensors.torch import load_file
from tiny_recipes import language
from torch.testing import assert_close

from hf_distill.cli import main
from tests.training import test_deepspeed

ON_POLICY = {
    "lmbda": 0.5,
    "prompt_length": 3,
    "max_completion_length": 4,
    "generation_temperature": 0.0,
}
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}
"""What `accelerate launch` makes of recipes/accelerate_configs/fsdp2.yaml."""
ZERO = {
    **test_deepspeed.ENVIRONMENT,
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
}
"""The same of zero3.yaml."""
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None or test_deepspeed.FOLDER.is_dir()
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharded recipes")]


def run(folder: str) -> None:
    """The recipe in a folder, from the command line."""
    if "ACCELERATE_USE_FSDP" in os.environ:
        allow_cpu()
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        test_deepspeed.begin()
    assert main(["train", f"{folder}/recipe.yaml"]) == 0


def written(folder: Path, processes: int, environment: dict[str, str]) -> Path:
    """Eight examples a step, by so many processes."""
    batch = {"per_device_train_batch_size": 8 // processes}
    student = {"from_teacher_layers": 1, "importance": 4}
    language(folder, training=batch, on_policy=ON_POLICY, student=student)
    launch(run, folder, processes=processes, environment=environment)
    return folder / "out"


def figures(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "final" / "report.json").read_text())["models"]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("alone"), 1, {})


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param(FSDP, id="FSDP2"),
        pytest.param(
            ZERO,
            id="ZeRO-3",
            marks=pytest.mark.skipif(not DEEPSPEED, reason="DeepSpeed is not installed"),
        ),
    ],
)
def test_a_recipe_in_shards(alone: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """It would prune empty weights, wait for ever for the samples that one process writes, count no
    parameters, or publish another student than one process does."""
    out = written(tmp_path, 2, environment)
    expected, found = (load_file(folder / "final" / "model.safetensors") for folder in (alone, out))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    models, others = figures(alone), figures(out)
    assert models.keys() == others.keys()
    for name, model in models.items():
        other = others[name]
        assert other.pop("test") == pytest.approx(model.pop("test"), rel=1e-4, abs=1e-5)
        assert {**other, "train_seconds": 0} == {**model, "train_seconds": 0}
