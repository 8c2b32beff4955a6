"""Perturbations of text: typing, recognition and spelling errors, case, spaces, distractors.

Each function takes ``(text, rate, generator)``; the rate of a severity is in `RATES`, a share of
the places where the change can be made. The number of changes is rate x places, rounded up or down
at random so that its mean is exact, at distinct places. A text never becomes empty, and one without
a place for the change (an empty text, digits, another script) comes back unchanged.
"""

from __future__ import annotations

import functools
import itertools
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_distill.robustness.perturbations.base import Perturbation, at
from hf_distill.robustness.perturbations.characters import (
    ACCENTED,
    CONTRACTIONS,
    EMOJI,
    HOMOGLYPHS,
    MISSPELLINGS,
    NEIGHBOURS,
    OCR,
)

Span = tuple[int, int]
TextFunction = Callable[[str, Any, np.random.Generator], str]

_LETTER = (0.02, 0.05, 0.10, 0.20, 0.30)
_KNOWN_WORDS = (0.20, 0.40, 0.60, 0.80, 1.00)
_INSERTIONS = (1, 2, 3, 4, 6)
RATES: dict[str, tuple[float, ...]] = {
    "keyboard_typos": _LETTER,  # of the letters a-z
    "character_swaps": _LETTER,  # swaps per letter
    "character_drops": _LETTER,  # of the letters
    "character_inserts": _LETTER,  # of the letters
    "ocr_errors": _LETTER,  # of the letters and pairs that are read wrongly
    "homoglyphs": _LETTER,  # of the letters that have a look-alike
    "diacritics": _LETTER,  # of the letters that can bear a mark
    "random_case": (0.05, 0.10, 0.20, 0.35, 0.50),  # of the letters
    "upper_case": _KNOWN_WORDS,  # of the words that are not in upper case
    "lower_case": _KNOWN_WORDS,  # of the words that are not in lower case
    "spacing": (0.05, 0.10, 0.20, 0.30, 0.50),  # of the words
    "misspellings": (0.10, 0.20, 0.40, 0.60, 0.80),  # of the words in the table
    "contractions": _KNOWN_WORDS,  # of the phrases that have another form
    "word_drop": (0.05, 0.10, 0.15, 0.20, 0.30),  # of the words
    "emoji_noise": _INSERTIONS,  # number of emoji
    "url_noise": _INSERTIONS,  # number of addresses
}
"""Share of the places that are changed, at severities 1 to 5."""

_OTHER_FORM = CONTRACTIONS | {short: full for full, short in CONTRACTIONS.items()}
_CONTRACTION = re.compile(
    r"\b(?:" + "|".join(sorted(_OTHER_FORM, key=len, reverse=True)).replace("'", "['’]") + r")\b",
    re.IGNORECASE | re.ASCII,  # or the dotless i of Turkish would count as an i
)
_OCR = re.compile("|".join(sorted(OCR, key=len, reverse=True)))
_WORD = re.compile(r"\S+")


# ---- how a change is made --------------------------------------------------------------------


def _substitute(
    text: str,
    spans: Sequence[Span],
    rate: float,
    rng: np.random.Generator,
    change: Callable[[str, float], str],
    keep: int = 0,
) -> str:
    """The text with some of its spans, which do not overlap, changed; at least `keep` are not.

    `change` takes what stands there and a number drawn from [0, 1), by which it may choose.
    """
    number = min(int(rate * len(spans) + rng.random()), max(len(spans) - keep, 0))
    places = sorted(rng.choice(len(spans), number, replace=False).tolist()) if number else []
    parts, end = [], 0
    for i, draw in zip(places, rng.random(len(places)).tolist(), strict=True):
        first, last = spans[i]
        parts += [text[end:first], change(text[first:last], draw)]
        end = last
    return "".join([*parts, text[end:]])


def _letters(text: str) -> list[Span]:
    return [(i, i + 1) for i, c in enumerate(text) if c.isalpha()]


def _found(pattern: str | re.Pattern[str], text: str) -> list[Span]:
    return [match.span() for match in re.finditer(pattern, text)]


