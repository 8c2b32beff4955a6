"""YAML 1.2 core schema within limits of size and depth: reading and writing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import yaml

from hf_distill.recipe.errors import RecipeError, quoted, shown

DEEPEST = 40
"""The most sections and lists within one another."""
MOST_VALUES = 10_000
"""The most values of a text, those that it repeats through ``*aliases`` counted each time."""

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


def number(text: str) -> int | float | None:
    """The number of a text by the core schema (``010`` is 10, ``0o10`` 8), or None.

    Raises:
        RecipeError: it has too many digits, or is too large.
    """
    if _INT.fullmatch(text):
        try:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        except ValueError:  # Python reads at most 4,300 digits
            raise RecipeError(
                f"expected a number of fewer digits, got {len(text):,}: {text:.20}…"
            ) from None
    if not _FLOAT.fullmatch(text):
        return None
    if text.lower().lstrip("+-") in (".inf", ".nan"):
        return float(text.replace(".", ""))
    if math.isinf(value := float(text)):
        raise RecipeError(f"expected a number up to 1.8e308, got {text:.40}; infinity is `.inf`.")
    return value


_CORE: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (re.compile(r"~|null|Null|NULL|"), lambda text: None),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    "int": (_INT, number),
    "float": (_FLOAT, number),
}
"""Scalars other than text: pattern and type (YAML 1.2.2, section 10.3)."""


class _Loader(yaml.SafeLoader):
    """PyYAML's reader, of version 1.1, with the scalars of 1.2 alone; ``<<`` merges mappings."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (as in the base class)
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; refuse recursion and too deep or large documents."""
        event, before = self.peek_event(), self._values
        if not self.check_event(yaml.AliasEvent):
            self._values += 1
        self._depth += 1
        if self._depth > DEEPEST:
            self._refuse(event, f"expected at most {DEEPEST} levels of sections and lists")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if self._values > before:
            self._sizes[id(node)] = self._values - before
        elif id(node) not in self._sizes:
            self._refuse(event, "an `*alias` repeats the section or list that it stands in")
        else:
            self._values += self._sizes[id(node)]
        if self._values > MOST_VALUES:
            self._refuse(
                event,
                f"expected at most {MOST_VALUES:,} values, with those that *aliases repeat. Let "
                "the function of `data.source` read longer lists from a file",
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose a mapping; refuse duplicate keys."""
        node = super().compose_mapping_node(anchor)
        names: dict[Any, str] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(key, "expected a name as a key, got a section or list")
            merge = key.tag == f"{_TAG}merge"
            name = key.value if merge else self.construct_object(key)
            if name in names:
                self._refuse(
                    node,
                    f"{quoted([names[name]])} given twice in one mapping; the second would "
                    "silently win. Keep one",
                )
            names[name] = key.value
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge ``<<`` into a mapping: its own keys take precedence, then earlier sources (later
        ones in PyYAML 6.0.4)."""
        own = [pair for pair in node.value if pair[0].tag != f"{_TAG}merge"]
        names, merged = {self.construct_object(key) for key, _ in own}, []
        for key, value in node.value:
            if key.tag != f"{_TAG}merge":
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    self._refuse(source, "expected a section, or a list of sections, for `<<`")
                self.flatten_mapping(source)
                for pair in source.value:
                    if (name := self.construct_object(pair[0])) not in names:
                        names.add(name)
                        merged.append(pair)
        node.value = [*merged, *own]

    def _core(self, node: Any) -> Any:
        """A scalar of the core schema."""
        pattern, value = _CORE[node.tag.removeprefix(_TAG)]
        text = self.construct_scalar(node)
        if not pattern.fullmatch(text):
            self._refuse(node, f"{shown(text)} is no {node.tag.removeprefix(_TAG)}")
        try:
            return value(text)
        except RecipeError as error:
            self._refuse(node, str(error).rstrip("."))

    def _text(self, node: Any) -> str:
        """Text; halves of a character, as JSON escapes those beyond 16 bits, are put together."""
        text: str = self.construct_scalar(node)
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._refuse(node, f"expected text, got half a character in {ascii(text)[:60]}")

    def _refuse(self, at: Any, why: str) -> NoReturn:
        raise RecipeError(f"line {at.start_mark.line + 1}: {why}.")


_Loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"<<\Z"), None)
_Loader.add_constructor(f"{_TAG}str", _Loader._text)
for _other in (f"{_TAG}seq", f"{_TAG}map", None):
    _Loader.yaml_constructors[_other] = yaml.SafeLoader.yaml_constructors[_other]


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else."""


for _name, (_pattern, _) in _CORE.items():
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_TAG + _name, _whole, None)
    _Loader.add_constructor(_TAG + _name, _Loader._core)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        RecipeError: not YAML, a key twice, or more than `DEEPEST` and `MOST_VALUES` allow; the
            message begins with ``where``.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values only
    except RecipeError as error:
        raise RecipeError(f"{where}, {error}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # of escapes: "\UFFFFFFFF"
        raise RecipeError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def to_yaml(values: Any) -> str:
    """Values as a YAML text, which both versions read as these values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
