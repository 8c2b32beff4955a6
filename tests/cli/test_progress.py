"""Progress of `hf-distill train`: on a terminal, and in a file or a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers
from tiny_recipes import recipe
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_distill.cli.progress import progress_callback

ROOT = Path(__file__).resolve().parents[2]


def trained(progress: ProgressCallback | PrinterCallback) -> None:
    """Call a callback as a trainer does in a training of 8 steps and two evaluations."""
    args: Any = TrainingArguments("unused", use_cpu=True)
    state, control = TrainerState(max_steps=8), TrainerControl()
    progress.on_train_begin(args, state, control)
    for step in range(1, 9):
        state.global_step = step
        progress.on_step_end(args, state, control)
        progress.on_log(args, state, control, logs={"loss": 1 / step, "epoch": step})
    progress.on_prediction_step(args, state, control, eval_dataloader=[1])
    progress.on_evaluate(args, state, control)
    progress.on_train_end(args, state, control)
    progress.on_prediction_step(args, state, control, eval_dataloader=[1])
    progress.on_predict(args, state, control, metrics={})
    progress.on_log(args, state, control, logs={"loss": 1.0})


@pytest.fixture
def bars() -> Iterator[None]:
    """Bars of loading are on again after the test."""
    yield
    transformers.logging.enable_progress_bar()
    datasets.enable_progress_bars()


def terminal() -> tuple[int, int]:
    """Both ends of a terminal of 100 columns."""
    own, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    return own, its


def on_a_terminal(*words: str) -> tuple[str, int]:
    """Output of a program on a terminal, as it arrives, and its exit code."""
    own, its = terminal()
    variables = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *words], stdin=its, stdout=its, stderr=its, env=variables, cwd=ROOT
    )
    os.close(its)
    return read_all(own), process.wait()


def read_all(own: int) -> str:
    """What was written to the other end of a terminal, until that is closed."""
    parts = []
    while True:
        try:
            part = os.read(own, 4096)
        except OSError:  # the end, on Linux
            break
        if not part:
            break
        parts.append(part)
    os.close(own)
    return b"".join(parts).decode()


def seen(text: str) -> list[str]:
    """Lines that are on the screen in the end."""
    screen, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row, column = row + 1, 0
            screen += [""] * (row == len(screen))
        elif part == "\x1b[A":
            row -= 1
        elif part == "\r":
            column = 0
        elif part[0] != "\x1b":
            line = screen[row].ljust(column)
            screen[row] = line[:column] + part + line[column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in screen if line.strip()]


@pytest.mark.usefixtures("bars")
def test_a_bar_shows_the_loss_and_disappears(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary for each logged step would fill the screen, and finished bars too."""
    own, its = terminal()
    with open(its, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        trained(progress_callback()())
        print("done", file=screen, flush=True)
    text = read_all(own)
    assert re.search(r"8/8 \[.*loss 0\.125\]", text), text
    assert seen(text) == ["done"]


@pytest.mark.usefixtures("bars")
def test_a_pipe_gets_a_line_for_each_log(capsys: pytest.CaptureFixture[str]) -> None:
    """A log file full of carriage returns; a script that reads lines finds none."""
    trained(progress_callback()())
    shown = capsys.readouterr()
    assert not shown.err
    assert [line[:8] for line in shown.out.splitlines()] == ["{'loss':"] * 9


@pytest.mark.slow
def test_a_recipe_on_a_terminal(tmp_path: Path) -> None:
    """Bars of loading, saving and measuring would be left between the lines of the stages."""
    options = ("--training.num_train_epochs", "4", "--training.disable_tqdm", "false")
    text, code = on_a_terminal("-m", "hf_distill", "train", str(recipe(tmp_path)), *options)
    assert code == 0, text
    assert re.search(r"\d+/20 \[.*loss [\d.]+\]", text)
    lines = seen(text)
    stages = [line for line in lines if line.startswith(("teacher: ", "student/seed-0: "))]
    assert [line.partition(" in ")[0] for line in stages] == [
        *("teacher: begins", "teacher: done"),
        *("student/seed-0: begins", "student/seed-0: done"),
    ]
    assert any(line.startswith("| Distilled student |") for line in lines)
    assert not any("it/s" in line or line.startswith("{") for line in lines), lines
