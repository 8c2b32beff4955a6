"""Settings that are numbers or switches, checked when they are given."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def check_number(
    name: str,
    value: Any,
    least: float,
    most: float = math.inf,
    *,
    whole: bool = False,
    above: bool = False,
) -> None:
    """Refuse values that are not numbers in a range.

    Args:
        name: Of the setting.
        value: What was given.
        least: The lower bound.
        most: The upper bound.
        whole: Only whole numbers.
        above: The lower bound itself is not allowed.

    Raises:
        ValueError: another value, text and infinity among them.

    >>> check_number("top_p", 0.9, 0, 1, above=True)
    >>> check_number("top_p", "0.9", 0, 1, above=True)
    Traceback (most recent call last):
    ValueError: Expected top_p above 0 and at most 1, got '0.9'.
    """
    right = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if right and math.isfinite(value) and least <= value <= most and not (above and value == least):
        return
    kind = " as a whole number" if whole else ""
    bounds = f"above {least}" if above else f"of at least {least}"
    if most < math.inf:
        bounds = f"above {least} and at most {most}" if above else f"between {least} and {most}"
    raise ValueError(f"Expected {name} {bounds}{kind}, got {value!r}.")


def check_switch(name: str, value: Any) -> None:
    """Raise ValueError unless a setting is true or false: the text "no" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"Expected {name} as True or False, got {value!r}.")
