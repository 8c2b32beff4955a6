"""Two processes (DDP): what a single process cannot show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch
from peft import LoraConfig, TaskType
from safetensors.torch import load_file, save_file
from tiny_models import CASES
from tiny_trainers import Recorder, accuracy, config, trainer, weights
from torch import Tensor
from transformers import EarlyStoppingCallback

from hf_distill import ForwardKL, HardLabels, HiddenStates, ModelTeacher

EVERYTHING = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0) + HiddenStates()
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "max_steps": 30,
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
}
RUNS: dict[str, dict[str, Any]] = {
    "projections": {"objective": EVERYTHING},
    "best": {"objective": EVERYTHING, "callbacks": [EarlyStoppingCallback(2)], **BEST},
    "adapted": {
        "objective": EVERYTHING,
        "peft_config": LoraConfig(task_type=TaskType.SEQ_CLS, r=4),
    },
    "head unused": {"objective": 1.0 * HiddenStates()},
    "sharded teacher": {"objective": EVERYTHING, "shard": True},
    "checkpointed": {"objective": EVERYTHING, "activation_checkpointing": True},
    "compiled": {
        "objective": EVERYTHING,
        "torch_compile": True,
        "torch_compile_backend": "eager",
        "max_steps": 1,
    },
}
NAME = "sequence_classification"


def train_all(folder: str, batch: str) -> None:
    """Every run, eight examples a step; each process writes down what it has in the end."""
    for name, run in RUNS.items():
        options = dict(run)
        if batch == "8":  # the reference is not compiled
            options.pop("torch_compile", None)
            options.pop("torch_compile_backend", None)
        record = Recorder()
        callbacks = [record, *options.pop("callbacks", [])]
        given = {k: options.pop(k) for k in ("objective", "peft_config") if k in options}
        case = CASES[NAME]
        student, model = case.models()
        teacher = ModelTeacher(model, shard=options.pop("shard", False))
        whole = sum(p.numel() for p in model.parameters())
        ours = trainer(
            Path(folder) / name,
            model=student,
            teacher_model=teacher,
            train_dataset=case.data(),
            eval_dataset=case.data(7),
            callbacks=callbacks,
            compute_metrics=accuracy,
            **given,
            args=config(
                Path(folder) / name,
                per_device_train_batch_size=int(batch),
                per_device_eval_batch_size=2,
                train_sampling_strategy="sequential",
                **options,
            ),
        )
        ours.train()
        ignored = ("runtime", "per_second", "preparation_time", "flos")
        figures = [
            {key: value for key, value in log.items() if not key.endswith(ignored)}
            for log in (*record.logs, ours.evaluate())
        ]
        rank = ours.args.process_index
        kept = {f"student.{key}": value for key, value in weights(ours.model).items()}
        kept.update({f"projections.{k}": v for k, v in weights(ours.projections).items()})
        save_file(kept, Path(folder) / f"{name} {rank}.safetensors")
        (Path(folder) / f"{name} {rank}.json").write_text(json.dumps(figures))
        if name == "sharded teacher" and ours.args.world_size > 1:
            parameters: list[Any] = list(model.parameters())
            held = sum(p.to_local().numel() for p in parameters)
            assert held < 0.55 * whole, "each process would hold more than its half of the teacher"


# peft 0.21 reads an attribute that transformers 5.23 has renamed
pytestmark = [
    pytest.mark.xdist_group("processes"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of the same runs by one process and by two."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    launch(train_all, together, "4", processes=2, fresh=True)
    train_all(str(alone), "8")
    return alone, together


def _weights(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / f"{name} {rank}.safetensors")


def _figures(folder: Path, name: str, rank: int = 0) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((folder / f"{name} {rank}.json").read_text())
    return found


@pytest.mark.parametrize("name", RUNS)
def test_both_processes_hold_the_same_student_and_projections(
    runs: tuple[Path, Path], name: str
) -> None:
    """Projections outside DDP's sight drift apart, each process training its own."""
    one, other = (_weights(runs[1], name, rank) for rank in (0, 1))
    assert any(key.startswith("projections.") for key in one)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_do_what_one_does(runs: tuple[Path, Path], name: str) -> None:
    """In float64: the losses, the metrics of both models on 7 rows, the weights after training."""
    alone, together = (_figures(folder, name) for folder in runs)
    assert len(alone) == len(together)
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        assert two == pytest.approx(one, rel=1e-6, abs=1e-9)
    expected = _weights(runs[0], name)
    for key, value in _weights(runs[1], name).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-7)


def test_early_stopping_and_the_best_checkpoint(runs: tuple[Path, Path]) -> None:
    """Processes that stop at different steps wait for each other for ever."""
    figures = _figures(runs[1], "best")
    losses = [log["eval_loss"] for log in figures if "eval_loss" in log]
    assert 3 <= len(losses) - 1 < 30
    assert losses[-1] == pytest.approx(min(losses), rel=1e-9)
    best = losses.index(min(losses)) + 1
    saved = load_file(runs[1] / "best" / f"checkpoint-{best}" / "distillation.safetensors")
    held = _weights(runs[1], "best", rank=1)
    for key, value in saved.items():
        assert torch.equal(held[key], value)
