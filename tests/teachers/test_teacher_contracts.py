"""Every kind of teacher: the split of the data changes nothing, a resumed run is the same run, and
the student's files hold nothing of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch
from safetensors.torch import load_file, save_file
from tiny_models import CASES, collate
from tiny_trainers import Recorder, accuracy, same, trainer, weights
from torch import Tensor

from hf_distill import (
    CachedTeacher,
    EMATeacher,
    Ensemble,
    ForwardKL,
    FromTeacher,
    HardLabels,
    HiddenStates,
    HTTPTeacher,
    ModelTeacher,
    write_cache,
)
from hf_distill.teachers.serving import TeacherServer

pytestmark = pytest.mark.xdist_group(
    "teacher_contracts"
)  # fixtures that are expensive are made once

NAME = "sequence_classification"
CASE = CASES[NAME]
SOFT = 0.5 * HardLabels() + 0.5 * ForwardKL()
DEEP = SOFT + HiddenStates()


def teacher_model() -> Any:
    return CASE.models()[1]


def other_model() -> Any:
    model = teacher_model()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def cached(folder: Path, **options: Any) -> CachedTeacher:
    options = {"batch_size": 4, "say": lambda line: None, **options}
    return CachedTeacher(
        write_cache(folder, ModelTeacher(teacher_model()), CASE.data(), collate, **options)
    )


def shared(folder: Path, name: str) -> CachedTeacher:
    return CachedTeacher(folder / name)


WRITTEN: dict[str, dict[str, Any]] = {
    "full": {"hidden_states": True, "dtype": "float32"},
    "half": {"format": {"kind": "full", "dtype": "bfloat16"}, "hidden_states": True},
    "top": {"format": {"kind": "top_k", "k": 2}},
    "drawn": {"format": {"kind": "sampled", "draws": 12}},
}
"""The caches that the teachers below read."""
Make = Callable[[Path, Any], Any]
TEACHERS: dict[str, tuple[Make, Any]] = {
    "model": (lambda folder, student: teacher_model(), DEEP),
    "cache": (lambda folder, student: shared(folder, "full"), DEEP),
    "cache in bfloat16": (lambda folder, student: shared(folder, "half"), DEEP),
    "cache of the likeliest": (lambda folder, student: shared(folder, "top"), SOFT),
    "cache of draws": (lambda folder, student: shared(folder, "drawn"), SOFT),
    "ensemble": (
        lambda folder, student: Ensemble(
            {"one": teacher_model(), "two": shared(folder, "full"), "three": other_model()},
            weights="confidence",
        ),
        SOFT + FromTeacher("one", HiddenStates()) + FromTeacher("two", HiddenStates()),
    ),
    "past student": (lambda folder, student: EMATeacher(student, decay=0.5), DEEP),
    "remote": (lambda folder, student: HTTPTeacher(REMOTE[0]), DEEP),
}
REMOTE: list[str] = []
"""The url of the teacher's server."""


def run(name: str, folder: Path, caches: Path, batch: int, accumulation: int, **options: Any):
    """Train in float64 and give what was logged, and the trainer."""
    make, objective = TEACHERS[name]
    student, _ = CASE.models()
    record = Recorder()
    ours = trainer(
        folder,
        model=student,
        teacher_model=make(caches, student),
        objective=objective,
        train_dataset=CASE.data(),
        eval_dataset=CASE.data(7),
        compute_metrics=accuracy if "of" not in name else None,
        callbacks=[record],
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        **{"max_steps": 3, **options},
    )
    return ours, record


def figures(record: Recorder, evaluated: dict[str, float]) -> dict[str, float]:
    found = {f"{i} {k}": v for i, log in enumerate(record.steps) for k, v in log.items()}
    ignored = ("runtime", "per_second", "preparation_time")
    return {k: v for k, v in {**found, **evaluated}.items() if not k.endswith(ignored)}


def everything(folder: str, caches: str, url: str) -> None:
    """Every teacher on this many processes, eight examples a step."""
    REMOTE[:] = [url]
    for name in TEACHERS:
        ours, record = run(name, Path(folder) / name, Path(caches), 4, 1)
        ours.train()
        told = figures(record, ours.evaluate())
        if ours.args.process_index == 0:
            save_file(weights(ours.model), Path(folder) / f"{name}.safetensors")
            (Path(folder) / f"{name}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("caches")
    for name, options in WRITTEN.items():
        cached(folder / name, **options)
    with TeacherServer(ModelTeacher(teacher_model())) as server:
        REMOTE[:] = [server.url]
        yield folder


@pytest.fixture(scope="module")
def together(caches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    launch(everything, folder, caches, REMOTE[0], processes=2)
    return folder


def close(one: dict[str, float], other: dict[str, float]) -> None:
    assert one.keys() == other.keys()
    assert other == pytest.approx(one, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_split_changes_nothing(name: str, tmp_path: Path, caches: Path, together: Path) -> None:
    """A teacher that depended on the batch would teach something else on two GPUs than on one."""
    whole, first = run(name, tmp_path / "whole", caches, 8, 1)
    whole.train()
    expected = figures(first, whole.evaluate())
    split, second = run(name, tmp_path / "split", caches, 2, 4)
    split.train()
    close(expected, figures(second, split.evaluate()))
    two: dict[str, Tensor] = load_file(together / f"{name}.safetensors")
    close(expected, json.loads((together / f"{name}.json").read_text()))
    for key, value in weights(whole.model).items():
        torch.testing.assert_close(weights(split.model)[key], value, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(two[key], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", TEACHERS)
def test_resume_is_exact_and_files_are_the_students(
    name: str, tmp_path: Path, caches: Path
) -> None:
    """A teacher that begins anew, or that is published with the student."""
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole, _ = run(name, tmp_path / "whole", caches, 4, 1, **saving)
    whole.train()
    again, _ = run(name, tmp_path / "again", caches, 4, 1, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert same(weights(whole.model), weights(again.model))
    held = load_file(tmp_path / "whole" / "checkpoint-3" / "model.safetensors")
    assert held.keys() == CASE.models()[0].state_dict().keys()
