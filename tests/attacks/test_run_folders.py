"""Attacks on what others made: folders and files with the names of those that runs and commands
write. The judge is the operating system: what lies there before and after, and the exit code.
"""

from __future__ import annotations

import os
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from launch import launch
from tally import Tally
from tiny_recipes import language, recipe
from tiny_runs import SHORT, refused, train, tree

from hf_distill.cli import main
from hf_distill.recipe import stages
from hf_distill.recipe.stages import Stage
from hf_distill.utils.folders import held

CHAINED: dict[str, Any] = {
    "teacher": {"seeds": [0, 1], "cache": {}},
    "assistants": [{"from_teacher_layers": [0, 1]}],
    "generations": 2,
    "control": {"objective": [{"name": "hard_labels"}]},
    "robustness": {"perturbations": ["character_swaps"], "attacks": [], "invariance": []},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny recipe in a folder of its own."""
    return recipe(tmp_path_factory.mktemp("project"), training=SHORT)


def strangers(folder: Path, kind: str) -> None:
    """Something of the user's with the name of a folder or file that a run writes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        folder.write_text("mine")
    elif kind == "dangling link":
        folder.symlink_to("nowhere")
    elif kind == "link to a folder":
        (folder.parent / "elsewhere").mkdir()
        (folder.parent / "elsewhere/precious.txt").write_text("mine")
        folder.symlink_to("elsewhere")
    else:
        names = {"hidden": ".git/config", "below": "thesis/1/draft.md", "own": "stage.json"}
        inside = folder / names.get(kind, "precious.txt")
        inside.parent.mkdir(parents=True)
        inside.write_text('{"mine": true}')


KINDS = ("content", "hidden", "below", "own", "file", "dangling link", "link to a folder")
FOLDERS = ("teacher", "baseline/seed-0", "student/seed-0", "evaluation", "speed", "final")
FILES = ("report.json", "report.md", "curves.png", "card.json", "recipe.yaml", "severity.png")
MORE = ("teacher/seed-1", "assistant-1", "generation-1/seed-0", "control/seed-0", "robustness")


@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_others_made_is_never_replaced(
    long: bool, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's folder `teacher/` in a project would be gone after a run in it, without a word."""
    cases = [(name, kind) for name in (*FOLDERS, ".final.old", ".final.tmp") for kind in KINDS]
    cases = [case for case in cases if case != (".final.tmp", "own")]  # our sign in it
    every = [("teacher", "content"), ("final", "content"), ("speed", "hidden")]
    sample = every + random.Random(0).sample(cases, 5)
    with Tally("runs: folders and files of others") as attacks:
        for name, kind in cases if long else sample:
            out = tmp_path / f"{name}-{kind}".replace("/", "-")
            strangers(out / name, kind)
            with attacks.attack(f"{name}, {kind}"):
                refused(project, out, name.rpartition("/")[2], capsys)
        with attacks.attack("teacher, --dry-run"):
            strangers(tmp_path / "dry/teacher", "content")
            assert train(project, "--output_dir", str(tmp_path / "dry"), "--dry-run") == 2
            assert "/dry/teacher" in capsys.readouterr().err
        for name in FILES if long else FILES[1::3]:
            out = tmp_path / f"file-{name}"
            strangers(out / name, "file")
            with attacks.attack(name):
                refused(project, out, name, capsys)


def _refused_by_all(path: str, out: str) -> None:
    assert train(Path(path), "--output_dir", out) == 2
    with held(Path(out).parent / "held") if os.environ["RANK"] == "0" else nullcontext():
        PartialState().wait_for_everyone()
        held_by_first = str(Path(out).parent / "held")
        assert train(Path(path), "--output_dir", held_by_first) == 2
        PartialState().wait_for_everyone()


@pytest.mark.slow
def test_all_processes_of_a_launch_refuse(project: Path, tmp_path: Path) -> None:
    """One process would leave, and the others wait for it until a timeout."""
    strangers(tmp_path / "out/student/seed-0", "content")
    before = tree(tmp_path)
    with Tally("runs: folders and files of others") as attacks, attacks.attack("two processes"):
        own = {"PYTHONPATH": str(Path(__file__).parent)}
        told = launch(_refused_by_all, project, tmp_path / "out", processes=2, environment=own)
        assert told.count("hf-distill: ") == 2, told
        assert "is in use: process" in told
        assert tree(tmp_path) == before


@pytest.mark.slow
def test_folders_of_chains_and_caches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The members of a chain, the cache and the samples have folders of other names."""
    chain = recipe(tmp_path / "chain", training=SHORT, **CHAINED)
    prose = language(tmp_path / "prose")
    with Tally("runs: folders and files of others") as attacks:
        for path, name in [*((chain, name) for name in (*MORE, "cache")), (prose, "samples")]:
            out = tmp_path / f"out-{name}".replace("/", "-")
            strangers(out / name, "content")
            with attacks.attack(name):
                refused(path, out, name.rpartition("/")[2], capsys)
        for content in ("data/rows.csv", "README.md", "notes.txt", "cache.json"):
            elsewhere = tmp_path / f"elsewhere-{content[:4]}"
            (elsewhere / content).parent.mkdir(parents=True)
            (elsewhere / content).write_text("mine")
            before = tree(elsewhere)
            for command in ("train", "cache"):
                with attacks.attack(f"teacher.cache.path with {content}, {command}"):
                    words = ["--output_dir", str(tmp_path / "fresh")]
                    words += ["--teacher.cache.path", str(elsewhere)]
                    assert main([command, str(chain), *words]) == 2
                    assert elsewhere.name in capsys.readouterr().err
                    assert tree(elsewhere) == before
                    assert not (tmp_path / "fresh").exists()


def test_what_is_not_in_the_way_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Notes beside the stages, a folder whose stage the recipe lacks, the recipe itself in the
    output folder, what a person added to `final`: refused for nothing, or lost."""
    path = recipe(tmp_path, training=SHORT)
    own = {name: f"{name}, mine" for name in ("baseline/notes.txt", "cache/x.bin", "samples/1")}
    for name, text in own.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    given = path.read_text()
    with Tally("runs: folders and files of others") as attacks:
        with attacks.attack("the first run"):
            assert train(path, "--output_dir", str(tmp_path)) == 0
        added = {
            "LICENSE": "a licence",
            "shown.png": "a picture",
            "onnx/model.onnx": "made by another tool",
            ".git/HEAD": "ref",
        }
        for name, text in added.items():
            (tmp_path / "final" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "final" / name).write_text(text)
        (tmp_path / "student/seed-0/thoughts.md").write_text("on this seed")
        with attacks.attack("a second run with another learning rate"):
            words = ["--student.training.learning_rate", "5e-4"]
            with pytest.warns(UserWarning, match=r"onnx/model\.onnx .* are of earlier ones"):
                assert train(path, "--output_dir", str(tmp_path), *words) == 0
        for name, text in (own | {f"final/{k}": v for k, v in added.items()}).items():
            with attacks.attack(name):
                assert (tmp_path / name).read_text() == text
        with attacks.attack("a note in a stage's folder"):
            assert (tmp_path / "student/seed-0/thoughts.md").read_text() == "on this seed"
        with attacks.attack("the recipe"):
            assert path.read_text() == given
        with attacks.attack("nothing is left behind"):
            assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


REPORTS = {
    "eval": (["nowhere", "--dataset", "x.py:f"], ["eval.json", "eval.md"]),
    "compare": (["nowhere"], ["compare.json", "compare.md", "compare.png"]),
    "robustness": (
        ["--model", "nowhere", "--dataset", "x.py:f"],
        ["robustness.json", "robustness.md", "severity.png", "reliability.png"],
    ),
}


def test_reports_of_others_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--output notes` would replace the notes of a person, at the end of an hour's work."""
    with Tally("runs: reports and exports of others") as attacks:
        for command, (words, names) in REPORTS.items():
            for name in names:
                out = tmp_path / f"{command}-{name}"
                out.mkdir()
                (out / name).write_text('{"models": "mine"}')
                with attacks.attack(f"{command}: {name}"):
                    assert main([command, *words, "--output", str(out)]) == 2
                    assert f"Expected no {name} in {out}" in capsys.readouterr().err
                    assert tree(out) == {name: b'{"models": "mine"}'}
            for place in ("/dev/null", "/dev/null/x", "/proc/x", str(out / name), "x" * 300):
                with attacks.attack(f"{command} --output {place[:20]}"):
                    assert main([command, *words, "--output", place]) == 2
                    told = capsys.readouterr().err.splitlines()[-1]
                    assert "cannot be written" in told
                    assert tree(out) == {name: b'{"models": "mine"}'}


def test_exports_of_others_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A graph that another tool made of the student would be deleted before ours is there."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    with Tally("runs: reports and exports of others") as attacks:
        for name in ("model.onnx", "model.onnx.data", "model_int8.onnx", "export.json"):
            folder = tmp_path / name.replace(".", "-")
            (folder / "onnx").mkdir(parents=True)
            (folder / "onnx" / name).write_text("mine")
            before = tree(folder)
            with attacks.attack(name):
                assert main(["export", str(folder)]) == 2
                assert f"Expected no {name} in" in capsys.readouterr().err
                assert tree(folder) == before


class Killed(BaseException):
    """Stands for SIGKILL at one instant."""


def test_a_kill_while_a_stage_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half emptied, the folder would be taken for the finished stage of the old inputs, or the old
    checkpoints for those of the new."""
    remove = stages.remove
    with Tally("runs: kills while a stage is emptied") as attacks:
        for kill in range(4):
            folder = tmp_path / str(kill)
            old, new = (Stage("teacher", folder, {"rate": rate}) for rate in (1, 2))
            old.begin()
            for name in ("model", "checkpoints/checkpoint-5", "curves.png"):
                (folder / name).mkdir(parents=True)
            (folder / "notes.txt").write_text("mine")
            old.finish({})
            (folder / "checkpoints/checkpoint-5").mkdir(parents=True)
            left = kill

            def counted(path: Path) -> None:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                remove(path)

            with monkeypatch.context() as patch:
                patch.setattr(stages, "remove", counted)
                with attacks.attack(f"before removal {kill + 1}: it was killed"):
                    if kill < 3:
                        with pytest.raises(Killed):
                            new.begin()
                    else:
                        new.begin()
            with attacks.attack(f"before removal {kill + 1}: neither is finished"):
                assert old.results() is None
                assert new.results() is None
            (old if kill % 2 else new).begin()
            with attacks.attack(f"before removal {kill + 1}: nothing old is taken"):
                assert not (folder / "model").exists()
                assert not (folder / "checkpoints").exists()
                assert (folder / "notes.txt").read_text() == "mine"
