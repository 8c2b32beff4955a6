"""Text perturbations: what may change, how much of it, and that no text breaks them."""

from __future__ import annotations

import difflib
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.robustness.perturbations import PERTURBATIONS, SEVERITIES, perturb
from hf_distill.robustness.perturbations.characters import (
    ACCENTED,
    CONTRACTIONS,
    HOMOGLYPHS,
    MISSPELLINGS,
    NEIGHBOURS,
)

TEXTS = [p.name for p in PERTURBATIONS.values() if p.modality == "text"]
LETTERS = "abcdefghijklmnopqrstuvwxyz" * 20  # 520 letters
PROSE = (
    "I don't know whether the Government would really believe their argument, but it is not a "
    "beautiful beginning. You will definitely receive a separate letter from us tomorrow, because "
    "we are interested in your opinion; they have 25 friends on the committee (and 3 ENEMIES)."
)


def run(name: str, text: str, severity: int, seed: int = 0) -> str:
    return perturb([text], name, severity, seed)[0]


def distance(a: str, b: str) -> int:
    """Levenshtein's, row by row."""
    codes = np.array([ord(c) for c in b])
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for i, c in enumerate(a, 1):
        new = np.concatenate([[i], np.minimum(row[1:] + 1, row[:-1] + (codes != ord(c)))])
        row = np.minimum.accumulate(new - steps) + steps
    return int(row[-1])


