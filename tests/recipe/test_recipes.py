"""Recipes: what a YAML file may say, which stages run again, and what comes out at the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from launch import ENVIRONMENT, launch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss
from tiny_recipes import bert, held_out, pictures, probabilities, recipe, record
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_distill import (
    RKD,
    AdaptiveTemperature,
    DistillationTrainer,
    ForwardKL,
    HiddenStates,
    JensenShannon,
    LossShare,
    ReverseKL,
    Schedule,
    objective_from,
)
from hf_distill.hub import published_files, validate
from hf_distill.recipe import RecipeError, Run, load_recipe, report
from hf_distill.recipe.stages import Stage

pytestmark = pytest.mark.xdist_group("recipes")  # fixtures that are expensive are made once

ROOT = Path(__file__).resolve().parents[2]
SEEDS = {"seeds": [0, 1]}
PUBLISHED = {
    "README.md",
    "config.json",
    "curves.png",
    "model.safetensors",
    "recipe.yaml",
    "report.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


def run(path: Path, *overrides: tuple[str, str]) -> Path:
    return Run(load_recipe(path, overrides), silent)()


def stages(path: Path, *overrides: tuple[str, str]) -> dict[str, Stage]:
    return Run(load_recipe(path, overrides), silent).stages


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe that was run with two seeds."""
    folder = tmp_path_factory.mktemp("recipe")
    run(recipe(folder, **SEEDS))
    return folder


# ---- what comes out ------------------------------------------------------------------------------


def test_report_tells_what_the_saved_models_do(finished: Path) -> None:
    """A report of other weights, another split or another data order would look just as good."""
    texts, labels = held_out(finished)
    out = finished / "out"
    facts = json.loads((out / "report.json").read_text())
    teacher = probabilities(out / "teacher" / "model", texts)
    found: dict[str, list[list[float]]] = {}
    for role, folders in {
        "teacher": ["teacher"],
        "baseline": ["baseline/seed-0", "baseline/seed-1"],
        "student": ["student/seed-0", "student/seed-1"],
    }.items():
        for folder in folders:
            p = probabilities(out / folder / "model", texts)
            figures = [
                accuracy_score(labels, p.argmax(-1)),
                log_loss(labels, p),
                accuracy_score(teacher.argmax(-1), p.argmax(-1)),
                float((teacher * np.log(teacher / p)).sum(-1).mean()),
            ]
            found.setdefault(role, []).append(figures)
            names = ("accuracy", "nll", "agreement", "forward_kl_divergence")
            for name, value in zip(names, figures, strict=True):
                if role != "teacher" or name in ("accuracy", "nll"):
                    reported = facts["runs"][folder]["test"][name]
                    assert reported == pytest.approx(value, rel=1e-5, abs=1e-7), (folder, name)
    student = facts["models"]["student"]["test"]["accuracy"]
    values = [figures[0] for figures in found["student"]]
    assert student["mean"] == pytest.approx(np.mean(values))
    assert student["std"] == pytest.approx(np.std(values, ddof=1))
    kept = facts["models"]["baseline"]["test"]["retention_accuracy"]["mean"]
    alone = [figures[0] for figures in found["baseline"]]
    assert kept == pytest.approx(np.mean(alone) / found["teacher"][0][0])


