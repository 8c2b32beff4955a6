"""Licences side by side: what those of teacher, base and data ask of the student's own.

A small table of well-known terms, each with the place where its rule is written. It points out what
to check and advises on nothing: whether weights are an adaptation of what they were trained on is
not settled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Licences of one kind.

    Attributes:
        pattern: Matches the identifiers that the Hub uses for them.
        asks: What they ask of a work that is made from theirs.
        where: Where that is written.
        same: It is met by a student under a licence of this family as well.
    """

    pattern: str
    asks: str
    where: str
    same: bool = True


NON_COMMERCIAL = r"cc-by-nc(-.*)?|fair-noncommercial.*|apple-amlr|h-research|intel-research"
SHARE_ALIKE = r"cc-by(-nc)?-sa-.*|odbl|cdla-sharing-.*|gfdl"
COPYLEFT = r"(a|l)?gpl(-.*)?|osl-.*|eupl-.*"
FAMILIES = (
    Family(
        NON_COMMERCIAL,
        "allows no commercial use",
        "CC BY-NC 4.0, section 2(a)(1); the research licences say it in their grant",
    ),
    Family(
        r"cc-by(-nc)?-nd-.*",
        "lets nobody share adapted material",
        "CC BY-ND 4.0, section 2(a)(1)(B)",
        same=False,
    ),
    Family(
        SHARE_ALIKE,
        "asks that what is adapted from it is shared under the same licence",
        "CC BY-SA 4.0, section 3(b); ODbL 1.0, section 4.4",
    ),
    Family(
        COPYLEFT,
        "asks that works based on it carry the same licence",
        "GPL-3.0, section 5(c)",
    ),
    Family(
        r".*openrail.*|bigscience-bloom-rail.*",
        "counts distilled models as derivatives, and asks that its restrictions of use go with "
        "them",
        "BigScience Open RAIL-M, sections 1 (Derivatives of the Model) and 4",
    ),
    Family(
        r"llama[23]",
        "lets nobody improve another large language model with its outputs",
        "Llama 2 and Llama 3 Community License, section 1(b)(v)",
    ),
    Family(
        r"llama3\.\d|llama4",
        "asks that a model trained with its outputs has a name beginning with “Llama” and "
        "says “Built with Llama”",
        "Llama 3.1 Community License, section 1(b)(i)",
    ),
    Family(
        r"gemma",
        "counts distilled models as derivatives, and asks that its restrictions of use go with "
        "them",
        "Gemma Terms of Use, sections 1.1(e) and 3.1",
    ),
)
_OPAQUE = ("other", "unknown")


def warnings(student: str | None, sources: Mapping[str, str | None]) -> list[str]:
    """What to check before the student is published or used, one sentence per finding.

    Args:
        student: The identifier of the student's licence, as the Hub writes it; None: not stated.
        sources: What it was made from (``the teacher``, ``the data``, …) -> its licence.

    >>> warnings("mit", {"the data": "cc0-1.0"})
    []
    """
    found = []
    if student is None and any(sources.values()):
        found.append("No licence is stated for this student: check those of its sources.")
    for source, licence in sources.items():
        if licence is None:
            continue
        if licence in _OPAQUE:
            found.append(f"The licence of {source} is given as {licence}: check its terms.")
            continue
        for family in _families(licence):
            if not (family.same and student is not None and _carried(family, licence, student)):
                ours = f"the student's {student}" if student else "the student's licence"
                found.append(
                    f"The licence of {source}, {licence}, {family.asks} ({family.where}): check "
                    f"whether {ours} can stand beside it."
                )
    return found


def _families(licence: str) -> list[Family]:
    return [family for family in FAMILIES if re.fullmatch(family.pattern, licence)]


def _carried(family: Family, licence: str, student: str) -> bool:
    """Whether the student's licence asks the same: one of the family; for share-alike the same."""
    if family.pattern in (SHARE_ALIKE, COPYLEFT):
        return student == licence
    return family in _families(student)
