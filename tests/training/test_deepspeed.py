"""ZeRO (DeepSpeed) on two CPU processes trains, saves and resumes what one process does.

DeepSpeed is not among the development packages: accelerate imports it wherever there is one, which
every other test would pay for. `.ci/run` installs it into a folder of its own; by hand that is

    pip install --no-deps --target .venv/deepspeed deepspeed hjson ninja py-cpuinfo msgpack einops
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import CASES, collate
from tiny_trainers import TRAINER_OPTIONS, Recorder, accuracy
from torch import Tensor
from transformers import AutoModelForCausalLM, EarlyStoppingCallback

from hf_distill import (
    BaseModelTeacher,
    DistillationConfig,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HiddenStates,
    ModelTeacher,
    OnPolicyConfig,
    OnPolicyDistillationTrainer,
    WeightDecay,
)
from hf_distill.models.sharding import gathered_parameters, is_partitioned

FOLDER = Path(sys.prefix) / "deepspeed"
ENVIRONMENT = {"PYTHONPATH": str(FOLDER), "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "false"}
"""With ACCELERATE_USE_CPU there would be DDP, and no word of it."""
LOGITS = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0)
EVERYTHING = LOGITS + HiddenStates()
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 1}
RUNS: dict[str, dict[str, Any]] = {
    "stage 2": {"stage": 2, "objective": EVERYTHING + 0.1 * WeightDecay()},
    "accumulated": {"objective": EVERYTHING, "gradient_accumulation_steps": 2, "batch": 2},
    "resumed": {"objective": EVERYTHING, "resumed": True, **CHECKPOINTS},
    "resumed, stage 2": {"stage": 2, "objective": EVERYTHING, "resumed": True, **CHECKPOINTS},
    "best": {
        "objective": EVERYTHING,
        "callbacks": [EarlyStoppingCallback(2)],
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "max_steps": 30,
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        **CHECKPOINTS,
    },
    "adapted": {"objective": EVERYTHING, "peft_config": LoraConfig(task_type=TaskType.SEQ_CLS)},
    "its own teacher": {"case": "causal_lm", "objective": LOGITS, "adapters_off": True},
    "sharded teacher": {"objective": EVERYTHING, "shard": True},
    "language": {"case": "causal_lm", "objective": LOGITS},
    "language, loaded in pieces": {
        "case": "causal_lm",
        "objective": EVERYTHING,
        "loaded": True,
        "activation_checkpointing": True,
    },
    "a head with a bias": {"case": "masked_lm", "objective": LOGITS},
    "an adapted head": {
        "case": "causal_lm",
        "objective": LOGITS,
        "peft_config": LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=["lm_head"]),
    },
    "on its own text": {
        "case": "causal_lm",
        "objective": LOGITS,
        "cls": OnPolicyDistillationTrainer,
        "lmbda": 1.0,
        "prompt_length": 3,
        "max_completion_length": 4,
        "generation_temperature": 0.0,
    },
    "half precision": {
        "case": "semantic_segmentation",
        "objective": LOGITS,
        "bf16": True,
        "close": 1e-2,
    },
    "evaluated first": {"case": "causal_lm", "objective": LOGITS, "max_steps": 0},
}
IN_PIECES = {
    "language",
    "language, loaded in pieces",
    "a head with a bias",
    "on its own text",
    "its own teacher",
    "evaluated first",
}
"""The losses of these need no logits of a whole batch."""


def _zero(stage: int) -> dict[str, Any]:
    """A DeepSpeed configuration that keeps no parameter whole, however small."""
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {
        **dict.fromkeys((*sizes, "gradient_clipping"), "auto"),
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
    }


def begin() -> None:
    """Connect the processes, by gloo alone: what DeepSpeed has for CPUs it would compile first."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")


def train_all(folder: str, models: str) -> None:
    """Every run, by one process or by two with ZeRO, eight examples a step."""
    together = "WORLD_SIZE" in os.environ
    if together:
        begin()
    for name, run in RUNS.items():
        _train(Path(folder) / name, Path(models), name, dict(run), together)