def test_published_student_is_the_best_on_validation(finished: Path) -> None:
    """Choosing by the test split would make its figure too good."""
    scores = [record(finished, f"student/seed-{s}")["results"]["validation"] for s in (0, 1)]
    accuracies = [score["accuracy"] for score in scores]
    best = accuracies.index(max(accuracies))
    final, model = finished / "out/final", finished / f"out/student/seed-{best}/model"
    assert (final / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert json.loads((final / "report.json").read_text())["published_seed"] == best


def test_published_folder_holds_the_student_and_nothing_else(finished: Path) -> None:
    """A teacher, an optimizer, a pickle or a path of this machine would go to everyone."""
    final = finished / "out/final"
    assert {path.name for path in final.iterdir()} == PUBLISHED
    assert set(published_files(final)) == PUBLISHED
    for path in final.iterdir():
        if path.suffix in (".json", ".yaml", ".md"):
            assert str(finished) not in path.read_text(), path
    assert not list((finished / "out").rglob("checkpoint-*")), "finished stages keep none"
    assert not list((finished / "out").rglob("*.bin"))


def test_card_is_valid_and_shows_the_reports_numbers(finished: Path) -> None:
    """The Hub refuses an invalid card at the end of an hour's training."""
    text = (finished / "out/final/README.md").read_text()
    validate(text)
    metadata = yaml.safe_load(text.split("---")[1])
    facts = json.loads((finished / "out/report.json").read_text())
    metrics = {m["type"]: m["value"] for m in metadata["model-index"][0]["results"][0]["metrics"]}
    assert metrics["accuracy"] == facts["models"]["student"]["test"]["accuracy"]["mean"]
    assert metadata["pipeline_tag"] == "text-classification"
    assert metadata["license"] == "apache-2.0"
    assert "2 seeds" in text
    assert "of its teacher bert trained on lines" in " ".join(text.replace("`", "").split())
    assert "0.3 * HardLabels() + 0.7 * ForwardKL(temperature=2.0)" in text


def test_table_and_picture(finished: Path) -> None:
    """A table that drops a model, or a picture without curves, says nothing."""
    table = (finished / "out/report.md").read_text()
    for name in ("Teacher", "Baseline (no teacher)", "Distilled student", "±"):
        assert name in table
    assert (finished / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    curves = json.loads((finished / "out/report.json").read_text())["curves"]
    assert len(curves) == 5
    for key, curve in curves.items():
        assert [step for step, _ in curve["accuracy"]] == [5, 10], key
        assert len(curve["loss"]) == 5, key


READER = """
import sys
sys.modules["hf_distill"] = None  # as where it is not installed
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification as Auto, AutoTokenizer, pipeline
folder, out = sys.argv[1:]
model, info = Auto.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
tokenizer = AutoTokenizer.from_pretrained(folder)
torch.set_num_threads(1)
with torch.no_grad():
    logits = model.eval()(**tokenizer("the film was very good", return_tensors="pt")).logits
save_file({"logits": logits}, out)
print(pipeline("text-classification", model=folder)("the film was bad")[0]["label"])
"""


@pytest.mark.slow
def test_published_folder_loads_where_hf_distill_is_not_installed(
    finished: Path, tmp_path: Path
) -> None:
    """A student that only loads beside its trainer is of no use to anyone else."""
    final, out = finished / "out/final", tmp_path / "logits.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", READER, str(final), str(out)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] in ("negative", "positive")
    seed = json.loads((final / "report.json").read_text())["published_seed"]
    source = finished / f"out/student/seed-{seed}/model"
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    with torch.no_grad():
        logits = model(**tokenizer("the film was very good", return_tensors="pt")).logits
    assert torch.equal(load_file(out)["logits"], logits)


# ---- what is done again --------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that are trained while a test runs."""
    names: list[str] = []
    train = DistillationTrainer.train

    def counted(self: DistillationTrainer, *args: Any, **kwargs: Any) -> Any:
        names.append("/".join(Path(str(self.args.output_dir)).parts[-3:-1]).removeprefix("out/"))
        return train(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", counted)
    return names


def test_second_run_trains_nothing(finished: Path, trained: list[str]) -> None:
    """Half an hour for a picture that should only have been drawn again."""
    before = (finished / "out/report.json").read_text()
    readme = finished / "out/final/README.md"
    readme.write_text(readme.read_text() + "\nA note by hand.\n")
    run(finished / "recipe.yaml", ("card.license", "mit"))
    assert trained == []
    assert (finished / "out/report.json").read_text() == before
    assert "A note by hand." in readme.read_text()
    assert "license: mit" in readme.read_text()
    assert not [path for path in (finished / "out").iterdir() if path.name.startswith(".")]


def test_a_kill_between_two_renames_keeps_what_a_person_wrote(finished: Path) -> None:
    """`final` is out of the way and the new one not yet in its place: the card by hand would go
    with the old folder."""
    out = finished / "out"
    readme = out / "final/README.md"
    readme.write_text(readme.read_text() + "\nBefore the kill.\n")
    (out / "final").replace(out / ".final.old")
    run(finished / "recipe.yaml")
    assert "Before the kill." in readme.read_text()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_changed_objective_trains_the_students_only(tmp_path: Path, trained: list[str]) -> None:
    """A stale student under a new objective's name; or the teacher trained again for nothing."""
    path = recipe(tmp_path)
    run(path)
    assert trained == ["teacher", "baseline/seed-0", "student/seed-0"]
    before = record(tmp_path, "student/seed-0")
    trained.clear()
    run(path, ("objective", "[{name: reverse_kl}]"))
    assert trained == ["student/seed-0"]
    after = record(tmp_path, "student/seed-0")
    assert before["results"]["history"] != after["results"]["history"]
    assert "ReverseKL" in (tmp_path / "out/final/README.md").read_text()


TEACHER, BASELINE, STUDENT = {"teacher"}, {"baseline/seed-0"}, {"student/seed-0"}
TEST = {"evaluation"}
ALL = TEACHER | BASELINE | STUDENT | TEST


@pytest.mark.parametrize(
    ("key", "value", "again"),
    [
        ("objective", "[{name: forward_kl, temperature: 3}]", STUDENT | TEST),
        ("student.training.learning_rate", "5e-4", STUDENT | TEST),
        ("baseline.training.learning_rate", "5e-4", BASELINE | TEST),
        ("teacher.training.learning_rate", "5e-4", TEACHER | STUDENT | TEST),
        ("training.per_device_train_batch_size", "4", ALL),
        ("student.from_teacher_layers", "[0, 1]", BASELINE | STUDENT | TEST),
        ("data.max_train_examples", "20", ALL),
        ("teacher.max_train_examples", "20", TEACHER | STUDENT | TEST),
        ("data.max_length", "4", ALL),
        ("data.max_eval_examples", "4", ALL),
        ("data.max_test_examples", "4", TEST),
        ("data.test_split", "train", TEST),
        ("seed", "1", TEACHER | STUDENT | TEST),  # seeds of the students: see below
        ("seeds", "[0, 1]", {"baseline/seed-1", "student/seed-1"} | TEST),
        ("training.alpha", "0.9", set()),  # the objective is written out
        ("training.report_to", "tensorboard", set()),
        ("hub_model_id", "someone/tiny", set()),
        ("card.license", "mit", set()),
        ("output_dir", "elsewhere", set()),
        ("name", "other", set()),
    ],
)
def test_each_stage_depends_on_its_inputs_only(
    tmp_path: Path, key: str, value: str, again: set[str]
) -> None:
    """One input forgotten leaves stale models; one too many trains again for nothing."""
    path = recipe(tmp_path, seeds=[0])
    before = {name: stage.fingerprint for name, stage in stages(path).items()}
    after = {name: stage.fingerprint for name, stage in stages(path, (key, value)).items()}
    assert {name for name in after if after[name] != before.get(name)} == again


def test_default_objective_depends_on_its_scalars(tmp_path: Path) -> None:
    """Without an objective the scalars are the objective: another alpha is another student."""
    path = recipe(tmp_path, objective=None)
    before, after = stages(path), stages(path, ("training.alpha", "0.9"))
    changed = {name for name in after if after[name].fingerprint != before[name].fingerprint}
    assert changed == STUDENT | TEST


def test_a_changed_tokenizer_or_data_file_counts(tmp_path: Path) -> None:
    """The same path with other content would silently give yesterday's models."""
    path = recipe(tmp_path)
    before = {name: stage.fingerprint for name, stage in stages(path).items()}
    lines = tmp_path / "lines.py"
    lines.write_text(lines.read_text().replace("n % 5 else", "n % 3 else"))
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)  # same size, same second
    sys.modules.pop(next(name for name in sys.modules if _is_module_of(name, lines)))
    after = {name: stage.fingerprint for name, stage in stages(path).items()}
    assert all(before[name] != after[name] for name in before)


def _is_module_of(name: str, path: Path) -> bool:
    module = sys.modules[name]
    return name.startswith("hf_distill_recipe_") and module.__file__ == str(path.resolve())


def test_baseline_and_student_start_from_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the comparison measures luck with the initial head."""
    began: list[dict[str, torch.Tensor]] = []
    train = DistillationTrainer.train

    def watched(self: DistillationTrainer, *args: Any, **kwargs: Any) -> Any:
        model: Any = self.model
        began.append({name: value.clone() for name, value in model.state_dict().items()})
        return train(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", watched)
    run(recipe(tmp_path))
    teacher, baseline, student = began
    assert baseline.keys() == student.keys()
    assert all(torch.equal(baseline[name], student[name]) for name in student)
    layer = "bert.encoder.layer.{}.output.dense.weight"
    assert torch.equal(student[layer.format(1)], teacher[layer.format(2)])


# ---- interrupted ---------------------------------------------------------------------------------


def _interrupt(path: Path, stage: Path, how: signal.Signals) -> int:
    """Start a recipe and stop it as soon as a stage has a checkpoint; its exit code."""
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        [sys.executable, "-m", "hf_distill", "train", str(path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(stage.glob("checkpoints/checkpoint-*")):
        assert started.poll() is None, started.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    started.send_signal(how)
    _, errors = started.communicate(timeout=60)
    if how is signal.SIGINT:
        assert "the same command again resumes" in errors
        assert "Traceback" not in errors
    return started.returncode


@pytest.mark.slow
def test_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    """A run that resumes elsewhere in the data or the schedule gives another student, unnoticed."""
    many = {"num_train_epochs": 8, "eval_strategy": "no"}
    whole = recipe(tmp_path / "whole", training=many)
    run(whole)
    path = recipe(tmp_path / "parts", training=many)
    out = tmp_path / "parts/out"
    assert _interrupt(path, out / "teacher", signal.SIGINT) == 130
    assert record(tmp_path / "parts", "teacher")["finished"] is False
    assert _interrupt(path, out / "student/seed-0", signal.SIGKILL) == -signal.SIGKILL
    assert record(tmp_path / "parts", "teacher")["finished"] is True
    assert record(tmp_path / "parts", "student/seed-0")["finished"] is False
    said: list[str] = []
    Run(load_recipe(path), said.append)()
    assert any("resumes from checkpoint-" in line for line in said), said
    for name in ("teacher", "baseline/seed-0", "student/seed-0"):
        parts, one = (
            load_file(tmp_path / which / "out" / name / "model/model.safetensors")
            for which in ("parts", "whole")
        )
        assert all(torch.equal(parts[key], one[key]) for key in one), name
        steps = [
            [entry["step"] for entry in record(tmp_path / which, name)["results"]["history"]]
            for which in ("parts", "whole")
        ]
        assert steps[0] == steps[1], "the curves have a gap"


def test_unfinished_stage_of_other_inputs_is_not_resumed(tmp_path: Path) -> None:
    """A checkpoint of the old learning rate would be finished and shown as the new one's."""
    path = recipe(tmp_path)
    old = stages(path)["teacher"]
    old.begin()
    (old.checkpoints / "checkpoint-5").mkdir(parents=True)
    old.begin()
    assert (old.checkpoints / "checkpoint-5").is_dir()
    new = stages(path, ("teacher.training.learning_rate", "1e-4"))["teacher"]
    assert new.changes() == ["training.learning_rate 0.002 -> 0.0001"]
    new.begin()
    assert not new.checkpoints.exists()


# ---- two processes -------------------------------------------------------------------------------


def _run_twice(path: str) -> None:
    for _ in range(2):
        Run(load_recipe(path), print)()


@pytest.mark.slow
def test_two_processes_write_once_and_agree(tmp_path: Path) -> None:
    """Two writers of one file, or a process that waits for ever where the other has left."""
    one = recipe(tmp_path / "one", training={"per_device_train_batch_size": 8})
    half, cached = {"per_device_train_batch_size": 4}, {"cache": {}}
    two = recipe(tmp_path / "two", training=half, teacher=cached)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for path in (one, two):
        values = yaml.safe_load(path.read_text())
        values["teacher"]["config"].update(quiet)
        path.write_text(yaml.safe_dump(values))
    run(one)
    output = launch(_run_twice, two, processes=2)
    assert output.count("teacher: begins") == 1
    assert output.count("cache: begins") == 1
    assert output.count("done before") == 4
    assert output.count("| Distilled student |") == 2
    figures = [
        json.loads((tmp_path / which / "out/report.json").read_text())["models"]
        for which in ("one", "two")
    ]
    for role in ("teacher", "baseline", "student"):
        single, double = (figure[role]["test"]["nll"] for figure in figures)
        assert double == pytest.approx(single, rel=1e-3), role


# ---- other shapes of recipes ---------------------------------------------------------------------


def test_pictures(tmp_path: Path) -> None:
    """The second modality: the published student must know how its pictures were prepared."""
    final = run(pictures(tmp_path))
    assert (final / "preprocessor_config.json").is_file()
    from PIL import Image

    found = pipeline("image-classification", model=str(final))(Image.new("L", (9, 9), 200))
    assert {row["label"] for row in found} == {"dark", "light"}
    facts = json.loads((tmp_path / "out/report.json").read_text())
    assert facts["models"]["teacher"]["architecture"] == "ResNetForImageClassification"
    assert facts["models"]["student"]["architecture"] == "MobileNetV1ForImageClassification"
    validate((final / "README.md").read_text())


def test_teacher_that_is_given_is_not_trained(tmp_path: Path, trained: list[str]) -> None:
    """Fine-tuning a finished teacher again costs an hour and makes another teacher of it."""
    first = recipe(tmp_path / "first")
    run(first)
    trained.clear()
    given = str(tmp_path / "first/out/teacher/model")
    teacher = {"model": given, "fine_tuned": True, "config": None, "hub_id": "someone/teacher"}
    path = recipe(
        tmp_path / "second",
        teacher=teacher,
        student={"config": bert(1), "from_teacher_layers": None},
    )
    final = run(path)
    assert trained == ["baseline/seed-0", "student/seed-0"]
    weights = Path(given) / "model.safetensors"
    assert (
        weights.read_bytes()
        == (tmp_path / "first/out/teacher/model/model.safetensors").read_bytes()
    )
    card = (final / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["teacher_model"] == "someone/teacher"
    facts = json.loads((tmp_path / "second/out/report.json").read_text())
    assert "train_seconds" not in facts["models"]["teacher"]


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    """Stopping early and then publishing the last, worse weights."""
    changes = {
        "early_stopping_patience": 1,
        "num_train_epochs": 30,
        "learning_rate": 0.05,
        "metric_for_best_model": "accuracy",
    }
    run(recipe(tmp_path, training=changes))
    results = record(tmp_path, "student/seed-0")["results"]
    scores = [e["eval_accuracy"] for e in results["history"] if "eval_accuracy" in e]
    assert len(scores) < 30
    assert results["validation"]["accuracy"] == max(scores)


def test_validation_is_set_aside_where_there_is_none(tmp_path: Path) -> None:
    """Choosing the best weights on training or test examples."""
    first = Run(load_recipe(recipe(tmp_path), [("data.validation_split", "null")]), silent)
    assert first.examples.sizes == {"train": 36, "validation": 4, "test": 16}
    labels = first.examples.raw["validation"]["labels"][:]
    assert sorted(labels) == [0, 0, 1, 1]


def test_push_after_everything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    """A push of half a folder, or of another one."""
    calls: list[tuple[Any, ...]] = []

    class Commit:
        commit_url = "https://hub/commit"

    def push(folder: Path, repo: str, private: bool | None) -> type[Commit]:
        calls.append((set(published_files(folder)), repo, private))
        return Commit

    monkeypatch.setattr("hf_distill.recipe.runner.push_folder", push)
    path = recipe(tmp_path)
    run(path)
    assert calls == []
    trained.clear()
    run(path, ("push_to_hub", "true"), ("hub_model_id", "someone/tiny"))
    assert trained == []
    assert calls == [(PUBLISHED, "someone/tiny", None)]


# ---- the shipped recipes -------------------------------------------------------------------------

SHIPPED = sorted(
    path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "accelerate_configs"
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_is_valid(path: Path) -> None:
    """A typo in a recipe that is only run once in a while."""
    loaded = load_recipe(path)
    folder = {"causal_lm": "language_modeling"}.get(loaded.task, loaded.task)
    assert path.parent.name in (folder, "robust"), "the folder is the task's"
    assert f"recipes/{path.parent.name}/{path.name}" in path.read_text(), "the command to copy"
    source, _, function = loaded.data.source.rpartition(":")
    assert not source or f"def {function}(" in (path.parent / source).read_text()


def test_there_are_two_shipped_recipes() -> None:
    """The parametrised test above passes with an empty list, too."""
    assert {path.stem for path in SHIPPED} >= {"movie_reviews", "fashion_mnist", "smollm2"}


@pytest.mark.slow
def test_fashion_mnist_runs(tmp_path: Path) -> None:
    """The real data and models of the picture recipe, cut to seconds."""
    path = ROOT / "recipes/image_classification/fashion_mnist.yaml"
    short = {
        "output_dir": str(tmp_path),
        "data.max_train_examples": "200",
        "data.max_eval_examples": "100",
        "data.max_test_examples": "100",
        "training.num_train_epochs": "1",
        "teacher.training.num_train_epochs": "1",
        "seeds": "[0]",
    }
    final = run(path, *short.items())
    validate((final / "README.md").read_text())


# ---- what a recipe may say -----------------------------------------------------------------------


def test_resolved_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    """The recipe on the card must give the run that the card describes."""
    first = load_recipe(recipe(tmp_path, **SEEDS), [("training.max_steps", "7")])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(first.to_yaml())
    second = load_recipe(resolved)
    assert second.to_yaml() == first.to_yaml()
    for role in ("teacher", "baseline", "student"):
        assert second.training_of(role) == first.training_of(role)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("training.learning_rate", "2e-5", 2e-5),  # YAML 1.1 reads a string
        ("training.learning_rate", "'1e-3'", 1e-3),
        ("training.learning_rate", "1", 1.0),
        ("training.max_steps", "1e3", 1000),
        ("training.eval_strategy", "no", "no"),  # YAML 1.1 reads False
        ("training.bf16", "true", True),
        ("training.lr_scheduler_type", "cosine", "cosine"),
        ("training.report_to", "[tensorboard]", ["tensorboard"]),
        ("training.early_stopping_patience", "2", 2),
        ("seed", "3", 3),
    ],
)
def test_values_are_cast(tmp_path: Path, key: str, text: str, expected: Any) -> None:
    """The trainer compares "2e-5" with numbers, an hour later, or takes False for a strategy."""
    value: Any = load_recipe(recipe(tmp_path), [(key, text)])
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_temperatures_shares_and_layers_in_a_recipe(tmp_path: Path) -> None:
    """A plan that is cast like a number is refused, or silently a dictionary."""
    rows = """
    - {name: forward_kl, temperature: {schedule: linear, start: 4, end: 1}}
    - {name: reverse_kl, temperature: [1, 2]}
    - {name: jensen_shannon, temperature: {rule: cwsm, base: 3}}
    - {name: hidden_states, layers: "1:1", weight: {share: 3e-1}, projection: shared}
    - {name: rkd, layers: [[-1, -1]], pooling: first}
    """
    loaded = load_recipe(recipe(tmp_path), [("objective", rows)])
    assert loaded.objective is not None
    assert objective_from(loaded.objective) == (
        ForwardKL(Schedule("linear", 4.0, 1.0))
        + ReverseKL((1.0, 2.0))
        + JensenShannon(AdaptiveTemperature("cwsm", 3.0))
        + LossShare(0.3) * HiddenStates("1:1", projection="shared")
        + RKD([(-1, -1)], pooling="first")
    )


def test_an_override_of_all_stages_is_stronger_than_the_file(tmp_path: Path) -> None:
    """`--training.num_train_epochs 1` would leave the teacher its ten."""
    path = recipe(tmp_path)
    assert load_recipe(path).training_of("teacher")["learning_rate"] == 2e-3
    both = [("student.training.learning_rate", "0.2"), ("training.learning_rate", "0.1")]
    loaded = load_recipe(path, both)
    rates = [loaded.training_of(role)["learning_rate"] for role in ("teacher", "student")]
    assert rates == [0.1, 0.2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"objectve": "1"}, "unknown key `objectve`; did you mean `objective`?"),
        ({"data.max_train_example": "1"}, "did you mean `data.max_train_examples`?"),
        ({"training.num_epochs": "1"}, "did you mean `training.num_train_epochs`?"),
        ({"student.training.learning_rat": "1"}, "`student.training.learning_rate`?"),
        ({"objective": "[{name: forward_lk}]"}, "did you mean `forward_kl`?"),
        ({"objective": "[{name: forward_kl, temperatur: 2}]"}, "`objective[0].temperature`?"),
        ({"objective": "[{weight: 2}]"}, "`objective[0].name` is missing"),
        ({"objective": "[{name: forward_kl, temperature: 0}]"}, "a temperature above 0, got 0.0"),
        ({"objective": "[{name: forward_kl, weight: -1}]"}, "weight of at least 0, got -1.0"),
        ({"objective": "forward_kl"}, "`objective`: expected a list of"),
        ({"data.arguments": "{row: 3}"}, "did you mean `data.arguments.rows`?"),
        ({"data.arguments": "{rows: many}"}, "`data.arguments.rows`: expected a whole number"),
        ({"task": "text_clasification"}, "did you mean `text_classification`?"),
        ({"teacher.config.hiden_size": "8"}, "did you mean `teacher.config.hidden_size`?"),
        ({"teacher.config.model_type": "brt"}, "did you mean `bert`?"),
        ({"training.learning_rate": "fast"}, "expected a number, got 'fast' (str)"),
        ({"training.max_steps": "1.5"}, "expected a whole number, got 1.5 (float)"),
        ({"training.bf16": "1"}, "`training.bf16`: expected true or false, got 1 (int)"),
        ({"training.eval_strategy": "epochs"}, "expected one of no, steps, epoch, got 'epochs'"),
        ({"seed": "null"}, "`seed`: expected a whole number, got None"),
        ({"seeds": "[1, 1]"}, "`seeds`: expected different whole numbers"),
        ({"data": "3"}, "`data`: expected"),
        ({"name.x": "3"}, "`name` is no section but 'tiny'"),
        ({"name": "a b"}, "`name`: expected letters"),
        ({"name": "null"}, "`name`: expected text, got None"),
        ({"card.language": "English"}, "`card`: `language`: 'English' is no ISO 639 code"),
        ({"card.license": "Apache-2.0"}, "did you mean 'apache-2.0'?"),
        ({"training.output_dir": "x"}, "set `output_dir` at the top level"),
        ({"training.seed": "1"}, "set `seed` or `seeds` at the top level"),
        ({"teacher.model": "x"}, "got `teacher.model` and `teacher.config`"),
        ({"student.from_teacher_layers": "null"}, "`student.config`, got none"),
        ({"student.from_teacher_layers": "[0, 9]"}, "layers between 0 and 2, got [0, 9]"),
        ({"push_to_hub": "true"}, "`push_to_hub` needs `hub_model_id"),
        ({"objective": "[{name: hidden_states, layers: '12:6'}]"}, "the student has layers 0 (emb"),
        ({"objective": "[{name: hidden_states, layers: 'a.b'}]"}, "needs ['a.b']"),
        ({"objective": "[{name: logit_standardized_kl}]"}, "three classes or more, got 2"),
        ({"objective": "[{name: forward_kl, temperature: {rule: x}}]"}, "a `rule` of ['cwsm'"),
        ({"objective": "[{name: forward_kl, weight: {share: 2}}]"}, "share of the total loss in"),
        ({"training.load_best_model_at_end": "true", "training.eval_strategy": "no"}, "strategy"),
        ({"data.source": "lines.py:line"}, "did you mean `lines.py:lines`?"),
        ({"data.source": "line.py:lines"}, "there is no file"),
        ({"data.source": "lines.py:broken"}, "lines.py:broken failed: the shelf is empty"),
        ({"data.source": "lines.py:no_splits"}, "expected lines.py:no_splits to give a datasets."),
        ({"data.text_column": "txt"}, "has no column 'txt', but ['text', 'label']"),
        ({"data.validation_split": "dev"}, "has no split 'dev'"),
        ({"data.config": "en"}, "`data.config` is for data sets of the Hub"),
        ({"data.max_train_examples": "0"}, "expected at least 1, got 0"),
        ({"teacher.max_train_examples": "0"}, "`teacher.max_train_examples`: expected at least 1"),
        ({"data.processor": "null"}, "`data.processor` is missing"),
        ({"data.processor": "./nothing"}, "there is no folder"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    tmp_path: Path, overrides: dict[str, str], message: str
) -> None:
    """A typo that is ignored trains for an hour with the default instead."""
    path = recipe(tmp_path)
    with pytest.raises(RecipeError) as caught:
        Run(load_recipe(path, list(overrides.items())), silent).plan()
    assert message in str(caught.value)


