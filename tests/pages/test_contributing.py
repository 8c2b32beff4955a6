"""The walk-throughs of CONTRIBUTING.md: edits are made in a copy, and commands run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / ".github/CONTRIBUTING.md"
SKIPPED = shutil.ignore_patterns("__pycache__")


def sections() -> dict[str, list[tuple[str, str]]]:
    """Title of a walk-through -> language and text of its blocks."""
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    blocks = re.compile(r"^```(diff|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = {part.partition("\n")[0]: blocks.findall(part) for part in parts}
    return {name: blocks for name, blocks in found.items() if name.startswith("Add ")}


def edit(root: Path, block: str) -> None:
    """Make the edit of a block; the lines without ``+`` must stand in the file exactly once."""
    header, _, body = block.partition("\n")
    path = root / header.removeprefix("+++ ")
    for hunk in body.split("@@\n"):
        lines = hunk.splitlines()
        assert all(line[:1] in "+ " for line in lines), f"{path}: {lines}"
        new = "".join(line[1:] + "\n" for line in lines)
        old = "".join(line[1:] + "\n" for line in lines if line[:1] != "+")
        if not old:
            assert not path.exists(), path
            path.write_text(new, encoding="utf-8")
            continue
        text = path.read_text(encoding="utf-8")
        assert f"\n{text}".count(f"\n{old}") == 1, f"{path} contains {old!r} not exactly once"
        path.write_text(f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:], encoding="utf-8")


def test_each_walk_through_has_three_edits() -> None:
    """A step that is left out costs a newcomer the afternoon."""
    titles = ["Add an objective", "Add a head", "Add a teacher", "Add a recipe"]
    assert list(sections()) == titles
    text = PAGE.read_text(encoding="utf-8")
    for title in titles:
        part = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
        assert re.findall(r"^(\d)\\\. ", part, re.MULTILINE) == ["1", "2", "3"], title
    assert all(
        (ROOT / path).exists()
        for path in re.findall(r"(?:pytest|python) ((?:tests|\.github)/[\w./]+)", text)
    )


@pytest.mark.slow
@pytest.mark.parametrize("title", sections())
def test_a_walk_through(title: str, tmp_path: Path) -> None:
    """An edit of an old layout, or a part that no contract test runs over."""
    for name in ("hf_distill", "recipes", "tests", "model_cards"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=SKIPPED)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    blocks = sections()[title]
    for language, text in blocks:
        if language == "diff":
            edit(tmp_path, text)
    lint = [sys.executable, "-m", "ruff", "check", "--no-cache", "hf_distill", "recipes", "tests"]
    done = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    commands = [line for kind, text in blocks if kind == "bash" for line in text.splitlines()]
    assert commands
    for command in commands:
        program, *words = command.split()
        module = {"pytest": "pytest", "hf-distill": "hf_distill"}[program]
        more = ["-q", "-p", "no:cacheprovider"] if program == "pytest" else []
        done = subprocess.run(
            [sys.executable, "-m", module, *words, *more],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
