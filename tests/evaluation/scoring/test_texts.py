"""Metrics of texts and answers, against jiwer, rouge-score, sacrebleu and SQuAD's rules."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest

from hf_distill.evaluation.scoring import METRICS

OURS = ["the cat sat on the mat", "Hello,  world! 42", "", "a b c d e f", "x"]
THEIRS = ["the cat sat on a mat today", "hello world 42", "nothing here", "f e d c b a", "x"]
UNICODE = (
    ["für dich ", "日本語のテスト", "नमस्ते दुनिया", "é"],
    ["fur dich", "日本語テスト", "नमस्ते दुनिया", "e"],
)
LIBRARIES = {"jiwer": "jiwer", "rouge-score": "rouge_score", "sacrebleu": "sacrebleu"}


def value(name: str, predictions: Any, references: Any) -> float:
    metric = METRICS[name]
    if metric.library:
        pytest.importorskip(LIBRARIES[metric.library])
    return metric.value(metric.units(predictions, references))


@pytest.mark.parametrize("pair", [(OURS, THEIRS), UNICODE, (OURS, [*THEIRS[:4], ""])])
def test_error_rates_are_those_of_jiwer(pair: Any) -> None:
    """A mean of the texts' rates counts short ones too much; empty texts count no error."""
    jiwer = pytest.importorskip("jiwer")
    assert value("word_error_rate", *pair) == pytest.approx(jiwer.wer(pair[1], pair[0]))
    assert value("character_error_rate", *pair) == pytest.approx(jiwer.cer(pair[1], pair[0]))


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_that_of_rouge_score(kind: str) -> None:
    """Of several references the best counts."""
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer([kind])
    several = [[one, "the cat"] for one in THEIRS]
    pairs = zip(several, OURS, strict=True)
    expected = np.mean([scorer.score_multi(b, a)[kind].fmeasure for b, a in pairs])
    assert value(kind, OURS, several) == pytest.approx(expected, abs=1e-12)


def test_rouge_of_other_scripts() -> None:
    """rouge-score drops all letters that are not ASCII: a perfect summary in Hindi scores 0."""
    pytest.importorskip("rouge_score")
    for text in ("नमस्ते दुनिया", "日本語", "für dich"):
        assert value("rouge1", [text], [text]) == 1.0
    assert value("rouge1", ["日本語"], ["日本人"]) == pytest.approx(2 / 3)
    assert value("rouge1", ["für"], ["fur"]) == 0.0


@pytest.mark.parametrize(("name", "kind"), [("bleu", "BLEU"), ("chrf", "CHRF")])
@pytest.mark.parametrize("pair", [(OURS, THEIRS), UNICODE])
def test_corpus_figures_are_those_of_sacrebleu(name: str, kind: str, pair: Any) -> None:
    """A mean over sentences is another figure, as are references that are paired wrongly."""
    metric = getattr(pytest.importorskip("sacrebleu"), kind)()
    ours, theirs = pair
    expected = metric.corpus_score(ours, [theirs]).score
    assert value(name, ours, theirs) == pytest.approx(expected, abs=1e-9)
    more = [[one, "the cat"] if i % 2 else [one] for i, one in enumerate(theirs)]
    streams = [theirs, ["the cat" if i % 2 else None for i in range(len(theirs))]]
    expected = metric.corpus_score(ours, streams).score
    assert value(name, ours, more) == pytest.approx(expected, abs=1e-9)


def test_exact_match() -> None:
    """A space that a tokenizer leaves at the end would make all texts wrong."""
    assert value("exact_match", [" a b", "a  b", "c"], [["a b"], ["a b"], ["x", "c"]]) == 2 / 3


@pytest.mark.parametrize(
    ("name", "predictions", "references", "message"),
    [
        ("exact_match", ["a"], ["a", "b"], "1 predictions and 2 references"),
        ("exact_match", [1], ["a"], "got 1 for example 0. Decode"),
        ("exact_match", ["a"], [[]], "got no reference for example 0"),
        ("exact_match", [], [], "at least one example"),
        ("word_error_rate", ["a"], [["a", "b"]], "got 2 for example 0"),
        ("word_error_rate", ["a"], [""], "1 references that are all empty"),
        ("squad_f1", ["a"], [["a"], []], "1 predictions and 2 references"),
        ("squad_f1", [None], [["a"]], "'' for none, got None for question 0"),
    ],
)
def test_bad_inputs(name: str, predictions: Any, references: Any, message: str) -> None:
    """Each would be some figure, or an error of another library."""
    with pytest.raises(ValueError, match=message):
        value(name, predictions, references)


@pytest.mark.parametrize("name", ["word_error_rate", "rouge1", "bleu", "chrf"])
def test_a_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of an import names a module, which is not what pip installs."""
    library = METRICS[name].library
    monkeypatch.setitem(sys.modules, LIBRARIES[library], None)
    with pytest.raises(ImportError, match=rf'{library} .*pip install "hf_distill\[metrics\]"'):
        METRICS[name].units(["a"], ["a"])


# ---- answers -------------------------------------------------------------------------------------

QUESTIONS = [
    ("The Eiffel Tower!", ["Eiffel tower", "tower"]),
    ("in 1889, in Paris", ["1889 in Paris in", "1889"]),
    ("an answer", []),
    ("", []),
    ("", ["the"]),  # an article is nothing: as no answer
    ("", ["something"]),
    ("the", ["x"]),
    ("naïve café", ["Naïve  Café."]),
]


def official(prediction: str, golds: list[str]) -> tuple[float, float]:
    """Exact match and F1 by the rules of SQuAD's second version, one word at a time."""

    def clean(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    answers = [clean(gold) for gold in golds if clean(gold)] or [[]]
    ours, exact, f1 = clean(prediction), 0.0, 0.0
    for gold in answers:
        exact = max(exact, float(gold == ours))
        if not gold or not ours:
            f1 = max(f1, float(gold == ours))
            continue
        left, same = [*gold], 0
        for word in ours:
            if word in left:
                left.remove(word)
                same += 1
        if same:
            precision, recall = same / len(ours), same / len(gold)
            f1 = max(f1, 2 * precision * recall / (precision + recall))
    return exact, f1


def test_answers_are_scored_as_squad_does() -> None:
    """Another normalisation is worth several points of exact match."""
    ours, golds = zip(*QUESTIONS, strict=True)
    expected = np.array([official(*question) for question in QUESTIONS])
    for column, name in enumerate(("squad_exact_match", "squad_f1")):
        units = METRICS[name].units(list(ours), list(golds))
        np.testing.assert_allclose(units[:, 0], expected[:, column], rtol=1e-12)
    assert expected[:, 0].tolist() == [1, 0, 0, 1, 1, 0, 0, 1]
    assert expected[1, 1] == pytest.approx(2 * 4 / (4 + 4))
