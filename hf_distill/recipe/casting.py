"""Values of a recipe: read from YAML, cast to the type that is wanted, refused with a reason."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import yaml


class RecipeError(ValueError):
    """A recipe, or an override of it, that cannot be run; the message says what to change."""


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2: ``no`` is a word, ``2e-5`` a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in the base class)
        first: [(tag, regexp) for tag, regexp in pairs if not tag.endswith((":bool", ":float"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise RecipeError(
                f"line {node.start_mark.line + 1}: {_quoted(twice)} given twice in one mapping; "
                "the second would silently win. Keep one."
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        RecipeError: not YAML, or a key twice; the message begins with ``where``.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values only
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecipeError as error:
        raise RecipeError(f"{where}, {error}") from error


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def unknown(key: str, known: Iterable[str], prefix: str = "") -> RecipeError:
    """The error for a key that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known are {_quoted(names)}."
    return RecipeError(f"unknown key `{prefix}{key}`; {hint}")


def cast_fields(cls: type, values: Any, prefix: str = "") -> dict[str, Any]:
    """Check and cast a mapping against the fields of a dataclass; nested ones are built.

    Args:
        cls: The dataclass. Fields with ``init=False`` are not settable.
        values: What the recipe says.
        prefix: Where it says so, ``"data."``; for messages.

    Raises:
        RecipeError: not a mapping, an unknown or missing key, a value of another type.
    """
    if not isinstance(values, Mapping):
        name = prefix.rstrip(".") or "the recipe"
        raise RecipeError(f"`{name}`: expected a section of `key: value` lines, got {values!r}.")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in fields:
            raise unknown(str(key), fields, prefix)
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
    for option in sorted(options, key=lambda option: _rank(option, value)):
        try:
            return _as(value, option, key)
        except _MismatchError:
            continue
    raise RecipeError(
        f"`{key}`: expected {describe(hint)}, got {value!r} ({type(value).__name__})."
    )


class _MismatchError(Exception):
    pass


def _options(hint: Any) -> list[Any]:
    """The members of a union; an enum shadows the ``str`` that transformers writes beside it."""
    unions = (typing.Union, types.UnionType)
    options = list(typing.get_args(hint)) if typing.get_origin(hint) in unions else [hint]
    if any(isinstance(option, type) and issubclass(option, enum.Enum) for option in options):
        options = [option for option in options if option is not str]
    return options


def _rank(option: Any, value: Any) -> int:
    """The type that a value has already comes first, text last."""
    origin = typing.get_origin(option) or option
    if origin is type(value):
        return 0
    return 2 if option is str else 1


def _as(value: Any, option: Any, key: str) -> Any:
    origin = typing.get_origin(option) or option
    if option is Any:
        return value
    if origin is typing.Literal:
        if value in typing.get_args(option):
            return value
    elif origin is bool:
        return _as_bool(value)
    elif origin in (int, float):
        return _as_number(value, origin)
    elif origin in (list, tuple):
        return _as_sequence(value, option, origin, key)
    elif isinstance(origin, type) and issubclass(origin, enum.Enum):
        if value in [member.value for member in origin]:
            return value
    elif dataclasses.is_dataclass(origin) and isinstance(origin, type):
        return origin(**cast_fields(origin, value, f"{key}."))
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return dict(value)
    elif origin is str:
        if isinstance(value, str):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
    raise _MismatchError


def _as_bool(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, bool):
        return value
    raise _MismatchError


def _as_number(value: Any, kind: type) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _MismatchError
    if kind is int and isinstance(value, int):
        return value
    try:
        number = float(value)
    except ValueError:
        raise _MismatchError from None
    if kind is float:
        return number
    if not number.is_integer():
        raise _MismatchError
    return int(number)


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
