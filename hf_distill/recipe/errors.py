"""Errors of recipes that cannot be run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from hf_distill.utils.suggest import nearest

LONGEST = 200
"""The most characters of a value that a message shows."""


class RecipeError(ValueError):
    """Recipe or override that cannot be run; the message contains the remedy."""


def quoted(names: Iterable[str]) -> str:
    """``\\`a\\`, \\`b\\```."""
    return ", ".join(f"`{name}`" for name in names)


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, at most `LONGEST` characters."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def unknown(key: Any, known: Iterable[str], prefix: str = "") -> RecipeError:
    """The error for a key that does not exist, with the nearest one that does."""
    names, key = sorted(known), str(key)
    near = nearest(key[:LONGEST], names, 0.5)
    hint = f"did you mean `{prefix}{near}`?" if near else f"known are {quoted(names)}."
    return RecipeError(f"unknown key `{prefix}{key[:LONGEST]}`; {hint}")


def check_keys(given: Iterable[Any], known: Iterable[str], prefix: str, *more: str) -> None:
    """Raise `unknown` for the first key that is not known; ``more`` names are suggested too."""
    names = set(known)
    for key in given:
        if key not in names:
            raise unknown(key, names.union(more), prefix)


@contextmanager
def refusing(what: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Convert errors of other code about a value to `RecipeError`.

    Args:
        what: The beginning of the message, such as a key.
        kinds: The kinds of errors, whose message is kept as it is; default: all, on one line.
    """
    caught = kinds or (Exception, SystemExit)
    try:
        yield
    except RecipeError:
        raise
    except caught as error:
        raise RecipeError(f"{what}: {error if kinds else told(error)}") from error


def told(error: BaseException) -> str:
    """Text of an error on one line, with its type where the text alone is unclear."""
    text = " ".join(str(error).split())
    plain = isinstance(error, (OSError, RuntimeError, ValueError)) and " " in text
    return text if plain else f"{type(error).__name__}: {text}".removesuffix(": ")
