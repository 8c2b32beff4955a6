"""What holds for the recipes of every task: publication, interruptions, processes, caches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from launch import launch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_distill.hub import validate
from hf_distill.recipe import Run, load_recipe

MODELS = {"teacher": "teacher", "baseline": "baseline/seed-0", "student": "student/seed-0"}
Make = Callable[..., Path]
"""``(folder, training=…, teacher=…)``: writes a tiny recipe, gives the path of its YAML."""


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


def prepared(path: Path, *overrides: tuple[str, str]) -> Run:
    return Run(load_recipe(path, overrides), silent)


def facts_of(folder: Path) -> dict[str, Any]:
    """The report of the recipe in a folder."""
    found: dict[str, Any] = json.loads((folder / "out/report.json").read_text())
    return found


def run(path: str) -> None:
    """Carry a recipe out; for processes of their own."""
    Run(load_recipe(path), silent)()


def check_published(final: Path, facts: dict[str, Any], tag: str, metric: str, auto: str) -> None:
    """The card has the metric and the tag; transformers' auto class loads all weights."""
    text = (final / "README.md").read_text()
    validate(text)
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["pipeline_tag"] == tag
    metrics = {m["type"]: m["value"] for m in metadata["model-index"][0]["results"][0]["metrics"]}
    assert metrics[metric] == facts["models"]["student"]["test"][metric]
    kind: Any = getattr(transformers, auto)
    _, info = kind.from_pretrained(final, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


class Stop(TrainerCallback):
    """Ends the student's training one step after its checkpoint, as Ctrl-C does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == args.save_steps + 1 and "student" in args.output_dir:
            raise KeyboardInterrupt


def check_interruption(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is interrupted and resumed ends with the weights of one that is not."""
    often = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "no"}
    paths = {name: make(folder / name, training=often) for name in ("whole", "parts")}
    prepared(paths["whole"])()
    with monkeypatch.context() as patch:
        make_trainer = Run.make_trainer

        def stopped(*args: Any, **kwargs: Any) -> Any:
            trainer = make_trainer(*args, **kwargs)
            trainer.add_callback(Stop())
            return trainer

        patch.setattr(Run, "make_trainer", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepared(paths["parts"])()
    said: list[str] = []
    Run(load_recipe(paths["parts"]), said.append)()
    assert any("resumes from checkpoint-3" in line for line in said), said
    parts, whole = (
        load_file(folder / name / "out/student/seed-0/model/model.safetensors")
        for name in ("parts", "whole")
    )
    assert all(torch.equal(parts[key], whole[key]) for key in whole)


def check_processes(make: Make, folder: Path, metrics: Sequence[str], eval_batch: int) -> None:
    """One process and two, with equal batches together, measure the same."""
    figures = []
    for processes in (1, 2):
        options = {
            "per_device_train_batch_size": 8 // processes,
            "per_device_eval_batch_size": eval_batch,
            "eval_strategy": "no",
            # Not Adam, which turns the last bits of a gradient near 0 into whole steps.
            "optim": "sgd",
            "max_steps": 2,  # an incomplete last batch is filled up for two processes
        }
        own = folder / str(processes)
        launch(run, make(own, training=options), processes=processes)
        figures.append(facts_of(own)["models"])
    for role in MODELS:
        for metric in metrics:
            one, two = (found[role]["test"][metric] for found in figures)
            assert two == pytest.approx(one, abs=1e-3), (role, metric)


def check_cache(make: Make, folder: Path) -> None:
    """A cached teacher teaches what a live one does."""
    figures = []
    for name, cache in (("live", None), ("cached", {})):
        prepared(make(folder / name, teacher={"cache": cache}))()
        figures.append(facts_of(folder / name)["models"]["student"]["test"])
    # Not the weights: Adam turns the last bits of a gradient near 0 into whole steps.
    assert figures[1] == pytest.approx(figures[0], rel=1e-3, abs=1e-4)
