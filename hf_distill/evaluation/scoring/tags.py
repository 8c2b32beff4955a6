"""Metrics of tags of words: lists of lists of label names such as ``B-PER`` and ``O``.

An entity is right if its type, first and last word are. The spans are those of `seqeval`, whose
last release (1.2.2, 2020) does not build with current setuptools, and which is therefore not used.
Reference: Tjong Kim Sang and De Meulder, 2003, "Introduction to the CoNLL-2003 Shared Task".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_distill.evaluation.scoring.base import (
    Floats,
    Metric,
    Weighted,
    check_lengths,
    divided,
    of_sums,
    ratio,
)

OUTSIDE = "O"
PREFIXES = frozenset("BIESLU")
Span = tuple[str, int, int]
"""Type, first and last word of an entity."""


def entities(tags: Sequence[str]) -> list[Span]:
    """Entities of one text, in IOB1, IOB2, IOE1, IOE2, IOBES or BILOU tags.

    An entity begins at B, S, U, after the end of another, and where the type changes; it ends
    before that, after E, L, S and U, and before O. A tag without a prefix continues the entity
    of its type, as I does.

    Raises:
        ValueError: a tag with a prefix other than B, I, O, E, S, L and U.

    >>> entities(["B-PER", "I-PER", "O", "I-LOC"])
    [('PER', 0, 1), ('LOC', 3, 3)]
    """
    found: list[Span] = []
    is_open = False  # the last entity goes on to the word before
    for place, tag in enumerate(tags):
        prefix, kind = _parts(tag)
        if prefix == OUTSIDE:
            is_open = False
            continue
        if is_open and prefix not in "BSU" and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1], place)
        else:
            found.append((kind, place, place))
        is_open = prefix not in "ESLU"
    return found


def _parts(tag: str) -> tuple[str, str]:
    """Prefix and type; a tag without type has the type ``_``, one without prefix the prefix I."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, kind = tag.partition("-")
    if tag in PREFIXES:
        return tag, "_"
    if not dash:
        return "I", tag
    if prefix not in PREFIXES:
        raise ValueError(
            f"Expected tags O or B-TYPE, I-TYPE (also E, S, L, U), got {tag!r}. Rename the labels, "
            "or choose token_accuracy."
        )
    return prefix, kind


def _words(predictions: Any, references: Any) -> list[tuple[list[str], list[str]]]:
    check_lengths(predictions, references)
    pairs = [(list(a), list(b)) for a, b in zip(predictions, references, strict=True)]
    for place, (ours, theirs) in enumerate(pairs):
        if len(ours) != len(theirs):
            raise ValueError(
                f"Expected one tag for each word, got {len(ours)} predicted tags and {len(theirs)} "
                f"references for text {place}. Leave out the same words in both."
            )
        strange = [tag for tag in (*ours, *theirs) if not isinstance(tag, str)]
        if strange:
            raise ValueError(
                f"Expected names of labels, such as 'B-PER', got {strange[0]!r} in text {place}. "
                "Turn class ids into names with the model's id2label."
            )
    return pairs


def _entity_counts(predictions: Any, references: Any) -> Floats:
    """Hits, predicted and true entities of each text."""
    rows = []
    for pair in _words(predictions, references):
        ours, theirs = (set(entities(tags)) for tags in pair)
        rows.append((len(ours & theirs), len(ours), len(theirs)))
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _token_counts(predictions: Any, references: Any) -> Floats:
    rows = [
        (sum(a == b for a, b in zip(ours, theirs, strict=True)), len(ours))
        for ours, theirs in _words(predictions, references)
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _with_entities(numerator: float, predicted: float, true: float) -> Any:
    """``numerator · hits / (predicted · predictions + true · labels)``; 0 without predictions."""

    def value(sums: Floats) -> float:
        hits, ours, theirs = sums
        if ours + theirs == 0:
            return np.nan
        below = predicted * ours + true * theirs
        return float(divided(numerator * hits, below)) if below else 0.0

    def weighted(rows: Floats) -> Weighted:
        if not rows[:, 2].any():
            raise ValueError(
                f"Expected entities among the references, got {len(rows)} texts without one. "
                "Evaluate on a set with entities, or choose token_accuracy."
            )
        return of_sums(value)(rows)

    return weighted


METRICS = (
    Metric("entity_f1", "Entity F1", "tags", _entity_counts, _with_entities(2, 1, 1)),
    Metric("entity_precision", "Entity precision", "tags", _entity_counts, _with_entities(1, 1, 0)),
    Metric("entity_recall", "Entity recall", "tags", _entity_counts, _with_entities(1, 0, 1)),
    Metric("token_accuracy", "Token accuracy", "tags", _token_counts, ratio),
)