def _one_of(options: Sequence[str], draw: float) -> str:
    return options[int(draw * len(options))]


def _looked_up(text: str, table: dict[str, str], rate: float, rng: np.random.Generator) -> str:
    """The text with some of the letters in the table replaced by one of those given there."""
    spans = [(i, i + 1) for i, c in enumerate(text) if c in table]
    return _substitute(text, spans, rate, rng, lambda c, u: _one_of(table[c], u))


def _cased(word: str, like: str) -> str:
    """The word in the case of another: ``("teh", "The")`` gives ``"Teh"``."""
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[0].upper() + word[1:] if like[0].isupper() else word


def _on_text(function: TextFunction) -> Callable[[Any, int, np.random.Generator], str]:
    """Adapter that checks that the value is a text."""

    @functools.wraps(function)
    def checked(text: Any, severity: int, rng: np.random.Generator) -> str:
        if not isinstance(text, str):
            raise ValueError(
                f"Expected a text (str) for {function.__name__!r}, got {type(text).__name__}. "
                "Perturb before the tokenizer; for other data choose a perturbation of theirs."
            )
        return function(text, at(severity, RATES[function.__name__]), rng)

    return checked


# ---- letters ---------------------------------------------------------------------------------


def keyboard_typos(text: str, rate: float, rng: np.random.Generator) -> str:
    """Letters a-z replaced by a neighbour on the QWERTY keyboard, in the same case."""
    return _looked_up(text, NEIGHBOURS, rate, rng)


def character_swaps(text: str, rate: float, rng: np.random.Generator) -> str:
    """Adjacent, different letters of a word exchanged; no letter moves twice."""
    characters = list(text)
    pairs = [
        i
        for i, (a, b) in enumerate(itertools.pairwise(text))
        if a != b and a.isalpha() and b.isalpha()
    ]
    wanted = int(rate * sum(map(str.isalpha, text)) + rng.random())
    moved: set[int] = set()
    for i in rng.permutation(pairs).tolist():
        if len(moved) >= 2 * wanted:
            break
        if i not in moved and i + 1 not in moved:
            characters[i], characters[i + 1] = characters[i + 1], characters[i]
            moved |= {i, i + 1}
    return "".join(characters)


def character_drops(text: str, rate: float, rng: np.random.Generator) -> str:
    """Letters left out; at least one letter stays."""
    return _substitute(text, _letters(text), rate, rng, lambda c, u: "", keep=1)


def character_inserts(text: str, rate: float, rng: np.random.Generator) -> str:
    """Letters typed twice, or followed by a neighbour on the QWERTY keyboard, with equal chance."""

    def insert(c: str, draw: float) -> str:
        return c + (_one_of(NEIGHBOURS[c], 2 * draw) if draw < 0.5 and c in NEIGHBOURS else c)

    return _substitute(text, _letters(text), rate, rng, insert)


def ocr_errors(text: str, rate: float, rng: np.random.Generator) -> str:
    """Letters and pairs of letters replaced by look-alikes: "m" for "rn", "0" for "o"."""
    return _substitute(text, _found(_OCR, text), rate, rng, lambda c, u: _one_of(OCR[c], u))


def homoglyphs(text: str, rate: float, rng: np.random.Generator) -> str:
    """Latin letters replaced by Cyrillic or Greek ones that look the same."""
    return _looked_up(text, HOMOGLYPHS, rate, rng)


def diacritics(text: str, rate: float, rng: np.random.Generator) -> str:
    """Latin letters with an accent added: "e" becomes "é"."""
    return _looked_up(text, ACCENTED, rate, rng)


def random_case(text: str, rate: float, rng: np.random.Generator) -> str:
    """Letters in the other case."""
    return _substitute(text, _letters(text), rate, rng, lambda c, u: c.swapcase())


# ---- words -----------------------------------------------------------------------------------


def upper_case(text: str, rate: float, rng: np.random.Generator) -> str:
    """Whole words in upper case; all of them at severity 5."""
    spans = [(i, j) for i, j in _found(_WORD, text) if text[i:j] != text[i:j].upper()]
    return _substitute(text, spans, rate, rng, lambda w, u: w.upper())


