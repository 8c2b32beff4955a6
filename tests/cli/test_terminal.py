"""What is printed where somebody watches, and where nobody does."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_recipes import recipe

ROOT = Path(__file__).resolve().parents[2]
LINES = """
import logging, sys, time
from hf_distill.cli.base import complain
from hf_distill.cli.terminal import lines
with lines() as say:
    say("teacher: begins [bold] :smile:")
    if hasattr(say, "status"):
        say.status("step 3 of 8")
    time.sleep(1.7)
    print("printed by others")
    print("warned by others", file=sys.stderr)
    complain("it failed")
    say("| " + "long " * 40 + "|")
print("after", file=sys.stderr)
"""
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(*words: str, **environment: str) -> tuple[str, int]:
    """What a program writes to a terminal, as it arrives, and its exit code."""
    own, its = pty.openpty()
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    process = subprocess.Popen(
        [sys.executable, *words], stdin=its, stdout=its, stderr=its, env=variables, cwd=ROOT
    )
    os.close(its)
    parts = []
    while True:
        try:
            part = os.read(own, 4096)
        except OSError:  # so Linux tells the end
            break
        if not part:
            break
        parts.append(part)
    os.close(own)
    return b"".join(parts).decode(), process.wait()


def seen(text: str) -> list[str]:
    """The lines that are on a screen in the end."""
    screen, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            screen += [""] * (row == len(screen))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            screen[row] = ""
        elif part[0] not in "\x1b\r":
            screen[row] += part
    return [line.rstrip() for line in screen if line.strip()]


def test_a_terminal_shows_what_goes_on() -> None:
    """Half an hour without a sign looks like a program that hangs."""
    text, code = on_a_terminal("-c", LINES)
    assert code == 0, text
    assert "0:00:01 step 3 of 8" in ESCAPE.sub("", text)
    assert text.count("\x1b[?25h") == text.count("\x1b[?25l") == 1  # the cursor is there again
    assert seen(text) == [
        "teacher: begins [bold] :smile:",
        "printed by others",
        "warned by others",
        "hf-distill: it failed",
        "| " + "long " * 40 + "|",
        "after",
    ]


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"RANK": "1"}], ids=str)
def test_a_terminal_that_cannot(variables: dict[str, str]) -> None:
    """Control codes as text in an editor's shell, or eight processes that write over another."""
    text, code = on_a_terminal("-c", LINES, **variables)
    assert code == 0
    assert "\x1b" not in text
    assert "step 3" not in text


def test_a_pipe_gets_plain_lines() -> None:
    """A log file full of control codes; a script that reads lines finds none."""
    done = subprocess.run(
        [sys.executable, "-c", LINES],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm-256color", "FORCE_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        "teacher: begins [bold] :smile:\nprinted by others\n| " + "long " * 40 + "|\n"
    )
    assert done.stderr == "warned by others\nhf-distill: it failed\nafter\n"


@pytest.mark.slow
def test_a_recipe_on_a_terminal(tmp_path: Path) -> None:
    """A bar for each training would fill the screen; without any, nobody knows how long."""
    words = ["train", str(recipe(tmp_path)), "--training.num_train_epochs", "40"]
    text, code = on_a_terminal("-m", "hf_distill", *words, OMP_NUM_THREADS="1")
    assert code == 0, text
    plain = ESCAPE.sub("", text)
    assert re.search(r"0:00:\d\d step \d+ of 200(, loss [\d.]+)?, 0:00:\d\d left", plain)
    assert "it/s" not in plain
    lines = seen(text)
    stages = [line for line in lines if line.startswith(("teacher: ", "student/seed-0: "))]
    assert [line.partition(" in ")[0] for line in stages] == [
        *("teacher: begins", "teacher: done"),
        *("student/seed-0: begins", "student/seed-0: done"),
    ]
    assert any(line.startswith("| Distilled student |") for line in lines)
