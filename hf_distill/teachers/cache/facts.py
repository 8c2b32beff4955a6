"""Validation of a cache's manifest, which may be untrusted input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_distill.models.tasks import TASKS
from hf_distill.teachers.cache.checked_json import MANIFEST
from hf_distill.teachers.cache.content import Content


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _or_none(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_text, value))


def _names_by_prefix(value: Any) -> bool:
    return _mapping(value) and all(map(_text, value)) and all(map(_names, value.values()))


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "teacher": ("a hash", _text),
    "task": (f"one of {', '.join(sorted(TASKS))}", lambda value: _text(value) and value in TASKS),
    "inputs": ("a list of names", _names),
    "tokenizer": ("a hash or null", _or_none(_text)),
    "preprocessing": ("a hash or null", _or_none(_text)),
    "content": ("a mapping", _mapping),
    "raw_columns": ("lists of names by prefix, or null", _or_none(_names_by_prefix)),
    "views": ("a mapping or null", _or_none(_mapping)),
    "describe": ("a mapping", _mapping),
    "config": ("a mapping or null", _or_none(_mapping)),
    "examples": ("a number from 1 on", _count),
    "shard_size": ("a number from 1 on", _count),
    "shards": ("a number from 1 on", _count),
}
"""Fields of a manifest, with the expected form."""


def check_facts(folder: str | Path, facts: Mapping[str, Any]) -> Content:
    """The content that a manifest describes.

    Args:
        folder: Folder of the cache.
        facts: The manifest, as `read_manifest` gives it.

    Raises:
        ValueError: a field is missing or of another type, or the fields do not fit together.
    """
    for name, (wanted, fits) in FIELDS.items():
        absent = name not in facts and name != "raw_columns"  # which caches of before lack
        if absent or not fits(facts.get(name)):
            got = f"{facts[name]!r:.80}" if name in facts else "nothing"
            raise ValueError(_refusal(folder, f"{wanted} as {name}", got))
    shards = -(-facts["examples"] // facts["shard_size"])
    if facts["shards"] != shards:
        wanted = f"{shards} shards of {facts['examples']} examples, {facts['shard_size']} each"
        raise ValueError(_refusal(folder, wanted, str(facts["shards"])))
    try:
        return Content.from_json(facts["content"])
    except ValueError as error:
        raise ValueError(_refusal(folder, "content that can be read", str(error))) from error


def _refusal(folder: str | Path, wanted: str, got: str) -> str:
    return (
        f"Expected {wanted} in {Path(folder) / MANIFEST}, got {got}. It was not written by this "
        "hf_distill, or changed since. Restore it from a copy, or write the cache anew in another "
        "folder."
    )
