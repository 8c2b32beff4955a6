"""Labels, distributions and rationales read from the answers of a language model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SHORT = 2
"""Longest answer word, in characters, that has to be the beginning of an answer."""
_OPENING = " \t\r\n\"'`*_([{<:"
"""Characters that may precede the answer word."""
_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_NEGATION = re.compile(r"(?:\b(?:not|neither|nor|never|no)|n['’]t)\W+(?:\w+\W+)?\Z", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(?:I (?:can(?:no|['’])t|am (?:not able|unable)|won['’]t)"
    r"|I['’]m (?:not able|unable|sorry)|I apologi[sz]e|as an AI\b)",
    re.IGNORECASE,
)

Distribution = tuple[list[float], float]
"""Probabilities in the order of the labels, and the total mass of the labels before division."""


def without_thoughts(text: str) -> str:
    """Text without the ``<think>`` blocks of reasoning models.

    >>> without_thoughts("<think>Hm.</think> positive")
    ' positive'
    """
    return _THOUGHT.sub("", text)


def label_of(text: str, words: Sequence[str]) -> int | None:
    """Index of the only answer word in a text; None if there is none, several, or a negated one.

    Case does not count, except for words of at most two characters, which must begin the text.

    >>> label_of("The sentiment is Positive.", ["negative", "positive"])
    1
    >>> label_of("positive or negative", ["negative", "positive"]) is None
    True
    >>> label_of("not positive", ["negative", "positive"]) is None
    True
    >>> label_of("B) it was fine", ["A", "B"])
    1
    >>> label_of("A good film", ["A", "B"]) is None
    True
    """
    text = without_thoughts(text)
    longest_first = sorted(words, key=len, reverse=True)
    either = "|".join(re.escape(word) for word in longest_first)
    if min(map(len, words)) <= SHORT:
        found = re.match(rf"\W*({either})(?=\s*(?:$|[^\w\s]|\n))", text)
        return None if found is None else list(words).index(found[1])
    known = {word.casefold(): index for index, word in enumerate(words)}
    matches = list(re.finditer(rf"(?<!\w)(?:{either})(?!\w)", text, re.IGNORECASE))
    if any(_NEGATION.search(text[: match.start()]) for match in matches):
        return None
    labels = {known.get(match[0].casefold()) for match in matches}
    return labels.pop() if len(labels) == 1 else None


def votes(labels: Sequence[int | None], classes: int) -> Distribution | None:
    """Shares of the labels among several samples; None if no sample has a label.

    >>> votes([1, 1, None, 0], 2)
    ([0.3333333333333333, 0.6666666666666666], 0.75)
    """
    counts = Counter(label for label in labels if label is not None)
    total = sum(counts.values())
    if not total:
        return None
    return [counts[index] / total for index in range(classes)], total / len(labels)


def distribution(
    positions: Sequence[Mapping[str, Any]], words: Sequence[str]
) -> Distribution | None:
    """Probabilities of the answer words from the likeliest tokens at each position of an answer.

    A token that begins exactly one answer word adds its probability to that label. Where the token
    of the answer begins several words, or none yet (blanks, quotes), the next position decides,
    weighted by the probability of the tokens so far.

    Args:
        positions: ``token``, ``logprob`` and ``top`` (pairs of token and log-probability) of each
            token of the answer.
        words: The answer word of each label.

    Returns:
        None if no answer word is among the likeliest tokens.
    """
    masses, prefix, log_prefix = [0.0] * len(words), "", 0.0
    answer = "".join(position["token"] for position in positions)
    for position in positions:
        options = {str(token): float(value) for token, value in position["top"]}
        options.setdefault(position["token"], float(position["logprob"]))
        goes_on = False
        for token, value in options.items():
            fits, taken = _candidates(prefix + token, words), token == position["token"]
            if len(fits) == 1:
                if not taken or fits[0] in _candidates(answer, words):  # not "pos" of "possibly"
                    masses[fits[0]] += math.exp(log_prefix + value)
            elif fits and taken:
                goes_on = True
        if not goes_on:
            break
        prefix += position["token"]
        log_prefix += float(position["logprob"])
    total = math.fsum(masses)
    if not total > 0:
        return None
    return [mass / total for mass in masses], total


def _candidates(text: str, words: Sequence[str]) -> list[int]:
    """Labels whose answer word the text begins, or which begins the text."""
    short = min(map(len, words)) <= SHORT
    fold = str if short else str.casefold
    text = fold(text.lstrip(_OPENING))
    found = {i: fold(word) for i, word in enumerate(words) if fold(word).startswith(text)}
    if found:
        return list(found)
    whole = {i: w for i, w in enumerate(map(fold, words)) if _is_whole(text, w)}
    longest = max(map(len, whole.values()), default=0)
    return [index for index, word in whole.items() if len(word) == longest]


def _is_whole(text: str, word: str) -> bool:
    """True if the text is the word and something that does not continue it."""
    return text.startswith(word) and not text[len(word) : len(word) + 1].isalnum()


def split_rationale(text: str, marker: str) -> tuple[str, str] | None:
    """Text before the last marker and text after it; None if there is no marker.

    >>> split_rationale("It is fun.\\nAnswer: positive", "Answer:")
    ('It is fun.', ' positive')
    """
    text = without_thoughts(text)
    place = text.casefold().rfind(marker.casefold())
    return None if place < 0 else (text[:place].rstrip(" \n\t*#"), text[place + len(marker) :])


def is_refusal(answer: Mapping[str, Any]) -> bool:
    """True if the provider or the model declined to answer.

    >>> is_refusal({"text": "I'm sorry, but I can't help with that.", "finish": "stop"})
    True
    """
    if answer.get("rejected") or answer.get("refusal") or answer.get("finish") == "content_filter":
        return True
    return _REFUSAL.search(answer.get("text") or "") is not None
