"""Values of a recipe: cast to the type that is wanted, refused with a reason."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any

from hf_distill.recipe import yaml12
from hf_distill.recipe.errors import RecipeError, check_keys, shown

WIDEST = 2**63
"""Upper bound of integers, exclusive, as in the libraries that receive them."""


def cast_fields(cls: type, values: Any, prefix: str = "") -> dict[str, Any]:
    """Check and cast a mapping against the fields of a dataclass; nested ones are built.

    Raises:
        RecipeError: not a mapping, an unknown or missing key, a value of another type; the keys in
            the message begin with ``prefix`` (``"data."``).
    """
    if not isinstance(values, Mapping):
        name = prefix.rstrip(".") or "the recipe"
        raise RecipeError(
            f"`{name}`: expected a section of `key: value` lines, got {shown(values)}."
        )
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    check_keys(values, fields, prefix)
    for name, field in fields.items():
        missing = field.default is field.default_factory is dataclasses.MISSING
        if missing and name not in values:
            raise RecipeError(
                f"`{prefix}{name}` is missing: expected {describe(hints[name])}. "
                "recipes/README.md shows a whole recipe."
            )
    return {name: cast(value, hints[name], prefix + name) for name, value in values.items()}


def cast(value: Any, hint: Any, key: str) -> Any:
    """Cast a value to a type hint: a plain type, a union, an enum, a literal, lists of them.

    Raises:
        RecipeError: it does not fit; the message names the key, what was expected and what came.
    """
    options = _options(hint)
    if value is None and type(None) in options:
        return None

    def rank(option: Any) -> int:  # the type that the value has comes first, text last
        kind = typing.get_origin(option) or option
        return 0 if kind is type(value) else 2 if option is str else 1

    for option in sorted(options, key=rank):
        try:
            return _as(value, option, key)
        except _MismatchError:
            continue
        except _BadNumberError as error:
            raise RecipeError(f"`{key}`: {error}") from error
    numeral = str in options and isinstance(value, (int, float)) and not isinstance(value, bool)
    quote = " Put text that looks like a number in quotes." if numeral else ""
    raise RecipeError(
        f"`{key}`: expected {describe(hint)}, got {shown(value)} ({type(value).__name__}).{quote}"
    )


class _MismatchError(Exception):
    """The value is of another type."""


class _BadNumberError(Exception):
    """The value is a number, and none that could be meant."""


def _options(hint: Any) -> list[Any]:
    """Members of a union; an enum takes precedence over the ``str`` next to it."""
    unions = (typing.Union, types.UnionType)
    options = list(typing.get_args(hint)) if typing.get_origin(hint) in unions else [hint]
    if any(isinstance(option, type) and issubclass(option, enum.Enum) for option in options):
        options = [option for option in options if option is not str]
    return options


def _as(value: Any, option: Any, key: str) -> Any:
    origin = typing.get_origin(option) or option
    if option is Any:
        return value
    if origin is typing.Literal:
        if value in typing.get_args(option):
            return value
    elif origin is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if isinstance(value, bool):
            return value
    elif origin in (int, float):
        return _as_number(value, origin)
    elif origin in (list, tuple):
        return _as_sequence(value, option, origin, key)
    elif isinstance(origin, type) and issubclass(origin, enum.Enum):
        if value in [member.value for member in origin]:
            return value
    elif dataclasses.is_dataclass(origin) and isinstance(origin, type):
        if isinstance(value, Mapping):
            return origin(**cast_fields(origin, value, f"{key}."))
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return dict(value)
    elif origin is str and isinstance(value, str):
        return value
    raise _MismatchError


def _as_number(value: Any, kind: type) -> int | float:
    if isinstance(value, str):
        try:
            value = yaml12.number(value)
        except RecipeError as error:
            raise _BadNumberError(str(error)) from error
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _MismatchError
    if value != value:
        raise _BadNumberError("expected a number, got .nan, which is none.")
    if kind is float:
        try:
            return float(value)
        except OverflowError:
            raise _BadNumberError(f"expected a number up to 1.8e308, got {shown(value)}.") from None
    if not (isinstance(value, int) or value.is_integer()):
        raise _MismatchError
    if abs(value) >= WIDEST:
        raise _BadNumberError(
            f"expected a whole number of at most 64 bits (9.2e18), got {shown(value)}."
        )
    return int(value)


def _as_sequence(value: Any, option: Any, origin: type, key: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _MismatchError
    inner = typing.get_args(option) or (Any,)
    fixed = origin is tuple and inner[-1] is not Ellipsis
    if fixed and len(inner) != len(value):
        raise _MismatchError
    kinds = inner if fixed else [inner[0]] * len(value)
    items = [cast(v, kind, f"{key}[{i}]") for i, (v, kind) in enumerate(zip(value, kinds))]  # noqa: B905
    return origin(items)


_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def describe(hint: Any) -> str:
    """A type hint in words."""
    parts = []
    for option in _options(hint):
        origin = typing.get_origin(option) or option
        if origin in _WORDS:
            parts.append(_WORDS[origin])
        elif origin in (list, tuple):
            inner = [describe(arg) for arg in typing.get_args(option) if arg is not Ellipsis]
            parts.append("a list" + (f" of {' and '.join(inner)}" if inner else ""))
        elif origin is typing.Literal:
            parts.append(" or ".join(map(repr, typing.get_args(option))))
        elif isinstance(origin, type) and issubclass(origin, enum.Enum):
            parts.append("one of " + ", ".join(str(member.value) for member in origin))
        else:
            parts.append("a section of `key: value` lines")
    return " or ".join(dict.fromkeys(parts))
