"""Metrics of texts: list[str] and list[str], or list[list[str]] with several references each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import regex

from hf_distill.evaluation.scoring.base import (
    Floats,
    Metric,
    Weighted,
    check_lengths,
    mean,
    needs,
    of_sums,
    ratio,
)

WORD = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]|[\p{L}\p{M}\p{N}]+")


def texts(predictions: Any, references: Any) -> tuple[list[str], list[list[str]]]:
    """Texts, and a list of references of each.

    Raises:
        ValueError: different lengths, something that is no text, or a text without references.
    """
    check_lengths(predictions, references)
    given = [[one] if isinstance(one, str) else list(one) for one in references]
    for place, (ours, theirs) in enumerate(zip(predictions, given, strict=True)):
        strange = [one for one in (ours, *theirs) if not isinstance(one, str)]
        if strange or not theirs:
            found = repr(strange[0]) if strange else "no reference"
            raise ValueError(
                f"Expected a text and at least one reference, got {found} for example {place}. "
                "Decode token ids, and leave out examples without a reference in both."
            )
    return list(predictions), given


def _one_reference(predictions: Any, references: Any) -> tuple[list[str], list[str]]:
    ours, theirs = texts(predictions, references)
    several = [place for place, one in enumerate(theirs) if len(one) > 1]
    if several:
        raise ValueError(
            f"Expected one reference for each text, got {len(theirs[several[0]])} for example "
            f"{several[0]}: errors are counted against one. Give the first of them alone."
        )
    return ours, [one[0] for one in theirs]


def _exact(predictions: Any, references: Any) -> Floats:
    """1 where the text equals a reference, apart from white space at its ends."""
    ours, theirs = texts(predictions, references)
    hits = [
        a.strip() in {b.strip() for b in others} for a, others in zip(ours, theirs, strict=True)
    ]
    return np.array(hits, dtype=np.float64)[:, None]


def _errors(process: str, predictions: Any, references: Any) -> Floats:
    """Substitutions, deletions and insertions, and the length of the reference of each text."""
    ours, theirs = _one_reference(predictions, references)
    jiwer = needs("jiwer", lambda: __import__("jiwer"))
    if not ours:
        return np.zeros((0, 2))
    output = getattr(jiwer, process)(theirs, ours)
    errors = [
        sum(
            max(part.ref_end_idx - part.ref_start_idx, part.hyp_end_idx - part.hyp_start_idx)
            for part in parts
            if part.type != "equal"
        )
        for parts in output.alignments
    ]
    lengths = [len(reference) for reference in output.references]
    return np.array([errors, lengths], dtype=np.float64).T


class _Words:
    """Words of any script, lower case; as those of `rouge_score` where all letters are ASCII.

    Its own tokenizer drops all other letters, so that texts in most languages would score 0.
    Ideographs and kana are words of their own.
    """

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())


def _rouge(kind: str, predictions: Any, references: Any) -> Floats:
    """F-measure of each text, the best over its references; without stemming."""
    ours, theirs = texts(predictions, references)
    module = needs("rouge-score", lambda: __import__("rouge_score.rouge_scorer").rouge_scorer)
    scorer = module.RougeScorer([kind], tokenizer=_Words())
    scores = [scorer.score_multi(b, a)[kind].fmeasure for a, b in zip(ours, theirs, strict=True)]
    return np.array(scores, dtype=np.float64)[:, None]


def _sacrebleu(kind: str) -> Any:
    return getattr(needs("sacrebleu", lambda: __import__("sacrebleu")), kind)()


def _ngrams(kind: str, predictions: Any, references: Any) -> Floats:
    """Counts of n-grams of each text, which sacrebleu adds up over the corpus."""
    ours, theirs = texts(predictions, references)
    metric = _sacrebleu(kind)
    if not ours:
        return np.zeros((0, len(metric._extract_corpus_statistics([""], [[""]])[0])))
    most = max(map(len, theirs))
    streams = [[one[i] if i < len(one) else None for one in theirs] for i in range(most)]
    return np.array(metric._extract_corpus_statistics(ours, streams), dtype=np.float64)


def _corpus(kind: str) -> Callable[[Floats], Weighted]:
    def weighted(rows: Floats) -> Weighted:
        metric = _sacrebleu(kind)
        return of_sums(lambda sums: metric._compute_score_from_stats(sums.tolist()).score)(rows)

    return weighted


def _of(name: str, title: str, rows: Any, weighted: Any, library: str = "") -> Metric:
    return Metric(name, title, "texts", rows, weighted, library)


METRICS: Sequence[Metric] = (
    _of("exact_match", "Exact match", _exact, mean),
    _of("word_error_rate", "Word error rate", partial(_errors, "process_words"), ratio, "jiwer"),
    _of(
        "character_error_rate",
        "Character error rate",
        partial(_errors, "process_characters"),
        ratio,
        "jiwer",
    ),
    *(
        _of(kind, kind.replace("rouge", "ROUGE-"), partial(_rouge, kind), mean, "rouge-score")
        for kind in ("rouge1", "rouge2", "rougeL")
    ),
    _of("bleu", "BLEU (0 to 100)", partial(_ngrams, "BLEU"), _corpus("BLEU"), "sacrebleu"),
    _of("chrf", "chrF (0 to 100)", partial(_ngrams, "CHRF"), _corpus("CHRF"), "sacrebleu"),
)
