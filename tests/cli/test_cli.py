"""The command line: what it prints, and the exit codes that scripts rely on."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from huggingface_hub import CommitInfo
from tiny_recipes import recipe

from hf_distill import __version__
from hf_distill.cli import main
from hf_distill.cli.base import UsageError
from hf_distill.cli.parser import split_overrides
from hf_distill.recipe import Run


@pytest.mark.parametrize(
    ("words", "rest", "overrides"),
    [
        (["train", "r.yaml"], ["train", "r.yaml"], []),
        (["train", "r.yaml", "--seed", "1"], ["train", "r.yaml"], [("seed", "1")]),
        (["train", "--seed", "1", "r.yaml"], ["train", "r.yaml"], [("seed", "1")]),
        (["train", "r.yaml", "--a.b=c=d"], ["train", "r.yaml"], [("a.b", "c=d")]),
        (["train", "r.yaml", "--a", "-1", "--dry-run"], ["train", "r.yaml", "--dry-run"], None),
        (["train", "-h"], ["train", "-h"], []),
    ],
)
def test_overrides_are_told_from_the_rest(
    words: list[str], rest: list[str], overrides: list[tuple[str, str]] | None
) -> None:
    """`--seed 1 recipe.yaml` would take `1` for the recipe."""
    assert split_overrides(words) == (rest, [("a", "-1")] if overrides is None else overrides)


@pytest.mark.parametrize("words", [["--seed"], ["--seed", "--dry-run"]])
def test_an_override_without_a_value_is_refused(words: list[str]) -> None:
    """The next option would become the value."""
    with pytest.raises(UsageError, match="--seed needs a value"):
        split_overrides(["train", "r.yaml", *words])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--help"], "accelerate launch -m hf_distill train"),
        (["train", "--help"], "--training.learning_rate 2e-5"),
        (["push", "--help"], "--repo"),
        (["cache", "--help"], "--push ID"),
        (["serve-teacher", "--help"], "--token-env"),
        (["--version"], __version__),
    ],
)
def test_help(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """argparse formats help when it is asked for: a stray % crashes only then."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["trian"], ["train"], ["push", "folder"]])
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A script must see that nothing was done."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: hf-distill" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.num_train_epoch", "1"], "did you mean `training.num_train_epochs`?"),
        (["--seed", "one"], "`seed`: expected a whole number, got 'one' (str)"),
        (["--objective", "[{"], "--objective is not valid YAML"),
        (["--seed"], "--seed needs a value"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_exit_code_2(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback hides the one sentence that helps."""
    assert main(["train", str(recipe(tmp_path)), *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("hf-distill: ")
    assert errors.count("\n") == 1


def test_a_recipe_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The most frequent mistake of all."""
    assert main(["train", str(tmp_path / "none.yaml")]) == 2
    assert "there is no recipe" in capsys.readouterr().err


def test_a_shipped_recipe_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every example names recipes/…, which who has installed a wheel does not have."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", "recipes/image_classification/fashion_mnist.yaml"]) == 2
    command = "hf-distill recipes copy image_classification/fashion_mnist DIR"
    assert capsys.readouterr().err.endswith(f"The package has it: {command}\n")


def test_dry_run_shows_everything_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half an hour is saved by seeing the wrong number of steps first."""
    path = recipe(tmp_path)
    assert main(["train", str(path), "--dry-run", "--training.num_train_epochs", "3"]) == 0
    shown = capsys.readouterr().out
    resolved, plan = shown.split("\n\n")
    assert yaml.safe_load(resolved)["training"]["num_train_epochs"] == 3
    assert "teacher: 7,018 parameters" in plan
    assert "train: 40 examples" in plan
    assert "stage student/seed-0: to do, 15 steps" in plan
    assert not (tmp_path / "out").exists()


def test_train_prints_the_stages_and_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Someone who waits must see where it is; someone who comes back, what came out."""
    path = str(recipe(tmp_path))
    assert main(["train", path, "--training.num_train_epochs", "1"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"{name}: begins") for name in ("teacher", "baseline/seed-0")]
    assert places == sorted(places)
    assert "| Distilled student |" in shown
    assert str(tmp_path / "out/final") in shown
    assert main(["train", path, "--training.num_train_epochs", "2"]) == 0
    assert "teacher: changed: training.num_train_epochs 1.0 -> 2.0" in capsys.readouterr().out


def test_loss_that_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A diverged training is no bug of the program: no traceback, but no success either."""
    words = ["--teacher.training.learning_rate", "1e30", "--training.max_grad_norm", "0"]
    assert main(["train", str(recipe(tmp_path)), *words]) == 1
    assert "The loss is not finite" in capsys.readouterr().err


def test_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """130 is what shells expect of Ctrl-C."""

    def interrupted(self: Run) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "__call__", interrupted)
    assert main(["train", str(recipe(tmp_path))]) == 130
    assert "the same command again resumes" in capsys.readouterr().err


def test_push(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An option that is parsed and then forgotten publishes a private model."""
    calls: list[Any] = []

    def push(folder: str, repo: str, **options: Any) -> CommitInfo:
        calls.append((folder, repo, options))
        return CommitInfo("https://huggingface.co/me/student/commit/1", "message", "", "1")

    monkeypatch.setattr("hf_distill.hub.push.push_folder", push)
    assert main(["push", "out/final", "--repo", "me/student", "--private", "--revision", "v1"]) == 0
    assert main(["push", "out/final", "--repo", "me/student"]) == 0
    assert calls == [
        ("out/final", "me/student", {"private": True, "revision": "v1", "create_pr": False}),
        ("out/final", "me/student", {"private": None, "revision": None, "create_pr": False}),
    ]
    assert "https://huggingface.co/me/student/commit/1" in capsys.readouterr().out


def test_push_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The remedy is in the error's message: it must reach the user."""
    assert main(["push", str(tmp_path), "--repo", "me/student"]) == 2
    assert "expected a finished student" in capsys.readouterr().err


def test_cache_writes_what_train_then_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command must leave what the section `teacher.cache` looks for, and say what is wrong."""
    path = str(recipe(tmp_path))
    pushed: list[tuple[Path, str]] = []

    def push(folder: Path, repo: str) -> SimpleNamespace:
        pushed.append((folder, repo))
        return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr("hf_distill.teachers.cache.push_cache", push)
    assert main(["cache", path, "--push", "me/outputs"]) == 0
    assert pushed == [(tmp_path / "out/cache", "me/outputs")]
    assert "pushed: https://hub/commit" in capsys.readouterr().out
    assert (tmp_path / "out/cache/cache.json").is_file()
    assert main(["cache", path, "--teacher.cache.formt", "full"]) == 2
    assert "did you mean `teacher.cache.format`?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_accelerate_configurations_load(name: str) -> None:
    """A key that accelerate does not know ends a launch on the machine that was waited for."""
    root = Path(__file__).resolve().parents[2] / "recipes/accelerate_configs"
    found: Any = load_config_from_file(str(root / f"{name}.yaml"))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}
    assert found.distributed_type == kinds[name]
    if name == "fsdp2":
        known = {f"fsdp_{field.name}" for field in fields(FullyShardedDataParallelPlugin)}
        known |= {
            "fsdp_version",
            "fsdp_auto_wrap_policy",
            "fsdp_offload_params",
            "fsdp_cpu_ram_efficient_loading",
        }
        assert set(found.fsdp_config) <= known
