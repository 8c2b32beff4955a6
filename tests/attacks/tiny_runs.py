"""A tiny recipe that is run, and what lies in a folder: for the attacks on runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ENVIRONMENT

from hf_distill.cli import main

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 2}


def tree(folder: Path) -> dict[str, bytes | str]:
    """All files, links and folders below a folder, with their content."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = path.read_bytes() if path.is_file() else "folder"
    return found


def train(path: Path, *words: str) -> int:
    return main(["train", str(path), *words])


def weights(out: Path) -> bytes:
    return (out / "final/model.safetensors").read_bytes()


def spawn(path: Path, *words: str) -> subprocess.Popen[str]:
    """`hf-distill train` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "hf_distill", "train", str(path), *words],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def refused(path: Path, out: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run ends with 2 and the name of what is not ours; nothing is touched, nothing begins."""
    before = tree(out)
    capsys.readouterr()
    assert train(path, "--output_dir", str(out)) == 2
    shown = capsys.readouterr()
    assert name in shown.err, shown.err
    assert "begins" not in shown.out
    assert tree(out) == before