def test_the_distance_of_these_tests() -> None:
    """Against textbook values: all that is measured below rests on it."""
    for a, b, expected in (("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2)):
        assert distance(a, b) == distance(b, a) == expected


# ---- no text breaks them ----------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
@settings(max_examples=25, deadline=None)
@given(text=st.text(max_size=40) | st.text("aIm sß.'’ıİǅ\u0301\n\ud800é", max_size=30))
def test_any_text_survives(name: str, text: str) -> None:
    """One odd text out of thousands would end a report, or be an empty input to the model."""
    for severity in (1, 5):
        found = run(name, text, severity)
        assert isinstance(found, str)
        assert bool(found) == bool(text)
        assert bool(found.strip()) == bool(text.strip())
        assert run(name, text, severity) == found


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("text", ["", " ", "a", "I", "5", "...", "\n", "影", "\u200d", "a b"])
def test_the_shortest_texts(name: str, text: str) -> None:
    """An empty text cannot be tokenised by every model; a text of one letter is still one."""
    for severity in SEVERITIES:
        for seed in range(8):
            found = run(name, text, severity, seed)
            assert bool(found.strip()) == bool(text.strip())
            if not text.strip():
                assert found == text


# ---- what changes -----------------------------------------------------------------------------


def bare(text: str) -> str:
    """The text without its letters."""
    return "".join(c for c in text if not c.isalpha())


@pytest.mark.parametrize(
    "name",
    ["keyboard_typos", "character_swaps", "character_drops", "character_inserts", "homoglyphs",
     "diacritics", "random_case", "upper_case", "lower_case", "misspellings"],
)  # fmt: skip
def test_only_letters_change(name: str) -> None:
    """A changed number or a lost "?" may change the label, which then counts as an error."""
    for severity in SEVERITIES:
        assert bare(run(name, PROSE, severity)) == bare(PROSE)


def test_keyboard_neighbours() -> None:
    """Letters that no finger takes for each other are not typing errors."""
    by_hand = {
        "q": "wa", "a": "qwsz", "g": "tyfhvb", "h": "yugjbn", "p": "ol", "l": "opk", "m": "njk",
        "z": "asx", "e": "wrsd", "b": "ghvn", "O": "IPKL",
    }  # fmt: skip
    assert {k: set(NEIGHBOURS[k]) for k in by_hand} == {k: set(v) for k, v in by_hand.items()}
    for a, near in NEIGHBOURS.items():
        assert all(a in NEIGHBOURS[b] and a.isupper() == b.isupper() for b in near)
    found = run("keyboard_typos", LETTERS, 5)
    assert all(b == a or b in NEIGHBOURS[a] for a, b in zip(LETTERS, found, strict=True))


def test_swaps_are_of_adjacent_letters_of_one_word() -> None:
    """A letter that wanders through the word, or into the next, is no slip of two fingers."""
    found = run("character_swaps", PROSE, 5)
    i, swaps = 0, 0
    while i < len(PROSE):
        if PROSE[i] == found[i]:
            i += 1
            continue
        assert found[i : i + 2] == PROSE[i : i + 2][::-1]
        assert PROSE[i : i + 2].isalpha()
        i, swaps = i + 2, swaps + 1
    assert swaps > 30


def test_drops_and_inserts_leave_the_rest_in_order() -> None:
    """Letters that change as well would be two perturbations under one name."""

    def within(short: str, long: str) -> bool:
        rest = iter(long)
        return all(c in rest for c in short)

    assert within(run("character_drops", PROSE, 5), PROSE)
    assert within(PROSE, run("character_inserts", PROSE, 5))
    doubled = len(re.findall(r"(.)\1", run("character_inserts", LETTERS, 3)))
    assert 15 < doubled < 37  # half of 52: the rest are neighbours


def test_look_alikes_are_other_scripts() -> None:
    """A Latin letter in their place is no homoglyph."""
    for latin, others in HOMOGLYPHS.items():
        assert unicodedata.name(latin).startswith("LATIN")
        for other in others:
            assert unicodedata.name(other).split()[0] in ("CYRILLIC", "GREEK")
            case = "CAPITAL" if latin.isupper() else "SMALL"
            assert case in unicodedata.name(other)


def test_look_alikes_are_unicode_s() -> None:
    """Against Unicode's list of confusable characters (it files both I and its twins under l)."""
    confusables = pytest.importorskip("confusable_homoglyphs.confusables").confusables_data
    for latin, others in HOMOGLYPHS.items():
        for other in others:
            twins = {entry["c"] for entry in confusables[other]}
            assert latin in twins or (latin == "I" and "l" in twins), (latin, other)


def test_accents_are_marks_on_the_same_letter() -> None:
    """Without its marks the text must be the one that came."""
    assert set("aeiouncsyz") <= set(ACCENTED)
    found = run("diacritics", PROSE, 5)
    plain = "".join(c for c in unicodedata.normalize("NFD", found) if not unicodedata.combining(c))
    assert found != PROSE
    assert plain == PROSE


def test_case() -> None:
    """Case at severity 5 is all of the text, and random case is nothing but case."""
    assert run("upper_case", PROSE, 5) == PROSE.upper()
    assert run("lower_case", PROSE, 5) == PROSE.lower()
    for severity in SEVERITIES:
        assert run("random_case", PROSE, severity).lower() == PROSE.lower()


def test_ocr_errors() -> None:
    """Each change, found by difflib, is one that a reading machine makes: listed here by hand."""
    known = {
        ("m", "rn"), ("rn", "m"), ("d", "cl"), ("cl", "d"), ("w", "vv"), ("l", "1"), ("l", "I"),
        ("i", "l"), ("i", "1"), ("o", "0"), ("s", "5"), ("z", "2"), ("b", "6"), ("b", "h"),
        ("h", "b"), ("g", "9"), ("g", "q"), ("q", "9"), ("q", "g"), ("e", "c"), ("c", "e"),
        ("f", "t"), ("t", "f"), ("u", "ii"), ("n", "ri"), ("I", "l"), ("I", "1"), ("O", "0"),
        ("O", "Q"), ("S", "5"), ("Z", "2"), ("B", "8"), ("G", "6"), ("G", "C"),
    }  # fmt: skip
    seen = set()
    for before in {a for a, _ in known}:
        for seed in range(30):
            after = run("ocr_errors", f"({before})", 5, seed)[1:-1]
            if after != before:
                seen.add((before, after))
    assert seen == known


def test_spacing_changes_spaces_alone() -> None:
    """A letter lost with its space would be a typo."""
    for severity in SEVERITIES:
        found = run("spacing", PROSE, severity)
        assert found.replace(" ", "") == PROSE.replace(" ", "")
    fates = {run("spacing", "ab cd", 5, seed) for seed in range(60)}
    assert fates == {"abcd", "a b cd", "ab c d"}  # half of two words: one change


def test_words_are_dropped_whole() -> None:
    """Half words would be typos; words in another order another sentence."""
    words = PROSE.split()
    for severity in SEVERITIES:
        found = run("word_drop", PROSE, severity)
        rest = iter(words)
        assert all(word in rest for word in found.split())
        assert found == found.strip()
    assert {run("word_drop", "a b", 5, seed) for seed in range(30)} == {"a b", "a", "b"}


def test_distractors_leave_the_words() -> None:
    """What is put in must be all that is new, and must say nothing."""
    for severity, count in zip(SEVERITIES, (1, 2, 3, 4, 6), strict=True):
        for name, pattern in (
            ("url_noise", r"https://example\.com/[A-Za-z0-9]{8}|@[A-Za-z0-9]{8}"),
            ("emoji_noise", r"[^\w\s.,;()']"),
        ):
            words = run(name, PROSE, severity).split()
            new = [word for word in words if re.fullmatch(pattern, word)]
            assert len(new) == count
            assert [word for word in words if word not in new] == PROSE.split()
    places = {run("emoji_noise", "a b", 1, seed).split().index("b") for seed in range(40)}
    assert places == {1, 2}
    assert {len(run("emoji_noise", "a b", 1, s).split("b")[1]) > 0 for s in range(40)} == {
        True,
        False,
    }


def test_contractions_turn_into_each_other() -> None:
    """ "won't" is not "wo not", and "can't" not "ca not"; the case is kept."""
    pairs = {
        "I don't": "I do not", "He can't go": "He cannot go", "WON'T": "WILL NOT",
        "We're in": "We are in", "I'm": "I am", "You’ve": "You have", "They'll": "They will",
        "It Isn't": "It Is not",
    }  # fmt: skip
    for short, full in pairs.items():
        assert run("contractions", short, 5) == full
    for full, short in (("I do not", "I don't"), ("Will  not", "Will  not"), ("ARE NOT", "AREN'T")):
        assert run("contractions", full, 5) == short
    assert run("contractions", "It's Ann's dog; cannon", 5) == "It's Ann's dog; cannon"
    assert len(set(CONTRACTIONS.values())) == len(CONTRACTIONS)


# ---- misspellings -----------------------------------------------------------------------------


def test_misspellings_keep_the_case() -> None:
    """ "DEFINITELY" that becomes "definately" is two changes."""
    text = "Their THEIR their theirs"
    for seed in range(30):
        found = run("misspellings", text, 5, seed).split()
        assert found[3] == "theirs"
        for word, was in zip(found, text.split(), strict=True):
            assert word in (was, {"T": "Thier", "TH": "THIER"}.get(was[:2].rstrip("h"), "thier"))


def test_misspellings_are_near_and_are_others() -> None:
    """A pair that says the same, or that is far away, is an error of the table."""
    assert len(MISSPELLINGS) >= 250
    wrong = {w for forms in MISSPELLINGS.values() for w in forms}
    assert not wrong & set(MISSPELLINGS)  # no wrong form is itself a word of the table
    for right, forms in MISSPELLINGS.items():
        assert right == right.lower()
        assert len(set(forms)) == len(forms)
        for form in forms:
            assert 1 <= distance(right, form) <= 3, (right, form)
            assert difflib.SequenceMatcher(None, right, form).ratio() > 0.6, (right, form)


def test_misspellings_are_codespell_s() -> None:
    """Against codespell's collection of real errors (2.4.3: all but 21 of these pairs)."""
    codespell = pytest.importorskip("codespell_lib")
    lines = (Path(codespell.__file__).parent / "data" / "dictionary.txt").read_text().splitlines()
    known = {}
    for line in lines:
        wrong, _, right = line.lower().partition("->")
        known[wrong] = [r.strip() for r in right.split(",")]
    pairs = [(right, form) for right, forms in MISSPELLINGS.items() for form in forms]
    missing = [pair for pair in pairs if pair[0] not in known.get(pair[1], [])]
    assert len(missing) <= 0.08 * len(pairs), missing


# ---- how much -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("keyboard_typos", (0.02, 0.05, 0.1, 0.2, 0.3)),
        ("character_drops", (0.02, 0.05, 0.1, 0.2, 0.3)),
        ("character_inserts", (0.02, 0.05, 0.1, 0.2, 0.3)),
        ("character_swaps", (0.02, 0.05, 0.1, 0.2, 0.3)),
        ("random_case", (0.05, 0.1, 0.2, 0.35, 0.5)),
    ],
)
def test_the_share_of_changed_letters(name: str, rates: tuple[float, ...]) -> None:
    """A severity of another share than the table says makes the report's legend wrong."""
    for severity, rate in enumerate(rates, 1):
        found = run(name, LETTERS, severity)
        changed = {
            "character_drops": len(LETTERS) - len(found),
            "character_inserts": len(found) - len(LETTERS),
        }.get(name)
        if changed is None:
            changed = sum(a != b for a, b in zip(LETTERS, found, strict=True))
        changed //= 2 if name == "character_swaps" else 1
        assert abs(changed - rate * 520) < 1