def test_unequal_training_arguments_are_told(tmp_path: Path) -> None:
    """A baseline at half the rate loses to its student, and the teacher gets the credit."""
    alone = [("baseline.training.learning_rate", "0.005"), ("training.learning_rate", "0.002")]
    found = report.unlike_student(load_recipe(recipe(tmp_path), alone[:1]), "baseline")
    assert list(found) == ["learning_rate"]
    assert found["learning_rate"][0] == 0.005
    assert found["learning_rate"][1] != 0.005
    assert report.unlike_student(load_recipe(recipe(tmp_path), alone[1:]), "baseline") == {}
    facts = {
        "metric": "accuracy",
        "student_seeds": [0],
        "runs": {
            f"{role}/seed-0": {"test": {"accuracy": 0.5, "agreement": 0.5}}
            for role in ("student", "baseline")
        },
        "models": {"baseline": {"unlike": {"learning_rate": [0.001, 0.002]}}, "student": {}},
    }
    said = report.verdict(facts)
    assert said.endswith("(no teacher): trained with learning_rate = 0.001 in place of 0.002.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not valid YAML"),
        ("- a\n- b", "expected a recipe (lines `key: value`)"),
        ("", "expected a recipe"),
        ("name: a\nname: b", "`name` given twice"),
        ("name: a\ntask: text_classification", "`data` is missing"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    """A traceback from the depth of a parser tells nobody what to change."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"recipe\.yaml") as caught:
        load_recipe(path)
    assert message in str(caught.value)
