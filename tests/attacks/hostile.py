"""Hostile recipes: values that no key means, and what one dry run makes of them."""

from __future__ import annotations

import dataclasses
import random
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_distill import DistillationConfig
from hf_distill.cli import main
from hf_distill.objectives import METHODS, OBJECTIVES, settings_of
from hf_distill.recipe.loading import MANAGED
from hf_distill.recipe.schema import Recipe

VALUES = (
    *("null", "true", "no", "0", "1", "-1", "3", "0.5", "-0.5", "1e-320", "1e308", "-1e308"),
    *(
        ".nan",
        ".inf",
        "-.inf",
        f"{10**30}",
        "9" * 5_000,
        "010",
        "0o10",
        "1_000",
        "2:1",
        "190:20:30",
    ),
    *("2024-01-01", "''", "' '", "x", "../../x", "/etc/passwd", "%s{x}$HOME", "-rf", "'\\0'"),
    *('"\\0"', '"\\ud83d\\ude00"', '"\\ud83d"', '"a\\nb"', "x" * 5_000, "hf://x/y", "s3://x/y"),
    *(
        "[]",
        "{}",
        "[null]",
        "[1]",
        "[[1]]",
        "[x, x]",
        "{x: 1}",
        "{name: x}",
        "[{name: forward_kl}]",
    ),
    *("{1: 2}", "[.nan]", "{schedule: linear, start: .nan}", "lines.py:broken", "lines.py:nothing"),
)
"""As they stand in a recipe's file."""
SLOWEST = 20.0
"""Seconds that a dry run may take."""


def keys() -> list[str]:
    """Every key of a recipe but the single training arguments, dotted."""
    return list(_keys(Recipe, ""))


def _keys(section: type, prefix: str) -> Iterator[str]:
    for name, hint in typing.get_type_hints(section).items():
        if name not in {f.name for f in dataclasses.fields(section) if f.init}:
            continue
        yield prefix + name
        inner = [o for o in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(o)]
        for kind in inner:
            yield from _keys(typing.cast(type, kind), f"{prefix}{name}.")


def training_keys() -> list[str]:
    """The training arguments that a recipe may set, dotted."""
    names = [f.name for f in dataclasses.fields(DistillationConfig) if f.init]
    return [f"training.{name}" for name in names if name not in MANAGED]


def rows() -> Iterator[tuple[str, str]]:
    """Every objective with each of its settings, and its weight."""
    for name in (*OBJECTIVES, *METHODS):
        for setting in (*settings_of(name), "weight"):
            yield name, setting


def overrides(of: list[str], count: int, seed: int) -> list[tuple[str, str]]:
    """A sample of keys with hostile values."""
    every = [(key, value) for key in of for value in VALUES]
    return random.Random(seed).sample(every, min(count, len(every)))


def objectives(count: int, seed: int) -> list[tuple[str, str]]:
    """A sample of objectives with hostile settings, as overrides."""
    every = [
        ("objective", f"[{{name: {name}, {setting}: {value}}}]")
        for name, setting in rows()
        for value in VALUES
        if not value.startswith("x" * 9)
    ]
    return random.Random(seed).sample(every, count)


def told(words: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command, and what it said on stderr: at most a line and no traceback."""
    begun = time.monotonic()
    code = main(words)
    seconds = time.monotonic() - begun
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("hf-distill: ")]
    assert code in (0, 2), (code, said)
    assert seconds < SLOWEST, seconds
    assert "Traceback" not in said
    if code == 2:
        assert len(lines) == 1, said
        assert len(lines[0]) > 40, said
    return code, said


def write(path: Path, values: dict[str, Any] | str) -> Path:
    """A recipe's file with these values, or this text."""
    text = values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path
