"""Correction of card fields, so that a training does not fail over a model card."""

import itertools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hf_distill.hub import values
from hf_distill.utils.files import write_text

from .card import BY_HAND, StudentCard, join, render, shown
from .check import card_problems
from .files import images_of, published_files
from .markup import cell

FIELDS = {
    "language": "language",
    "license": "license",
    "model_name": "model_name",
    "finetuned_from": "base_model",
    "tasks": "task",
    "tags": "tags",
}
"""Argument of `Trainer.create_model_card` -> the field of `StudentCard`."""
CARD_ARGUMENTS = (*FIELDS, "dataset_tags", "dataset", "dataset_args")
_CLEARED = ("language", "license", "task", "base_model")
_LONGEST = 80  # characters of a value that a note shows


def mended(
    card: StudentCard, arguments: Mapping[str, Any] | None = None
) -> tuple[StudentCard, list[str]]:
    """A card that `render` and `validate` take, and a note for each field that was changed.

    Values that the Hub rejects are normalised (``en_XX`` to ``en``, ``Apache-2.0`` to
    ``apache-2.0``), replaced by those of the earlier card, or left out. ``arguments`` are those of
    `Trainer.create_model_card`; None: not given.
    """
    notes: list[str] = []
    cleared: Any = dict.fromkeys(_CLEARED)
    before = replace(card, model_name="student", tags=[], **cleared)
    for field in FIELDS.values():
        before = _settled(before, field, field, getattr(card, field), notes)
    given = {name: value for name, value in (arguments or {}).items() if value is not None}
    for name, field in FIELDS.items():
        if name in given:
            before = _settled(before, name, field, given[name], notes)
    data = dict(before.data)
    for key, names in (("name", ("dataset_tags", "dataset")), ("config", ("dataset_args",))):
        found = [first for n in names if n in given for first in _first_of(n, given[n], notes)]
        data |= {key: found[0]} if found else {}
    results = {model: _numbers(model, row, notes) for model, row in before.results.items()}
    return _built_up(replace(before, data=data, results=results), notes), notes


def write_mended(
    card: StudentCard, folder: str | os.PathLike[str], arguments: Mapping[str, Any] | None = None
) -> list[str]:
    """`mended`, then written to ``folder/README.md`` as `write` does it; returns the notes.

    A card there that cannot be published, or not be read, is kept under another name, which is not
    published.
    """
    path = Path(folder) / "README.md"
    card, notes = mended(card, arguments)
    text = render(card)
    try:
        joined = join(text, path)
        whole = path.read_text(encoding="utf-8") if joined is None else joined
        problems = card_problems(whole)
        unseen = sorted(set(images_of(whole)) - set(published_files(folder)))
        problems += [f"shows {name}, which is not among the published files" for name in unseen]
    except (OSError, ValueError) as error:
        joined, problems = text, [" ".join(str(error).split())]
    if problems and path.exists():
        endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        places = (path.with_name(f"README.old{ending}.md") for ending in endings)
        aside = next(place for place in places if not place.exists())
        path.rename(aside)
        joined = text
        notes.append(
            f"`README.md`: the card that stood there cannot be published ({problems[0]}): kept as "
            f"{aside.name}, and written anew"
        )
    if joined is None:
        notes.append(BY_HAND.format(path=path))
    else:
        write_text(path, joined)
    return notes


def _settled(card: StudentCard, name: str, field: str, value: Any, notes: list[str]) -> StudentCard:
    if value is None or value in ([], ()):
        return card
    if field == "license":
        changes = _licence(value, card)
    else:
        found = _READ[field](value)
        changes = {field: found} if found else {}
    found = changes.get(field)
    if found not in (value, _items(value)) and [found] != _items(value):
        notes.append(_note(name, value, _done(card, field, changes)))
    if field == "tags":
        changes = {"tags": [*card.tags, *(found or [])]}
    return replace(card, **changes)


def _done(card: StudentCard, field: str, changes: Mapping[str, Any]) -> str:
    if changes.get("license_name"):
        return f"no licence of the Hub, written as `other`, named {changes['license_name']!r}"
    if changes.get(field):
        return f"written as {changes[field]!r}"
    kept = None if field in changes else getattr(card, field)
    return f"nothing that the Hub knows, {kept!r} written" if kept else "left out"


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _note(name: str, value: Any, done: str) -> str:
    text = repr(value)
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return f"`{name}`: got {text}: {done}"


def _languages(value: Any) -> str | list[str] | None:
    found = list(dict.fromkeys(c for text in values.texts(value) for c in values.languages(text)))
    return found[0] if len(found) == 1 and isinstance(value, str) else found or None


def _licence(value: Any, card: StudentCard) -> dict[str, Any]:
    """``license``, and for one that the Hub has no name for ``license_name``."""
    stated = values.texts(value)
    known = [found for text in stated if (found := values.licence(text)) not in (None, "other")]
    if known:
        return {"license": known[0], "license_name": None}
    named = [text for text in stated if re.search(r"[^\W\d_]", text) and text.lower() != "other"]
    if named or (stated and card.license_name):
        return {"license": "other", "license_name": card.license_name or named[0]}
    return {"license": None} if stated else {}


_READ: dict[str, Callable[[Any], Any]] = {
    "language": _languages,
    "task": lambda value: next(filter(None, map(values.pipeline_tag, values.texts(value))), None),
    "tags": values.texts,
    "base_model": lambda value: next(iter(values.texts(value)), None),
    "model_name": lambda value: next(filter(_is_a_name, values.texts(value)), None),
}


def _is_a_name(text: str) -> bool:
    name = shown(text)
    return bool(name) and not card_problems(f"---\nname: x\n---\n# {cell(name)}\n")


def _first_of(name: str, value: Any, notes: list[str]) -> list[str]:
    found = values.texts(value)
    if found[1:]:
        notes.append(_note(name, value, f"the first is written, {found[0]!r}"))
    elif not found and value not in ([], ()):
        notes.append(_note(name, value, "left out"))
    return found[:1]


def _numbers(model: str, row: Any, notes: list[str]) -> dict[str, Any]:
    kept = {}
    for metric, value in row.items() if isinstance(row, Mapping) else ():
        spread = isinstance(value, Mapping) and value.keys() == {"mean", "std"}
        found: Any = _number(value["mean"] if spread else value)
        if spread and found is not None and (std := _number(value["std"])) is not None:
            found = {"mean": found, "std": std}
        if found is None:
            notes.append(_note(f"results.{model}.{metric}", value, "no number, left out"))
        else:
            kept[str(metric)] = found
    return kept


def _number(value: Any) -> float | int | None:
    """Finite number as a Python number, also from numpy and torch."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    finite = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return value if finite else None


def _built_up(card: StudentCard, notes: list[str]) -> StudentCard:
    if not _problem(card):
        return card
    kept = StudentCard(card.model_name)
    # a licence's name comes before the licence
    for name in sorted((f.name for f in fields(card)), key=lambda name: name == "license"):
        value = getattr(card, name)
        if value != getattr(kept, name):
            tried = replace(kept, **{name: value})
            if problem := _problem(tried):
                notes.append(_note(name, value, f"left out ({problem})"))
            else:
                kept = tried
    return kept


def _problem(card: StudentCard) -> str:
    """The first reason why a card cannot be published; empty without one."""
    try:
        return next(iter(card_problems(render(card))), "")
    except Exception as error:  # of whatever a fact of another type leads to
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
