"""Recipes of every task on sounds: figures against stock transformers on the saved models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_audio_tasks
import torch
import transformers
import yaml
from datasets import Audio
from launch import launch
from safetensors.torch import load_file
from tiny_audio_tasks import EXTRACTOR, RATE, ROWS
from transformers import TrainerCallback

from hf_distill.hub import validate
from hf_distill.recipe import RecipeError, Run, load_recipe

pytestmark = pytest.mark.xdist_group("recipes")
MODELS = {"teacher": "teacher", "baseline": "baseline/seed-0", "student": "student/seed-0"}


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


def prepared(path: Path, *overrides: tuple[str, str]) -> Run:
    return Run(load_recipe(path, overrides), silent)


def facts_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out/report.json").read_text())
    return found


@pytest.mark.parametrize("name", ROWS)
def test_figures_are_those_of_stock_transformers(tmp_path: Path, name: str) -> None:
    """A figure of sounds at another rate, or of padded places, would look just as good."""
    row = ROWS[name]
    path = tiny_audio_tasks.recipe(row, tmp_path)
    assert "stage student/seed-0: to do" in prepared(path).plan()
    assert not (tmp_path / "out/teacher").exists()
    run = prepared(path)
    final = run()
    facts, test = facts_of(tmp_path), run.examples.raw["test"]
    test = test if "labels" not in test.column_names else test.rename_column("labels", "label")
    for role, folder in MODELS.items():
        expected = row.judge(tmp_path / "out" / folder / "model", test)
        found = facts["models"][role]
        for metric in row.metrics:
            assert found["test"][metric] == pytest.approx(expected[metric], rel=1e-4), role
            low, high = found["intervals"][metric]
            assert low <= found["test"][metric] <= high, (role, metric)
    text = (final / "README.md").read_text()
    validate(text)
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["pipeline_tag"] == row.tag
    metrics = {m["type"]: m["value"] for m in metadata["model-index"][0]["results"][0]["metrics"]}
    assert metrics[row.metrics[0]] == facts["models"]["student"]["test"][row.metrics[0]]
    auto: Any = getattr(transformers, row.auto)
    _, info = auto.from_pretrained(final, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert row.judge(final, test) == row.judge(tmp_path / "out/student/seed-0/model", test)


class Stop(TrainerCallback):
    """Ends a training at its fourth step, as Ctrl-C does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4 and "student" in args.output_dir:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the sounds drawn anew after an interruption."""
    often = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "no"}
    paths = {
        which: tiny_audio_tasks.recipe(ROWS[name], tmp_path / which, training=often)
        for which in ("whole", "parts")
    }
    prepared(paths["whole"])()
    with monkeypatch.context() as patch:
        make = Run.make_trainer

        def stopped(*args: Any, **kwargs: Any) -> Any:
            trainer = make(*args, **kwargs)
            trainer.add_callback(Stop())
            return trainer

        patch.setattr(Run, "make_trainer", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepared(paths["parts"])()
    said: list[str] = []
    Run(load_recipe(paths["parts"]), said.append)()
    assert any("resumes from checkpoint-3" in line for line in said), said
    parts, whole = (
        load_file(tmp_path / which / "out/student/seed-0/model/model.safetensors")
        for which in ("parts", "whole")
    )
    assert all(torch.equal(parts[key], whole[key]) for key in whole)


def _run(path: str) -> None:
    Run(load_recipe(path), silent)()


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_two_processes_give_the_same_figures(tmp_path: Path, name: str) -> None:
    """Sounds counted twice, or paired with the labels of others, after a gathering."""
    figures = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        batch = {"per_device_train_batch_size": 8 // processes, "eval_strategy": "no"}
        batch |= {"per_device_eval_batch_size": 3}
        path = tiny_audio_tasks.recipe(ROWS[name], folder, training=batch)
        launch(_run, path, processes=processes)
        figures.append(facts_of(folder)["models"])
    for role in MODELS:
        for metric in ROWS[name].metrics:
            one, two = (found[role]["test"][metric] for found in figures)
            assert two == pytest.approx(one, abs=1e-3), (role, metric)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_cached_teacher_gives_the_same_student(tmp_path: Path, name: str) -> None:
    """Cached outputs of other sounds than the student's."""
    weights = []
    for which, cache in (("live", None), ("cached", {})):
        path = tiny_audio_tasks.recipe(ROWS[name], tmp_path / which, teacher={"cache": cache})
        prepared(path)()
        weights.append(load_file(tmp_path / which / "out/final/model.safetensors"))
    assert all(torch.allclose(weights[0][k], weights[1][k], atol=1e-5) for k in weights[0])


@pytest.mark.slow
def test_a_teacher_reads_sounds_with_its_own_extractor(tmp_path: Path) -> None:
    """A teacher that is given sounds at the student's rate and scale."""
    own = {**EXTRACTOR, "sampling_rate": RATE // 2, "do_normalize": False}
    path = tiny_audio_tasks.recipe(ROWS["tones"], tmp_path, teacher={"processor": own})
    run = prepared(path)
    run()
    assert run.own is not None
    assert run.own.processor.sampling_rate == RATE // 2
    row = run.data["test"][0]
    assert row["audio"]["sampling_rate"] == tiny_audio_tasks.STORED
    lengths = [len(found["test"][0]["input_values"]) for found in (run.data, run.own.splits)]
    assert lengths[0] == 2 * lengths[1]


def test_a_folder_of_sounds_is_read(tmp_path: Path) -> None:
    """Files that are found, but decoded with torchcodec, or not cut."""
    path = tiny_audio_tasks.recipe(ROWS["tones"], tmp_path)
    whole = prepared(path)
    for split, rows in whole.examples.raw.items():
        for number, row in enumerate(rows):
            folder = tmp_path / "files" / str(split) / tiny_audio_tasks.CLASSES[row["labels"]]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:02}.wav").write_bytes(row["audio"]["bytes"])
    run = prepared(path, ("data.source", "files"))
    assert isinstance(run.examples.raw["train"].features["audio"], Audio)
    assert sorted(run.examples.names) == sorted(tiny_audio_tasks.CLASSES)
    for split, rows in run.data.items():
        ours = sorted(tuple(row["input_values"].tolist()) for row in rows)
        assert ours == sorted(tuple(row["input_values"].tolist()) for row in whole.data[split])


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("tones", {"data.max_seconds": "0"}, "a positive number of seconds, got 0"),
        ("tones", {"data.audio_column": "sound"}, "no column 'sound'.*audio_column"),
        ("tones", {"data.audio_column": "label"}, "different columns, got 'label'"),
        ("tones", {"robustness": "{}"}, "audio_classification"),
        ("tones", {"data.processor": "{feature_extractor_type: X}"}, "data.processor"),
        (
            "tones",
            {"data.processor": "{feature_extractor_type: Wav2Vec2FeatureExtractor, rate: 1}"},
            "rate",
        ),
    ],
)
def test_what_cannot_work_is_refused(
    tmp_path: Path, name: str, overrides: dict[str, str], message: str
) -> None:
    """A recipe that fails after the teacher's training, or measures something else."""
    path = tiny_audio_tasks.recipe(ROWS[name], tmp_path)
    with pytest.raises(RecipeError, match=message):
        prepared(path, *overrides.items())
