"""The ``--key value`` of a recipe in a command line."""

from __future__ import annotations

from collections.abc import Sequence

from hf_distill.cli.base import UsageError, near_hint

FLAGS = {"help", "version", "dry-run", "push"}
"""Options that are not keys of a recipe."""


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Take the ``--key value`` and ``--key=value`` of a recipe out of a command line.

    Raises:
        UsageError: a key without a value.
    """
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name in FLAGS:
            rest.append(word)
            continue
        if not equals:
            following = next(words, None)
            if following is None or following.startswith("--"):
                flags = [f"--{flag}" for flag in FLAGS]
                hint = near_hint(f"--{name}", flags) or f": --{name} VALUE (in YAML)."
                raise UsageError(f"--{name} needs a value{hint}")
            value = following
        overrides.append((name, value))
    return rest, overrides