@pytest.mark.parametrize(
    ("name", "word", "rates"),
    [
        ("upper_case", "word", (0.2, 0.4, 0.6, 0.8, 1)),
        ("lower_case", "Word", (0.2, 0.4, 0.6, 0.8, 1)),
        ("misspellings", "their", (0.1, 0.2, 0.4, 0.6, 0.8)),
        ("contractions", "don't", (0.2, 0.4, 0.6, 0.8, 1)),
        ("word_drop", "word", (0.05, 0.1, 0.15, 0.2, 0.3)),
        ("spacing", "word", (0.05, 0.1, 0.2, 0.3, 0.5)),
    ],
)
def test_the_share_of_changed_words(name: str, word: str, rates: tuple[float, ...]) -> None:
    """As above."""
    for severity, rate in enumerate(rates, 1):
        found = f" {run(name, ' '.join([word] * 203), severity)} "
        changed = 203 - len(re.findall(f"(?<= ){word} ", found))
        if name == "spacing":  # a word joined to the next takes that with it
            joined = found.count(word + word)
            assert rate * 203 - 1 < changed <= rate * 203 + 1 + joined
        else:
            assert abs(changed - rate * 203) < 1


@pytest.mark.parametrize("name", ["keyboard_typos", "character_swaps", "random_case"])
def test_short_texts_have_their_share_on_average(name: str) -> None:
    """Always rounded down, no short text would ever have a typo; always up, a third of it."""
    changed = [run(name, "typical", 2, seed) != "typical" for seed in range(1500)]
    rate = {"random_case": 0.1}.get(name, 0.05) * 7
    assert abs(np.mean(changed) - rate) < 5 * (rate * (1 - rate) / 1500) ** 0.5


@pytest.mark.parametrize("name", TEXTS)
def test_a_higher_severity_is_farther_away(name: str) -> None:
    """A curve of accuracy over severity would go up and down for no reason of the model."""
    text = f"{PROSE} We have not seen them. It isn't where you're going! I will not be there."
    means = [
        np.mean([distance(text, run(name, text, severity, seed)) for seed in range(3)])
        for severity in SEVERITIES
    ]
    assert all(np.diff(means) > 0), means
