"""What ``train --dry-run`` says beforehand, against what comes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_recipes import bert, recipe, record
from torch import nn
from transformers import TrainingArguments

from hf_distill.cli import main
from hf_distill.hub.comparison import weight
from hf_distill.recipe import Run, load_recipe
from hf_distill.recipe.estimate import (
    Memory,
    disk,
    duration,
    examples_seen,
    memory,
    rate_of,
    steps,
    weight_bytes,
)
from hf_distill.recipe.labels import CLASS, Labels
from hf_distill.recipe.models import Models, on_this_machine
from hf_distill.recipe.stages import Stage

pytestmark = pytest.mark.xdist_group("estimates")
tf: Any = transformers


def arguments(**options: Any) -> TrainingArguments:
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return TrainingArguments("/nowhere", **{**quiet, **options})


def classifier(**sizes: Any) -> Any:
    settings = {k: v for k, v in bert(2, **sizes).items() if k != "model_type"}
    return tf.BertForSequenceClassification(tf.BertConfig(**settings))


class Rows(torch.utils.data.Dataset[Any]):
    """So many tokenised examples."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"input_ids": [2, 5, 6 + place % 4, 3], "labels": place % 2}


def planned(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["train", str(path), "--dry-run", *words]) == 0
    return capsys.readouterr().out


# ---- against what comes --------------------------------------------------------------------------


