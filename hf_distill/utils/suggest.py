"""Suggestions for misspelt names in error messages."""

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[object], cutoff: float = 0.6) -> str:
    """The known name that is most similar to a given one; empty if none is similar enough."""
    return next(iter(difflib.get_close_matches(str(name), list(map(str, known)), 1, cutoff)), "")


def did_you_mean(name: object, known: Iterable[object], cutoff: float = 0.6) -> str:
    """`` Did you mean 'x'?``, or nothing."""
    near = nearest(name, known, cutoff)
    return f" Did you mean {near!r}?" if near else ""


def suggestion(name: object, known: Iterable[object]) -> str:
    """``Did you mean 'x'?``, or the list of all known names."""
    names = list(map(str, known))
    near = did_you_mean(name, names, 0.4).strip()
    return near or f"Choose from: {', '.join(names) or 'none'}."


def one_of(what: str, value: object, known: Iterable[object]) -> None:
    """Raise ValueError if a value is not one of the known ones; ``what``: the option's name, with
    its article."""
    names = list(known)
    if value not in names:
        hint = did_you_mean(value, names)
        raise ValueError(f"Expected {what} of {names}, got {value!r}.{hint}")
