"""`hf-distill new`: recipes that load, columns, paths, questions, refusals."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from hf_distill.cli import main
from hf_distill.recipe import load_recipe
from hf_distill.recipe.tasks import RECIPE_TASKS

MODELS = ("--teacher", "org/large", "--layers", "2", "--data", "org/data")


@pytest.mark.parametrize("task", RECIPE_TASKS)
def test_a_recipe_of_every_task_loads(tmp_path: Path, task: str) -> None:
    """A newcomer's first file would be refused by the next command."""
    path = tmp_path / "first.yaml"
    assert main(["new", str(path), "--task", task, *MODELS]) == 0
    recipe = load_recipe(path)
    assert (recipe.name, recipe.task, recipe.data.source) == ("first", task, "org/data")
    assert recipe.student.from_teacher_layers == 2
    comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    assert len(comments) > 8
    assert max(map(len, comments)) <= 100


def test_columns_and_local_paths_are_those_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paths of the command line mean another file when read from the recipe's folder."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/rows.csv").write_text("words,class\na,b\n")
    Path("code.py").write_text("")
    words = ["--task", "text_classification", "--teacher", "org/a", "--student", "org/b"]
    words += ["--column", "text=words", "--column", "label_column=class"]
    assert main(["new", "recipes/one.yaml", *words, "--data", "data/rows.csv"]) == 0
    assert "next: hf-distill train recipes/one.yaml --dry-run" in capsys.readouterr().out
    data = load_recipe("recipes/one.yaml").data
    assert (data.source, data.text_column, data.label_column) == (
        "../data/rows.csv",
        "words",
        "class",
    )
    assert main(["new", "recipes/two.yaml", *words, "--data", "code.py:rows"]) == 0
    assert load_recipe("recipes/two.yaml").data.source == "../code.py:rows"


class Terminal(io.StringIO):
    """Answers as a person types them."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question names what it is about; an empty answer keeps the default."""
    answers = ["text_classification", "org/large", "3", "org/data", "sentence", "", ""]
    monkeypatch.setattr("sys.stdin", Terminal("\n".join(answers) + "\n"))
    path = tmp_path / "asked.yaml"
    assert main(["new", str(path)]) == 0
    recipe = load_recipe(path)
    assert recipe.teacher.model == "org/large"
    assert recipe.student.from_teacher_layers == 3
    assert recipe.data.text_column == "sentence"
    assert recipe.data.label_column == "label"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["first.txt"], "ends with .yaml"),
        (["there.yaml"], "is there already"),
        (["a.yaml", "--task", "text_clasification", *MODELS], "text_classification"),
        (["a.yaml", "--task", "text_classification"], "expected --teacher, got none"),
        (["a.yaml", "--task", "text_classification", *MODELS, "--column", "txet=a"], "text"),
        (["a.yaml", "--task", "text_classification", *MODELS, "--column", "text"], "KEY=NAME"),
        (["a.yaml", "--task", "causal_lm", *MODELS, "--student", "org/b"], "got both"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[Any],
    expected: str,
) -> None:
    """A typing error would be found by the run, an hour later."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    Path("there.yaml").write_text("mine")
    assert main(["new", *words]) == 2
    assert expected in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]
    assert Path("there.yaml").read_text() == "mine"
