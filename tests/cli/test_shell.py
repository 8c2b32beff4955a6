"""The command line as a shell sees it: quick help, suggestions, completion."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_distill.cli import main
from hf_distill.cli.parser import COMMANDS, module_of, parser

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "datasets", "numpy", "huggingface_hub")
LIGHT = f"""
import sys
from hf_distill.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0, end.code
found = set({HEAVY}) & set(sys.modules)
assert not found, found
"""


def python(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """Help, and every TAB of some shells, would take ten seconds in place of a tenth of one."""
    done = python(LIGHT, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Options without an example are guessed at; a script without exit codes checks nothing."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert f"hf-distill {command}" in shown.partition("examples:")[2]
    assert "exit codes: 0" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that is not listed is not found."""
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n    {command}" in shown for command in COMMANDS)
    assert "exit codes: 0 done; 1" in shown
    assert "130 interrupted" in shown


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian", "r.yaml"], "'trian' is unknown, did you mean 'train'?"),
        (["robust"], "'robust' is unknown, did you mean 'robustness'?"),
        (["recipes", "lst"], "'lst' is unknown, did you mean 'list'?"),
        (["push", "dir", "--reop", "me/x"], "--reop is unknown, did you mean '--repo'?"),
        (["push", "dir", "--repo", "me/x", "--privat-repo"], "did you mean '--private'?"),
        (["init-student", "t", "--output", "o", "--hidden_size=8"], "mean '--hidden-size'?"),
        (["serve-teacher", "m", "--task", "causal_ml"], "did you mean 'causal_lm'?"),
        (["doctor", "--xyzzy"], "unrecognized arguments: --xyzzy"),
    ],
)
def test_the_right_one_is_suggested(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo sends the user to the manual; and where it is swallowed, something else is run."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert hint in errors
    assert errors.startswith("usage: hf-distill")


def test_nobody_reads_on() -> None:
    """`hf-distill recipes list | head -1` would end in a stack trace."""
    words = f"{sys.executable} -m hf_distill completion bash | head -1"
    done = subprocess.run(
        ["bash", "-c", words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.count("\n") == 1
    assert not done.stderr


def test_a_flag_of_train_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    """`--dryrun` would be taken for a key of the recipe, and the training started."""
    assert main(["train", "r.yaml", "--dryrun"]) == 2
    assert "did you mean '--dry-run'?" in capsys.readouterr().err


def test_what_is_written_twice_agrees() -> None:
    """The parser lists the tasks without importing them: it would list old ones."""
    from hf_distill.cli import serve_teacher
    from hf_distill.models.tasks import TASKS
    from hf_distill.teachers.serving.limits import Limits

    assert tuple(sorted(TASKS)) == serve_teacher.TASKS
    known = (Limits.max_tokens, Limits.max_elements)
    assert known == (serve_teacher.MAX_TOKENS, serve_teacher.MAX_ELEMENTS)


def test_each_command_has_a_parser_and_a_run() -> None:
    """A command that is only in the help ends in a stack trace."""
    for name in COMMANDS:
        assert callable(module_of(name).add_arguments), name
        assert callable(module_of(name).run), name
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert list(commands.choices) == list(COMMANDS)


# ---- completion --------------------------------------------------------------------------------

COMPLETE = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
function=$(complete -p hf-distill | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function hf-distill "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ro"], {"robustness"}),
        (["se"], {"serve-teacher"}),
        (["recipes", ""], {"list", "show", "copy"}),
        (["push", "--rep"], {"--repo"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["serve-teacher", "m", "--task", "causal"], {"causal_lm"}),
        (["train", "my_r"], {"my_recipe.yaml"}),
        (["push", "ru"], {"runs"}),
        (["eval", "m", "--teacher", "ru"], {"runs"}),
        (["robustness", "--model", "ru"], {"runs"}),
    ],
    ids=lambda part: " ".join(sorted(part) if isinstance(part, set) else part),
)
def test_bash_completes(
    tmp_path: Path, words: list[str], expected: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A script that bash does not understand prints an error at every TAB."""
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "hf-distill.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "my_recipe.yaml").touch()
    (tmp_path / "runs").mkdir()
    (tmp_path / "run.txt").touch()
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE, "bash", str(script), "hf-distill", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert expected <= set(done.stdout.split())
    assert len(words[-1]) < 2 or expected == set(done.stdout.split())


@pytest.mark.parametrize(
    ("shell", "expected"), [("zsh", "#compdef hf-distill"), ("fish", "complete -c hf-distill")]
)
def test_other_shells(shell: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A script for another program completes nothing."""
    assert main(["completion", shell]) == 0
    shown = capsys.readouterr().out
    assert expected in shown
    assert "robustness" in shown


def test_completion_without_its_library(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stack trace instead of the name of what to install."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'hf_distill[completion]'" in capsys.readouterr().err


# ---- the lazy package --------------------------------------------------------------------------

LAZY = """
import sys
import hf_distill
from hf_distill import __version__
assert "torch" not in sys.modules, "import hf_distill"
import hf_distill.losses
assert "transformers" not in sys.modules, "a module alone"
from hf_distill import DistillationTrainer, ForwardKL, training
assert hf_distill.ForwardKL is ForwardKL
assert training.trainer.DistillationTrainer is DistillationTrainer
names = {}
exec("from hf_distill import *", names)
missing = set(hf_distill.__all__) - set(names)
assert not missing, missing
assert len(set(hf_distill.__all__)) > 100
assert {"ForwardKL", "OBJECTIVES", "__version__"} <= set(dir(hf_distill))
assert hf_distill.robustness.RobustnessConfig
for name in ("Nothing", "_nothing", "__nothing__"):
    assert not hasattr(hf_distill, name), name
try:
    from hf_distill import Nothing
except ImportError as error:
    assert "Nothing" in str(error)
"""


def test_names_are_there_when_asked_for() -> None:
    """`from hf_distill import DistillationTrainer` is the first line of every script."""
    done = python(LAZY)
    assert done.returncode == 0, done.stderr
