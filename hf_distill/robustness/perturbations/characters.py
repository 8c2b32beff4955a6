"""Tables: letters that are neighbours, look alike or are misread; short forms; emoji."""

from __future__ import annotations

import string
import unicodedata
from pathlib import Path


def word_table(path: Path) -> dict[str, tuple[str, ...]]:
    """First word of each line -> the others, of all lines that begin so; # begins a comment."""
    found: dict[str, tuple[str, ...]] = {}
    for key, *words in map(str.split, path.read_text(encoding="utf-8").splitlines()):
        if not key.startswith("#"):
            found[key] = (*found.get(key, ()), *words)
    return found


def _neighbours() -> dict[str, str]:
    """The letters next to each letter on a QWERTY keyboard, in both cases.

    The rows stand 0, 1/4 and 3/4 of a key to the right; keys whose centres are less than 1.3 keys
    apart touch.
    """
    rows = zip(("qwertyuiop", "asdfghjkl", "zxcvbnm"), (0.0, 0.25, 0.75), strict=True)
    place = {k: (x + left, y) for y, (row, left) in enumerate(rows) for x, k in enumerate(row)}
    near = {
        a: "".join(b for b, (u, v) in place.items() if 0 < (x - u) ** 2 + (y - v) ** 2 < 1.69)
        for a, (x, y) in place.items()
    }
    return near | {a.upper(): b.upper() for a, b in near.items()}


def _accented() -> dict[str, str]:
    """Each Latin letter with the marks that European languages put on it (up to U+017F)."""
    marks = "\u0300\u0301\u0302\u0308\u0303\u0327\u030c"
    composed = {
        letter: "".join(
            one
            for m in marks
            if "\x7f" < (one := unicodedata.normalize("NFC", letter + m)) < "\u0180"
        )
        for letter in string.ascii_letters
    }
    return {letter: forms for letter, forms in composed.items() if forms}


def _look_alikes() -> dict[str, str]:
    """Cyrillic and Greek letters that look like Latin ones."""
    found: dict[str, str] = {}
    for latin, other in (
        ("ABCEHIJKMOPSTXYacehijopsxy", "АВСЕНІЈКМОРЅТХУасеһіјорѕху"),  # Cyrillic
        ("ABEHIKMNOPTXYZov", "ΑΒΕΗΙΚΜΝΟΡΤΧΥΖον"),  # Greek
    ):
        for a, b in zip(latin, other, strict=True):
            found[a] = found.get(a, "") + b
    return found


NEIGHBOURS = _neighbours()
ACCENTED = _accented()
HOMOGLYPHS = _look_alikes()
OCR = word_table(Path(__file__).with_name("ocr.txt"))
"""Typical confusions of optical character recognition."""

CONTRACTIONS: dict[str, str] = {
    **{f"{verb} not": f"{verb}n't" for verb in (
        "are", "could", "did", "do", "does", "had", "has", "have", "is", "must", "need", "should",
        "was", "were", "would",
    )},
    **{f"{who} are": f"{who}'re" for who in ("they", "we", "you")},
    **{f"{who} have": f"{who}'ve" for who in ("i", "they", "we", "you")},
    **{f"{who} will": f"{who}'ll" for who in ("he", "i", "it", "she", "they", "we", "you")},
    "i am": "i'm",
    "cannot": "can't",
    "will not": "won't",
}  # fmt: skip
"""Full and short forms with the same meaning only ("it's" may be "it has" and is left out)."""
EMOJI = tuple(
    "\N{PUSHPIN}\N{PAPERCLIP}\N{LINK SYMBOL}\N{CALENDAR}\N{BOOKMARK}\N{MEMO}"
    "\N{CLOCK FACE ONE OCLOCK}\N{ROUND PUSHPIN}\N{OPEN BOOK}\N{TELEVISION}\N{ELECTRIC LIGHT BULB}"
    "\N{LARGE BLUE CIRCLE}"
)
"""Emoji without sentiment."""

MISSPELLINGS = word_table(Path(__file__).with_name("misspellings.txt"))
"""Lower-case English word -> its common misspellings."""
