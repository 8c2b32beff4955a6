"""Labels, distributions and rationales read from answers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hf_distill.teachers.api.answers import distribution, is_refusal, label_of, split_rationale

SENTIMENT = ["negative", "positive"]
GRADES = ["bad", "very bad", "good"]


@pytest.mark.parametrize(
    ("text", "words", "label"),
    [
        ("positive", SENTIMENT, 1),
        ("\n**Positive**.", SENTIMENT, 1),
        ("The review is negative, because the plot is thin.", SENTIMENT, 0),
        ("<think>negative? no, positive</think>\nnegative", SENTIMENT, 0),
        ("<think>negative, I think", SENTIMENT, None),
        ("This is not positive.", SENTIMENT, None),
        ("It isn't very positive", SENTIMENT, None),
        ("neither positive nor negative", SENTIMENT, None),
        ("positive, negative", SENTIMENT, None),
        ("positively", SENTIMENT, None),
        ("", SENTIMENT, None),
        ("Very bad!", GRADES, 1),
        ("bad", GRADES, 0),
        ("B", ["A", "B"], 1),
        (" (B) It is …", ["A", "B"], 1),
        ("B\nbecause", ["A", "B"], 1),
        ("A good film", ["A", "B"], None),
        ("I think B", ["A", "B"], None),
        ("10", ["1", "10"], 1),
        ("1.", ["1", "10"], 0),
        ("C++", ["C", "C++"], 1),
        ("großartig", ["schlecht", "Großartig"], 1),
    ],
)
def test_labels_of_texts(text: str, words: list[str], label: int | None) -> None:
    """A wrong label is trained on as if the teacher had given it; none is counted."""
    assert label_of(text, words) == label


def position(token: str, **top: float) -> dict[str, Any]:
    """A position with these probabilities."""
    pairs = [(name.replace("_", " "), math.log(p)) for name, p in top.items()]
    return {"token": token, "logprob": dict(pairs).get(token, math.log(0.5)), "top": pairs}


def test_first_tokens_decide_where_they_differ() -> None:
    """A label gets the mass of its spelling with a capital or a blank, or only one of them."""
    found = distribution(
        [position("pos", pos=0.5, _Pos=0.1, neg=0.2, Negative=0.1, the=0.1), position("itive")],
        SENTIMENT,
    )
    assert found is not None
    assert found[0] == pytest.approx([0.3 / 0.9, 0.6 / 0.9])
    assert found[1] == pytest.approx(0.9)


def test_a_common_beginning_is_resolved_by_the_next_token() -> None:
    """Words with one first token get the same probability, whatever the model thinks of them."""
    ne = position("ne", ne=0.8, pos=0.2)
    found = distribution([ne, position("gative", gative=0.25, utral=0.75)], ["negative", "neutral"])
    assert found is not None
    assert found[0] == pytest.approx([0.25, 0.75])
    assert found[1] == pytest.approx(0.8)
    words = ["bad", "bad enough", "good"]
    end = {"<|im_end|>": 0.6, " enough": 0.4}
    last = {
        "token": "<|im_end|>",
        "logprob": math.log(0.6),
        "top": [(t, math.log(p)) for t, p in end.items()],
    }
    found = distribution([position("bad", bad=0.5, good=0.5), last], words)
    assert found is not None
    assert found[0] == pytest.approx([0.3, 0.2, 0.5])


def test_quotes_and_blanks_are_passed_over() -> None:
    """An answer in quotes counts as unreadable, or its quote as the beginning of every word."""
    quote = {"token": '"', "logprob": math.log(0.9), "top": [('"', math.log(0.9))]}
    found = distribution([quote, position("B", A=0.2, B=0.6)], ["A", "B"])
    assert found is not None
    assert found[0] == pytest.approx([0.25, 0.75])
    assert found[1] == pytest.approx(0.9 * 0.8)


def test_a_word_that_is_not_finished_does_not_count() -> None:
    """The mass of "pos" goes to "positive" where the answer is "possibly"."""
    answer = [position("pos", pos=0.7, neg=0.1), position("sibly", sibly=0.9)]
    found = distribution(answer, SENTIMENT)
    assert found is not None
    assert found[0] == [1.0, 0.0]
    assert found[1] == pytest.approx(0.1)
    assert distribution([position("the", the=0.9)], SENTIMENT) is None


def test_rationales_end_at_the_last_marker() -> None:
    """A rationale that quotes the marker is cut short, and the label is read from its middle."""
    text = "The answer: is hard. ANSWER: no.\nIt ends well.\n**Answer:** positive"
    assert split_rationale(text, "Answer:") == (
        "The answer: is hard. ANSWER: no.\nIt ends well.",
        "** positive",
    )
    assert split_rationale("positive", "Answer:") is None


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ({"text": "I cannot help with this."}, True),
        ({"text": "I’m unable to classify it"}, True),
        ({"text": "", "finish": "content_filter"}, True),
        ({"text": "", "refusal": "no"}, True),
        ({"rejected": "status 400: content filter"}, True),
        ({"text": "They can't act, so negative."}, False),
        ({"text": "", "finish": "length"}, False),
    ],
)
def test_refusals(answer: dict[str, Any], refused: bool) -> None:
    """A refusal is counted as a badly written answer, or a review of bad actors as a refusal."""
    assert is_refusal(answer) is refused