def test_steps_and_parameters_are_those_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Someone leaves the machine for the night because of these numbers."""
    words = ["--training.num_train_epochs", "2", "--training.gradient_accumulation_steps", "3"]
    words += ["--student.training", "{per_device_train_batch_size: 4}"]
    path = recipe(tmp_path)
    shown = planned(path, capsys, *words)
    assert "time unknown until the first run" in shown
    overrides = [(words[i].removeprefix("--"), words[i + 1]) for i in range(0, len(words), 2)]
    run = Run(load_recipe(path, overrides), lambda line: None)
    run()
    for key in ("teacher", "baseline/seed-0", "student/seed-0"):
        taken = record(tmp_path, key)["results"]["steps"]
        assert f"stage {key}: to do, {taken} steps" in shown
    for role, key in (("teacher", "teacher"), ("student", "student/seed-0")):
        model = run.models.trained(str(run.stages[key].model))
        assert f"{role}: {sum(p.numel() for p in model.parameters()):,} parameters" in shown
    again = planned(path, capsys, *words)
    assert "stage student/seed-0: done before" in again
    assert "to do: " not in again, "nothing is left"
    results = record(tmp_path, "student/seed-0")["results"]
    rate = f"{results['seconds'] / results['steps']:.3g} s a step in student/seed-0"
    longer = planned(path, capsys, *words[2:], "--training.num_train_epochs", "4")
    assert f"{rate} with other settings)" in longer
    expected = duration(2 * results["steps"] * results["seconds"] / results["steps"])
    line = next(o for o in longer.splitlines() if o.startswith("stage student/seed-0"))
    assert f"{2 * results['steps']} steps" in line
    assert f"about {expected} (" in line


@pytest.mark.parametrize(
    "options",
    [
        {"num_train_epochs": 2, "gradient_accumulation_steps": 3},
        {"num_train_epochs": 1.5, "per_device_train_batch_size": 4},
        {"num_train_epochs": 2, "dataloader_drop_last": True, "gradient_accumulation_steps": 2},
        {"max_steps": 3},
    ],
)
def test_steps_are_those_of_the_trainer(tmp_path: Path, options: dict[str, Any]) -> None:
    """An estimate that forgets a rounding is off by an epoch's last step, or by half of all."""
    args = arguments(**options, save_strategy="no")
    args.output_dir = str(tmp_path)
    trainer = tf.Trainer(classifier(), args, train_dataset=Rows(21))
    trainer.train()
    assert steps(21, args) == trainer.state.global_step


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop", "sgd"])
def test_states_are_those_of_the_optimizer(tmp_path: Path, optim: str) -> None:
    """Two copies of the weights more or less decide whether a training fits."""
    args = arguments(optim=optim, max_steps=1, save_strategy="no")
    args.output_dir = str(tmp_path)
    model = classifier()
    model.bert.embeddings.requires_grad_(False)
    trainer = tf.Trainer(model, args, train_dataset=Rows(4))
    trainer.train()
    kept = [
        value
        for state in trainer.optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    found = memory(model, args, 0)
    assert found.optimizer == sum(one.numel() * one.element_size() for one in kept)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (found.weights, found.gradients) == (4 * model.num_parameters(), 4 * trained)


def test_an_optimizer_that_is_not_known() -> None:
    """A number that leaves the states out, and does not say so, is wrong by half."""
    args = arguments(optim="adafactor")
    found = memory(classifier(), args, 0)
    assert found.optimizer is None
    assert "optimizer unknown" in str(found)


def test_weights_in_half_precision() -> None:
    """Half the bytes."""
    model = nn.Linear(3, 5).to(torch.bfloat16)
    assert weight_bytes(model.parameters()) == 2 * (3 * 5 + 5)
    found = memory(model, arguments(optim="adamw_torch"))
    assert found.optimizer == 2 * 2 * (3 * 5 + 5) + 2 * 4


def test_files_are_as_large_as_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A disk that is full at the last checkpoint costs the whole run."""
    path = recipe(
        tmp_path, student={"from_teacher_layers": None, "config": bert(2, hidden_size=64)}
    )
    words = [("training.max_steps", "6"), ("training.save_strategy", "steps")]
    words += [("training.save_steps", "2"), ("training.save_total_limit", "null")]
    shown = planned(path, capsys, *(part for k, v in words for part in (f"--{k}", v)))
    run = Run(load_recipe(path, words), lambda line: None)
    args = [run.models.learner("student", 0)]
    seen: list[int] = []
    finish = Stage.finish

    def look(stage: Stage, results: Any) -> None:
        if stage.name == "student/seed-0":
            files = [p for p in stage.checkpoints.rglob("*") if p.suffix in (".safetensors", ".pt")]
            seen.append(sum(p.stat().st_size for p in files))
        finish(stage, results)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "finish", look)
        run()
    needs = memory(args[0])
    expected = 3 * (3 * needs.weights + 4 * len(list(args[0].parameters())))
    assert f"up to {weight(expected)} on disk" in shown
    assert expected == pytest.approx(seen[0], rel=0.25)


@pytest.mark.parametrize(
    ("options", "checkpoints"),
    [
        ({"save_strategy": "no"}, 0),
        ({"save_strategy": "epoch", "num_train_epochs": 4}, 4),
        ({"save_strategy": "epoch", "num_train_epochs": 4, "save_total_limit": 1}, 2),
        ({"save_strategy": "epoch", "num_train_epochs": 1, "save_total_limit": 1}, 1),
        ({"save_strategy": "steps", "save_steps": 4, "max_steps": 10, "save_total_limit": 9}, 3),
        ({"save_strategy": "steps", "save_steps": 0.25, "max_steps": 8}, 4),
    ],
)
def test_checkpoints_on_disk(options: dict[str, Any], checkpoints: int) -> None:
    """One checkpoint is three times a model."""
    needs = Memory(weights=100, optimizer=200)
    assert disk(needs, 40, arguments(**options)) == max(100, 300 * checkpoints)


def needs(shown: str) -> dict[str, str]:
    lines = [line for line in shown.splitlines() if line.startswith("memory of ")]
    return dict(line.removeprefix("memory of ").split(": ", 1) for line in lines)


def test_teachers_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two teachers take the room of two; a student that is its own teacher's copy takes it again;
    what a cache says takes none."""
    path = recipe(tmp_path, generations=2, assistants=[{"from_teacher_layers": [0, 1, 2]}])
    run = Run(load_recipe(path), lambda line: None)
    size_of = {
        o: weight_bytes(run.models.learner(o, 0).parameters()) for o in ("teacher", "student")
    }
    teacher, student = size_of["teacher"], size_of["student"]
    assert teacher > student
    shown = needs(planned(path, capsys))
    assert list(shown) == ["teacher", "assistant-1", "baseline", "student"]
    assert "teacher" not in shown["teacher"]
    assert f"teacher {weight(teacher)}" in shown["assistant-1"]
    assert f"teacher {weight(teacher)}" in shown["student"], "of the assistant's size at first"
    shown = needs(planned(path, capsys, "--assistants", "[]", "--teacher.seeds", "[0, 1]"))
    assert f"teacher {weight(2 * teacher)}" in shown["student"]
    shown = needs(planned(path, capsys, "--assistants", "[]", "--teacher.cache.format", "full"))
    assert f"teacher {weight(student)}" in shown["student"], "the second generation's teacher"
    one = ("--assistants", "[]", "--teacher.cache.format", "full", "--generations", "1")
    shown = needs(planned(path, capsys, *one))
    assert "teacher" not in shown["student"]


# ---- models that are elsewhere -------------------------------------------------------------------


def cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache that holds the config of a model, and not its weights."""
    snapshot = folder / "hub/models--some--bert/snapshots/abc"
    snapshot.mkdir(parents=True)
    (folder / "hub/models--some--bert/refs").mkdir()
    (folder / "hub/models--some--bert/refs/main").write_text("abc")
    settings = {k: v for k, v in bert(3).items() if k != "model_type"}
    tf.BertConfig(**settings, architectures=["BertModel"]).save_pretrained(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    return snapshot


def test_weights_are_not_fetched_for_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run of a recipe with a large teacher would download all of it."""
    snapshot = cached(tmp_path, monkeypatch)
    path = recipe(tmp_path, teacher={"config": None, "model": "some/bert"})
    assert not on_this_machine("some/bert")
    shown = planned(path, capsys)
    labels = Labels(CLASS, ["negative", "positive"])
    whole = Models(load_recipe(recipe(tmp_path / "b")), labels).teacher(0)
    assert f"teacher: {whole.num_parameters():,} parameters" in shown
    assert "stage student/seed-0: to do, 10 steps" in shown
    assert main(["train", str(path)]) == 2, "to train, the weights are needed"
    assert "cannot be loaded" in capsys.readouterr().err
    (snapshot / "model.safetensors").write_bytes(b"")
    assert on_this_machine("some/bert")


# ---- time ----------------------------------------------------------------------------------------


def stage(folder: Path, name: str, **inputs: Any) -> Stage:
    return Stage(name, folder / name, inputs)


def test_rate_of_another_seed_and_of_an_earlier_report(tmp_path: Path) -> None:
    """The second seed takes as long as the first; without a record the report still knows."""
    one, two = stage(tmp_path, "a"), stage(tmp_path, "b")
    assert rate_of([two, one], "student", tmp_path) is None
    (tmp_path / "report.json").write_text(
        '{"models": {"student": {"train_seconds": {"mean": 30.0, "std": 1.0}, "train_steps": 60}}}'
    )
    found = rate_of([two, one], "student", tmp_path)
    assert found is not None
    assert (found.seconds, found.source) == (0.5, "an earlier report.json")
    one.begin()
    one.finish({"seconds": 20.0, "steps": 10})
    found = rate_of([two, one], "student", tmp_path)
    assert found is not None
    assert (found.seconds, found.source) == (2.0, "a")


def test_times_in_words() -> None:
    """60 min are read twice."""
    assert [duration(n) for n in (45, 600, 12_600)] == ["45 s", "10 min", "3.5 h"]
    assert re.fullmatch(r".*\(weights 10 B, .*\)", str(Memory(10)))


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (10, {"num_train_epochs": 2}),
        (10, {"num_train_epochs": 2, "dataloader_drop_last": True}),
        (10, {"max_steps": 4}),
        (19, {"num_train_epochs": 1.5, "gradient_accumulation_steps": 2}),
        (3, {"num_train_epochs": 3}),
    ],
)
def test_the_examples_that_were_seen_are_counted_as_trainer_reads_them(
    tmp_path: Path, count: int, options: dict[str, Any]
) -> None:
    """Batches times steps counts the places that an incomplete last batch does not fill."""
    seen = []

    class Counting(transformers.Trainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            seen.append(len(inputs["labels"]))
            return super().training_step(model, inputs, *rest, **more)

    quiet: dict[str, Any] = {"use_cpu": True, "report_to": "none", "save_strategy": "no"}
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, disable_tqdm=True, **quiet, **options
    )
    trainer = Counting(classifier(), args, train_dataset=Rows(count))
    trainer.train()
    assert examples_seen(trainer.state.global_step, count, args) == sum(seen)
