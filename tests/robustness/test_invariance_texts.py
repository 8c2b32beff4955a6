"""Tests of names and places in texts: what is put in, and what counts as a failure."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from hf_distill.robustness.attacks.text import Predict
from hf_distill.robustness.invariance import (
    FEMALE,
    MALE,
    ORIGINS,
    PLACES,
    PREFIXES,
    TESTS,
    InvarianceTest,
    invariance,
)

TEXTS = [
    "Susan found Berlin dull, and told Susan's mother.",
    "Nothing here.",
    "He met Peter, Olga and susan in New York City.",
    "Bertha and Suzanne went to Oslonia.",
    "",
]


def favours(*words: str, texts_seen: list[str] | None = None) -> Predict:
    """A model whose class says whether one of these words is in the text."""

    def predict(texts: Sequence[str]) -> np.ndarray:
        if texts_seen is not None:
            texts_seen.extend(texts)
        return np.array([[0.5, float(any(word in text for word in words))] for text in texts])

    return predict


def test_lists_are_long_and_apart() -> None:
    """A name in two lists, or an everyday word, makes a test of something else."""
    groups = [FEMALE, MALE, *ORIGINS[1:]]
    assert ORIGINS[0] == FEMALE + MALE
    for group in (*groups, PLACES, PREFIXES):
        assert len(set(group)) == len(group) >= 20
    for first, second in itertools.combinations([*groups, PLACES], 2):
        assert not set(first) & set(second)
    for name in itertools.chain(*groups):
        assert name.isalpha()
        assert name.istitle()


def test_a_known_name_is_replaced_wherever_it_is() -> None:
    """Half of the occurrences replaced makes two persons of one; parts of words make nonsense."""
    names, gender, places = (TESTS[f"{what} replaced"] for what in ("names", "gender", "places"))
    found = names.versions(TEXTS[0])
    assert found[0] == TEXTS[0]
    assert len(found) == 1 + len(ORIGINS)
    for text, group in zip(found[1:], ORIGINS, strict=True):
        new = text.split()[0]
        assert new in group
        assert new != "Susan"
        assert text == TEXTS[0].replace("Susan", new)
    female_male = [text.split()[0] for text in gender.versions(TEXTS[0])[1:]]
    assert len(set(female_male)) == 8
    assert set(female_male[:4]) <= set(FEMALE)
    assert set(female_male[4:]) <= set(MALE)
    assert all(" Olga and susan" in text for text in names.versions(TEXTS[2]))
    third = places.versions(TEXTS[2])
    assert len(set(third)) == 9
    assert all(text.startswith("He met Peter") and text.endswith(" City.") for text in third)
    assert not any("New York" in text for text in third[1:])
    for test in (names, gender, places):
        for text in (TEXTS[1], TEXTS[3], TEXTS[4]):
            assert test.versions(text) == []


def test_long_names_go_before_short_ones() -> None:
    """ "New York City" would become "Oslo City"."""
    test = InvarianceTest("x", (("New York", "New York City", "Oslo"),))
    found = {text for seed in range(20) for text in test.versions("To New York City!", seed)}
    assert found == {"To New York City!", "To New York!", "To Oslo!"}


def test_templates_hold_the_text_and_every_text_counts() -> None:
    """The words around the name would be blamed on the name."""
    said = TESTS["gender in front"].versions("It is {name}.")
    assert len(said) == 8
    assert all(text.endswith(" said: It is {name}.") for text in said)
    assert {text.split()[0] for text in said} <= set(FEMALE + MALE)
    prefixed = TESTS["prefixes"].versions("It rains.")
    assert prefixed[0] == "It rains."
    assert len(set(prefixed)) == 9
    assert all(text.removesuffix(" It rains.") in PREFIXES for text in prefixed[1:])
    speaker = favours("said")  # says the same of every variant
    assert invariance(speaker, TEXTS, "names in front").failure_rate == 0
    assert len(invariance(speaker, TEXTS, "names in front").rows) == len(TEXTS)


def test_failures_are_those_of_brute_force() -> None:
    """A text that changes for one name in eight would pass, or one without a name count."""
    seen: list[str] = []
    test = TESTS["gender replaced"]
    predict = favours(*MALE, texts_seen=seen)
    draw = random.Random(2)
    texts = [f"{draw.choice(['Susan', 'Peter', 'Nobody'])} and row {i}" for i in range(40)]
    result = invariance(predict, texts, test, seed=7)
    named = [i for i, text in enumerate(texts) if not text.startswith("Nobody")]
    assert result.rows.tolist() == named
    assert result.failed.all()  # each is shown with names of the other gender
    assert result.failure_rate == 1.0
    assert len(seen) == 9 * len(named)
    for row, witness in zip(result.rows, result.witnesses, strict=True):
        assert witness is not None
        assert (witness.split()[0] in MALE) != texts[row].startswith("Peter")
        assert witness.split(" ", 1)[1] == texts[row].split(" ", 1)[1]
    one = MALE[0]
    partial = invariance(favours(one), texts, test, seed=7)
    expected = [any(one in v for v in test.versions(texts[i], 7)[1:]) for i in named]
    assert partial.failed.tolist() == expected
    assert 0 < partial.failure_rate < 1
    assert partial.failure_rate == sum(expected) / len(named)


def test_no_applicable_text() -> None:
    """A rate of 0 of 0 texts would read as a model without bias."""
    result = invariance(favours("x"), ["nothing", "here"], "names replaced")
    assert len(result.rows) == len(result.failed) == 0
    assert np.isnan(result.failure_rate)


def test_variants_depend_on_the_text_and_the_seed_alone() -> None:
    """Two models would be shown different names."""
    state = random.getstate(), np.random.get_state()[1].tolist()
    for test in TESTS.values():
        assert [test.versions(t, 3) for t in TEXTS] == [test.versions(t, 3) for t in TEXTS]
        assert test.versions(TEXTS[0], 3) != test.versions(TEXTS[0], 4)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state
    predict = favours("Vladimir", "Rachel", "Tokyo")
    for name in TESTS:
        whole = invariance(predict, TEXTS, name)
        for row, failed, witness in zip(whole.rows, whole.failed, whole.witnesses, strict=True):
            alone = invariance(predict, [TEXTS[row]], name)
            assert alone.failed.tolist() == [failed]
            assert alone.witnesses == (witness,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: invariance(favours("x"), ["a"], "name replaced"), "Did you mean 'names replaced'"),
        (lambda: invariance(favours("x"), "a", "prefixes"), "got one text"),
        (lambda: invariance(favours("x"), [3], "prefixes"), "got int at place 0"),
        (lambda: invariance(lambda t: np.zeros(2), ["a"], "prefixes"), r"N = 9 texts"),
        (lambda: InvarianceTest("x", ()), "fillers in each group"),
        (lambda: InvarianceTest("x", (("a",), ())), r"groups of \[1, 0\]"),
        (lambda: InvarianceTest("x", (("a",),), "front"), "'replace' or 'template'.*got 'front'"),
        (lambda: InvarianceTest("x", (("a",),), template="{name}!"), r"\{name\} and \{text\}"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    """A misspelt test would be another one, or none."""
    with pytest.raises(ValueError, match=message):
        call()
