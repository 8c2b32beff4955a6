"""Answers as spans of a text, in the form of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_distill.recipe.errors import RecipeError, shown
from hf_distill.recipe.findings import SHOWN, SKIP


def bad_spans(contexts: Sequence[str], answers: Sequence[Mapping[str, Any] | None]) -> list[int]:
    """Rows of which an answer is not in its context at the place that is given.

    Args:
        contexts: ``N`` texts.
        answers: For each context ``{"text": [...], "answer_start": [...]}``, with the answers and
            the index of the first character of each; empty lists: no answer.
    """
    pairs = zip(contexts, answers, strict=True)
    return [row for row, (context, answer) in enumerate(pairs) if not _match(context, answer)]


def check_spans(
    contexts: Sequence[str], answers: Sequence[Mapping[str, Any] | None], where: str = "`data`"
) -> None:
    """Refuse answers that do not match their contexts, see `bad_spans`.

    Args:
        contexts: ``N`` texts.
        answers: The answers of each.
        where: Beginning of the message.

    Raises:
        RecipeError: with the number of the bad rows, and what the first ones hold.
    """
    bad = bad_spans(contexts, answers)
    if not bad:
        return
    rows = [f"row {row + 1} ({_told(contexts[row], answers[row])})" for row in bad[:SHOWN]]
    more = "" if len(bad) <= SHOWN else ", …"
    raise RecipeError(
        f"{where}: expected answers that are in their context from `answer_start` on, got others "
        f"in {len(bad):,} of {len(contexts):,} examples: {', '.join(rows)}{more}. Count "
        f"`answer_start` in characters from 0. {SKIP}"
    )


def _lists(answer: Mapping[str, Any] | None) -> tuple[list[Any], list[Any]] | None:
    if answer is None or not {"text", "answer_start"} <= answer.keys():
        return None
    texts, starts = answer["text"], answer["answer_start"]
    if not isinstance(texts, (list, tuple)) or not isinstance(starts, (list, tuple)):
        return None
    return (list(texts), list(starts)) if len(texts) == len(starts) else None


def _match(context: str, answer: Mapping[str, Any] | None) -> bool:
    found = _lists(answer)
    return found is not None and all(
        isinstance(text, str) and bool(text) and start >= 0 and context.startswith(text, start)
        for text, start in zip(*found, strict=True)
    )


def _told(context: str, answer: Mapping[str, Any] | None) -> str:
    found = _lists(answer)
    if found is None:
        return "no lists `text` and `answer_start` of one length"
    for text, start in zip(*found, strict=True):
        if not _match(context, {"text": [text], "answer_start": [start]}):
            held = context[start : start + len(text)] if start >= 0 else ""
            return f"{shown(text)} expected at {start}, there is {shown(held)}"
    return ""
