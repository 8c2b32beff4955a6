"""Invariance of the class of a text to changes of a name or a place in it.

    result = invariance(predict, texts, "names replaced")
    result.failure_rate, len(result.rows)

The tests need no labels. Which texts a test applies to, and what it puts into them, depends on the
texts and on the seed alone: the results of two models can be compared text by text.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_distill.robustness.attacks.text import Predict, check_texts, query, seeded
from hf_distill.robustness.perturbations.characters import word_table
from hf_distill.utils.suggest import did_you_mean

_NAMES = word_table(Path(__file__).with_name("names.txt"))
FEMALE, MALE = _NAMES.pop("female"), _NAMES.pop("male")
ORIGINS = (FEMALE + MALE, *_NAMES.values())

PLACES = (
    *("Amsterdam", "Athens", "Baltimore", "Bangkok", "Barcelona", "Beijing", "Berlin", "Boston"),
    *("Brussels", "Budapest", "Cairo", "Chicago", "Copenhagen", "Delhi", "Dublin", "Edinburgh"),
    *("Frankfurt", "Geneva", "Helsinki", "Istanbul", "Jakarta", "Johannesburg", "Karachi", "Lagos"),
    *("Lisbon", "London", "Los Angeles", "Madrid", "Manila", "Melbourne", "Miami", "Montreal"),
    *("Moscow", "Mumbai", "Munich", "Nairobi", "New York", "Oslo", "Paris", "Prague", "Rome"),
    *("San Francisco", "Seattle", "Seoul", "Shanghai", "Stockholm", "Tokyo", "Toronto"),
    *("Vancouver", "Vienna", "Warsaw", "Zurich"),
)
PREFIXES = (
    *("As I said,", "Back to the topic:", "By the way,", "For the record,"),
    *("For your information,",),
    *("Here is what I noted:", "I wrote this on Monday:", "In other words,", "In short,"),
    *("Just so you know,", "Let me put it this way:", "Note:", "On another subject,", "So,"),
    *("Speaking of which,", "That is to say,", "To be clear,", "To repeat,", "To sum up,"),
    *("Well,", "What I mean is this:", "You asked, so:"),
)


@dataclass(frozen=True)
class InvarianceTest:
    """Inserted text and its position.

    Args:
        name: For tables and messages.
        fillers: Groups of names, places or phrases; a variant of a text holds one of them.
        where: ``"replace"``: in place of the first filler in the text, wherever it occurs; a text
            without one is not tested. ``"template"``: into `template`; all texts are tested.
        template: With ``{name}`` for the filler and ``{text}`` for the text.
        each: Fillers drawn from each group for one text.
        against_text: Variants are compared with the plain text; else with the first variant.

    Raises:
        ValueError: another ``where``, no filler, ``each`` below 1, or a template without its
            fields.
    """

    name: str
    fillers: tuple[tuple[str, ...], ...]
    where: str = "replace"
    template: str = "{name} {text}"
    each: int = 1
    against_text: bool = True

    def __post_init__(self) -> None:
        filled = bool(self.fillers) and all(self.fillers)
        if self.where not in ("replace", "template") or self.each < 1 or not filled:
            raise ValueError(
                f"Expected where='replace' or 'template', each of at least 1, and fillers in each "
                f"group, got {self.where!r}, {self.each} and groups of "
                f"{[len(group) for group in self.fillers]} for the test {self.name!r}."
            )
        if "{name}" not in self.template or "{text}" not in self.template:
            raise ValueError(
                f"Expected a template with {{name}} and {{text}}, got {self.template!r} for the "
                f"test {self.name!r}."
            )

    def versions(self, text: str, seed: int = 0) -> list[str]:
        """Texts that should get one class, the one to compare with first; empty: not applicable.

        >>> InvarianceTest("x", (("Ann", "Bob"),)).versions("Ann's cat sees Ann.")
        ["Ann's cat sees Ann.", "Bob's cat sees Bob."]
        """
        found = _pattern(self.fillers).search(text) if self.where == "replace" else None
        if self.where == "replace" and found is None:
            return []
        old = found.group() if found else ""
        generator = seeded(seed, self.name, text)
        drawn: list[str] = []
        for group in self.fillers:
            shuffled = [group[i] for i in generator.permutation(len(group))]
            drawn += [filler for filler in shuffled if filler != old][: self.each]
        if self.where == "replace":
            parts = re.split(rf"\b{re.escape(old)}\b", text)
            return [text, *(new.join(parts) for new in drawn)]
        made = [self.template.replace("{name}", new).replace("{text}", text) for new in drawn]
        return [text, *made] if self.against_text else made


@functools.lru_cache
def _pattern(groups: tuple[tuple[str, ...], ...]) -> re.Pattern[str]:
    """Pattern of all fillers as whole words, the longest first."""
    known = sorted({filler for group in groups for filler in group}, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, known))})\b")


SAID = "{name} said: {text}"
FROM = "A letter from {name}: {text}"
TESTS = {
    test.name: test
    for test in (
        InvarianceTest("names replaced", ORIGINS),
        InvarianceTest("names in front", ORIGINS, "template", SAID, against_text=False),
        InvarianceTest("gender replaced", (FEMALE, MALE), each=4),
        InvarianceTest("gender in front", (FEMALE, MALE), "template", SAID, 4, False),
        InvarianceTest("places replaced", (PLACES,), each=8),
        InvarianceTest("places in front", (PLACES,), "template", FROM, 8, False),
        InvarianceTest("prefixes", (PREFIXES,), "template", each=8),
    )
}
"""The tests at hand, by name. "names": one of each origin; "gender": four female, four male."""


@dataclass(frozen=True)
class InvarianceResult:
    """Result of an invariance test; n is the number of applicable texts.

    Args:
        rows: ``(n,)``: the places of those texts, ascending.
        failed: ``(n,)`` bool: whether any variant got another class.
        witnesses: For each of them the first such variant, or None.
    """

    rows: np.ndarray
    failed: np.ndarray
    witnesses: tuple[str | None, ...]

    @property
    def failure_rate(self) -> float:
        """The share of the n texts that failed; NaN for n = 0."""
        return float(self.failed.mean()) if len(self.failed) else math.nan


def invariance(
    predict: Predict,
    texts: Sequence[str],
    test: InvarianceTest | str,
    seed: int = 0,
) -> InvarianceResult:
    """Predictions that change under a change that should not matter.

    A text fails if any of its variants gets another class than the text to compare with: rates of
    tests with different numbers of variants do not compare.

    `predict` gives logits or log-probabilities ``(N, C)`` of N texts; the test may be a name in
    `TESTS`; the seed chooses the fillers.

    Raises:
        ValueError: an unknown test, values that are not texts, or logits of another shape.

    Reference: Ribeiro et al., 2020, "Beyond Accuracy: Behavioral Testing of NLP Models with
    CheckList", arXiv:2005.04118.

    >>> def predict(texts):  # a model with a favourite
    ...     return np.array([[0.5, float("Bob" in text)] for text in texts])
    >>> names = InvarianceTest("x", (("Ann", "Bob"),))
    >>> invariance(predict, ["Ann came.", "It rained."], names).witnesses
    ('Bob came.',)
    """
    check_texts(texts)
    if isinstance(test, str):
        if test not in TESTS:
            hint = did_you_mean(test, TESTS, 0.0)
            raise ValueError(f"Expected a test of {', '.join(TESTS)}, got {test!r}.{hint}")
        test = TESTS[test]
    rows, witnesses = [], []
    for place, text in enumerate(texts):
        versions = test.versions(text, seed)
        if versions:
            classes = query(predict, versions).argmax(axis=1)
            changed = np.flatnonzero(classes != classes[0])
            rows.append(place)
            witnesses.append(versions[changed[0]] if len(changed) else None)
    failed = np.array([witness is not None for witness in witnesses], dtype=bool)
    return InvarianceResult(np.array(rows, dtype=np.int64), failed, tuple(witnesses))