def _train(folder: Path, models: Path, name: str, run: dict[str, Any], together: bool) -> None:
    stage, batch = run.pop("stage", 3), run.pop("batch", 4)
    run.pop("close", None)
    shard, loaded, resumed = (run.pop(key, False) for key in ("shard", "loaded", "resumed"))
    adapters_off = run.pop("adapters_off", False)
    head = run.pop("case", "sequence_classification")
    case, cls = CASES[head], run.pop("cls", DistillationTrainer)
    given = {key: run.pop(key) for key in TRAINER_OPTIONS if key in run}
    if head == "sequence_classification":
        given["compute_metrics"] = accuracy
    record = Recorder()
    given["callbacks"] = [record, *given.get("callbacks", [])]
    settings = {
        "per_device_train_batch_size": batch if together else 2 * batch,
        "per_device_eval_batch_size": 2,
        "train_sampling_strategy": "sequential",
        "max_steps": 3,
        "learning_rate": 0.1,
        "optim": "sgd",
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **run,
    }
    config = OnPolicyConfig if cls is OnPolicyDistillationTrainer else DistillationConfig

    def make() -> Any:
        """A trainer; its arguments come first, as in a user's script: they switch ZeRO on."""
        args = config(str(folder), **settings, deepspeed=_zero(stage) if together else None)
        student, teacher = case.models(torch.float32)
        if loaded:
            load = AutoModelForCausalLM.from_pretrained
            student, teacher = (load(models / who, dtype=torch.float32) for who in ("s", "t"))
            spread = map(is_partitioned, (*student.parameters(), *teacher.parameters()))
            assert set(spread) == {together}
        teaches: Any = ModelTeacher(teacher, shard=shard and together)
        if adapters_off:
            adapter = LoraConfig(task_type=TaskType.CAUSAL_LM, init_lora_weights=False)
            torch.manual_seed(0)
            student = get_peft_model(student, adapter)
            teaches = BaseModelTeacher(student)
        return cls(
            student,
            args,
            collate,
            case.data(dtype=torch.float32),
            case.data(7, dtype=torch.float32),
            teacher_model=teaches,
            **given,
        )

    ours = make()
    assert ours.is_deepspeed_enabled == together
    assert ours.step.lazy_logits == (
        name in IN_PIECES or (name == "an adapted head" and not together)
    )
    if settings["max_steps"]:
        ours.train()
        if together and stage == 3:
            assert not any(p.numel() for p in ours.model.parameters()), "each would hold it all"
    if resumed and together:
        record.logs.clear()
        ours = make()
        ours.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    ours.evaluate()
    ours.save_model(str(folder / "saved"))
    with gathered_parameters((*ours.model.parameters(), *ours.projections.parameters())):
        if ours.is_world_process_zero():
            kept = {f"student.{n}": p.detach() for n, p in ours.model.named_parameters()}
            kept |= {f"projections.{n}": p.detach() for n, p in ours.projections.named_parameters()}
            kept = {n: p.clone().contiguous() for n, p in kept.items()}
            save_file(kept, folder / "end.safetensors")
            (folder / "log.json").write_text(json.dumps(record.logs))


pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("deepspeed"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None and not FOLDER.is_dir(),
        reason="DeepSpeed is not installed",
    ),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of the same runs by one process and by two."""
    models, alone, together = (tmp_path_factory.mktemp(n) for n in ("models", "alone", "together"))
    for name, model in zip("st", CASES["causal_lm"].models(torch.float32), strict=True):
        model.save_pretrained(models / name)
    launch(train_all, together, models, processes=2, environment=ENVIRONMENT)
    launch(train_all, alone, models)
    return alone, together


def _end(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / name / "end.safetensors")


def _log(folder: Path, name: str) -> list[dict[str, float]]:
    """What was logged, without what depends on the clock or on where a run was resumed."""
    found = json.loads((folder / name / "log.json").read_text())
    ignored = ("runtime", "per_second", "preparation_time", "flos", "train_loss")
    return [{k: v for k, v in log.items() if not k.endswith(ignored)} for log in found]


@pytest.mark.parametrize("name", RUNS)
def test_zero_trains_what_one_process_trains(runs: tuple[Path, Path], name: str) -> None:
    """Losses of empty weights, gradients that are lost, projections that only one process trains:
    the weights, the losses and the figures of both models differ from those of one process."""
    one, two = (_end(folder, name) for folder in runs)
    close = RUNS[name].get("close", 1e-6)
    assert one.keys() == two.keys()
    for key, value in two.items():
        torch.testing.assert_close(value.float(), one[key], rtol=10 * close, atol=close)
    expected, found = (_log(folder, name) for folder in runs)
    expected = expected[-len(found) :]  # of a resumed run, what came after that
    assert found
    for log, other in zip(found, expected, strict=True):
        assert log.keys() == other.keys()
        assert log == pytest.approx(other, rel=max(close, 1e-4), abs=close)


@pytest.mark.parametrize("name", RUNS)
def test_what_is_saved_is_the_plain_student(runs: tuple[Path, Path], name: str) -> None:
    """A published folder of empty tensors, or one with projections in it."""
    saved = [file for file in runs[1].joinpath(name, "saved").iterdir() if file.is_file()]
    (weights,) = [file for file in saved if file.suffix == ".safetensors"]
    expected = load_file(runs[0] / name / "saved" / weights.name)
    found = load_file(weights)
    left_out = expected.keys() - found.keys()  # PEFT saves what was adapted, where it is whole
    assert all(key.endswith("base_layer.weight") for key in left_out)
    close = RUNS[name].get("close", 1e-6)
    for key, value in found.items():
        torch.testing.assert_close(value.float(), expected[key], rtol=10 * close, atol=close)


@pytest.mark.parametrize("name", ["resumed", "resumed, stage 2", "best"])
def test_checkpoints_hold_the_projections(runs: tuple[Path, Path], name: str) -> None:
    """Empty projections in a checkpoint: the resumed run starts with new ones."""
    for step in (1, 2, 3):
        part = Path(name) / f"checkpoint-{step}" / "distillation.safetensors"
        found, expected = (load_file(folder / part) for folder in (runs[1], runs[0]))
        assert found.keys() == expected.keys()
        assert found
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)