def lower_case(text: str, rate: float, rng: np.random.Generator) -> str:
    """Whole words in lower case; all of them at severity 5. An uncased model does not notice."""
    spans = [(i, j) for i, j in _found(_WORD, text) if text[i:j] != text[i:j].lower()]
    return _substitute(text, spans, rate, rng, lambda w, u: w.lower())


def spacing(text: str, rate: float, rng: np.random.Generator) -> str:
    """Words joined to the next one, or broken in two, with equal chance where both can be."""

    def change(word: str, draw: float) -> str:
        head = word.rstrip()
        if len(head) < len(word):
            if len(head) == 1 or draw < 0.5:
                return head
            draw = 2 * draw - 1
        if len(head) == 1:
            return word
        middle = 1 + int(draw * (len(head) - 1))
        return f"{head[:middle]} {word[middle:]}"

    return _substitute(text, _found(r"\S+(?:\s+(?=\S))?", text), rate, rng, change)


def misspellings(text: str, rate: float, rng: np.random.Generator) -> str:
    """English words as people misspell them, in the same case; the table is `MISSPELLINGS`."""
    spans = [(i, j) for i, j in _found("[A-Za-z]+", text) if text[i:j].lower() in MISSPELLINGS]

    def misspell(word: str, draw: float) -> str:
        return _cased(_one_of(MISSPELLINGS[word.lower()], draw), word)

    return _substitute(text, spans, rate, rng, misspell)


def contractions(text: str, rate: float, rng: np.random.Generator) -> str:
    """English short forms written out, and full forms shortened: "do not" and "don't"."""

    def other(phrase: str, draw: float) -> str:
        return _cased(_OTHER_FORM[phrase.lower().replace("’", "'")], phrase)

    return _substitute(text, _found(_CONTRACTION, text), rate, rng, other)


def word_drop(text: str, rate: float, rng: np.random.Generator) -> str:
    """Words left out; at least one stays. The meaning may change."""
    kept = _substitute(text, _found(r"\S+\s*", text), rate, rng, lambda word, u: "", keep=1)
    return kept if text[-1:].isspace() else kept.rstrip()


def _inserted(text: str, items: Sequence[str], rng: np.random.Generator) -> str:
    """Items inserted between, before and after the words; a text without words is unchanged."""
    starts = [first for first, _ in _found(_WORD, text)]
    if not starts:
        return text
    places = sorted(rng.integers(0, len(starts) + 1, len(items)).tolist(), reverse=True)
    for item, place in zip(items, places, strict=True):
        if place == len(starts):
            text = f"{text} {item}"
        else:
            text = f"{text[: starts[place]]}{item} {text[starts[place] :]}"
    return text


def emoji_noise(text: str, number: int, rng: np.random.Generator) -> str:
    """Emoji without sentiment between the words."""
    return _inserted(text, [_one_of(EMOJI, rng.random()) for _ in range(number)], rng)


def url_noise(text: str, number: int, rng: np.random.Generator) -> str:
    """Random web addresses (on example.com, which belongs to nobody) and user names inserted.

    Reference: Ribeiro et al., 2020, "Beyond Accuracy: Behavioral Testing of NLP models with
    CheckList", arXiv:2005.04118.
    """
    alphabet = string.ascii_letters + string.digits

    def address() -> str:
        name = "".join(alphabet[i] for i in rng.integers(len(alphabet), size=8))
        return f"https://example.com/{name}" if rng.random() < 0.5 else f"@{name}"

    return _inserted(text, [address() for _ in range(number)], rng)


TEXT: tuple[Perturbation, ...] = tuple(
    Perturbation(function.__name__, "text", _on_text(function), family)
    for family, functions in {
        "typos": (keyboard_typos, character_swaps, character_drops, character_inserts),
        "spelling": (misspellings, contractions, diacritics),
        "recognition": (ocr_errors, homoglyphs),
        "format": (random_case, upper_case, lower_case, spacing),
        "content": (word_drop, emoji_noise, url_noise),
    }.items()
    for function in functions
)
