"""The exported files of a student in a card that is there already."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_distill.hub.leaks import read_text
from hf_distill.utils.files import write_text

from .card import BEGIN, END
from .check import validate
from .prose import templates

HEADING = "## Other formats\n"
_SECTION = re.compile(rf"^{re.escape(HEADING)}.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_BEFORE = re.compile(r"^## (?:Robustness|Distillation|Data|Training)$|\Z", re.MULTILINE)


def add_exports(folder: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> Path | None:
    """Put a table of exported files into the card of a student, in place of the one it has.

    Args:
        folder: The student's.
        rows: As `StudentCard.exports` has them.

    Returns:
        The card's path; None without a generated card.

    Raises:
        ValueError: the card is not in UTF-8, or would not be valid.
    """
    path = Path(folder) / "README.md"
    text = read_text(str(path), path.read_bytes()) if path.is_file() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        return None
    head, rest = text.split(BEGIN)
    ours, tail = rest.split(END)
    ours = _SECTION.sub("", ours)
    section = templates().get_template("exports.md").render(exports=list(rows)).strip()
    place = _BEFORE.search(ours)
    assert place is not None  # the end is always one
    before, after = ours[: place.start()].rstrip(), ours[place.start() :].strip()
    ours = "\n".join([before, "", section, "", *([after, ""] if after else [])])
    text = head + BEGIN + re.sub(r"\n{3,}", "\n\n", ours) + END + tail
    validate(text)
    write_text(path, text)
    return path
