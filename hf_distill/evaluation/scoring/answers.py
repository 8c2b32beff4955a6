"""Metrics of extracted answers: list[str] ("": no answer), list[list[str]] (empty: no answer).

Answers are compared in lower case, without punctuation, articles (a, an, the) and repeated spaces.
Of several references the best counts. Without an answer both figures are 1 for "" and else 0.

References: Rajpurkar et al., 2016, "SQuAD", arXiv:1606.05250; Rajpurkar, Jia and Liang, 2018, "Know
What You Don't Know" (version 2, with questions without an answer), arXiv:1806.03822.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from hf_distill.evaluation.scoring.base import Floats, Metric, check_lengths, mean

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(answer: str) -> str:
    """An answer as it is compared.

    >>> normalized("The  cat's hat!")
    'cats hat'
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def _rows(score: Callable[[str, str], float]) -> Callable[[Any, Any], Floats]:
    """The best score over the references of each question ``(N, 1)``."""

    def rows(predictions: Any, references: Any) -> Floats:
        check_lengths(predictions, references)
        found = []
        for place, (ours, theirs) in enumerate(zip(predictions, references, strict=True)):
            given = [theirs] if isinstance(theirs, str) else list(theirs)
            strange = [one for one in (ours, *given) if not isinstance(one, str)]
            if strange:
                raise ValueError(
                    f"Expected answers as texts, '' for none, got {strange[0]!r} for question "
                    f"{place}. Give the text of the span."
                )
            golds = [gold for gold in map(normalized, given) if gold] or [""]
            found.append(max(score(normalized(ours), gold) for gold in golds))
        return np.array(found, dtype=np.float64)[:, None]

    return rows


def _exact(ours: str, theirs: str) -> float:
    return float(ours == theirs)


def _f1(ours: str, theirs: str) -> float:
    """2 common / (words of both), with repeated words; 1 or 0 where one has none."""
    a, b = ours.split(), theirs.split()
    if not a or not b:
        return float(a == b)
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))


METRICS = (
    Metric("squad_exact_match", "Exact match of answers", "answers", _rows(_exact), mean),
    Metric("squad_f1", "F1 of answers", "answers", _rows(_f1), mean),
)
