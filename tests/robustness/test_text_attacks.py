"""Attacks on text by search: against brute force on a victim whose best attack is known."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.robustness.attacks.text import TextAttack, TextAttackResult, attack_texts
from hf_distill.robustness.attacks.words import (
    EDITS,
    NEGATIVE,
    POSITIVE,
    STOP_WORDS,
    WORD,
    character_edits,
    embedding_neighbours,
)

WEIGHTS = {
    **{"good": 2.0, "great": 3.0, "lovely": 1.5, "fine": 0.5, "film": 0.2, "plot": 0.1},
    **{"bad": -2.0, "awful": -3.0, "dull": -1.5, "slow": -0.5, "actor": -0.2, "scene": -0.1},
}
TEXTS = [
    "A great film with a lovely plot and one slow scene.",
    "An awful actor in a dull plot, but the film is fine!",
    "Good",
    "good plot, bad scene",
    "",
    "42 !!!",
    "the film of the plot: great great great actor",
    "GREAT film, 'lovely' even — don't miss it",
]


class Victim:
    """A bag of words with known weights, two classes and a margin that is their sum; it counts."""

    def __init__(self, weights: dict[str, float] | None = None, bias: float = 0.05):
        self.weights, self.bias = WEIGHTS if weights is None else weights, bias
        self.asked: list[list[str]] = []

    def margin(self, text: str) -> float:
        words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
        return self.bias + sum(self.weights.get(word, 0.0) for word in words)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.asked.append(list(texts))
        return np.array([[0.0, self.margin(text)] for text in texts])


def labels_of(texts: Sequence[str]) -> list[int]:
    return [int(Victim().margin(text) > 0) for text in texts]


def attacked(attack: TextAttack, texts: Sequence[str] = TEXTS, seed: int = 0) -> TextAttackResult:
    return attack_texts(Victim(), texts, labels_of(texts), attack, seed)


def inner_edits(word: str) -> set[str]:
    """Every word one inner insertion, deletion, replacement or neighbour swap away, by brute force.

    Of replacements and insertions only a-z; first and last letters stay.
    """
    found = set()
    for i in range(1, len(word)):
        for letter in string.ascii_lowercase:
            found.add(word[:i] + letter + word[i:])
            if i < len(word) - 1:
                found.add(word[:i] + letter + word[i + 1 :])
    for i in range(1, len(word) - 1):
        found.add(word[:i] + word[i + 1 :])
        if i < len(word) - 2:
            found.add(word[:i] + word[i + 1] + word[i] + word[i + 2 :])
    return found - {word}


# ---- what an edit is -------------------------------------------------------------------------


@given(st.text(string.ascii_lowercase, min_size=3, max_size=8))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_edits_are_all_that_brute_force_finds(word: str) -> None:
    """An edit that is missing weakens the attack; a wrong one changes two letters, or an end."""
    by_kind = character_edits(word, EDITS, keep_ends=True)
    edits = [edit for kind in by_kind.values() for edit in kind]
    assert len(edits) == len(set(edits))
    ascii_edits = {edit for edit in edits if edit.isascii()}
    assert ascii_edits <= inner_edits(word)
    shorter = {e for e in inner_edits(word) if len(e) < len(word)}
    longer = {e for e in inner_edits(word) if len(e) > len(word)}
    assert set(by_kind["delete"]) == shorter
    assert set(by_kind["insert"]) == longer
    assert all(edit[0] == word[0] and edit[-1] == word[-1] for edit in edits)
    free = character_edits(word, EDITS, keep_ends=False)
    assert set(free["delete"]) == {word[:i] + word[i + 1 :] for i in range(len(word))}
    assert any(edit[0] != word[0] for edit in free["keyboard"])


def test_edits_keep_capitals_and_other_scripts() -> None:
    """ "GREAT" with a small letter in it, or Cyrillic with a Latin one, is seen at once."""
    upper = character_edits("GREAT", ("insert", "keyboard", "swap", "delete"), keep_ends=True)
    assert all(edit.isupper() for kind in upper.values() for edit in kind)
    cyrillic = character_edits("\u0444\u0438\u043b\u044c\u043c", EDITS, keep_ends=True)
    assert cyrillic["insert"]
    assert not any(c in string.ascii_letters for e in cyrillic["insert"] for c in e)
    look_alikes = character_edits("peace", ("homoglyph",), keep_ends=True)["homoglyph"]
    assert all(len(edit) == 5 and not edit.isascii() for edit in look_alikes)
    assert {sum(a != b for a, b in zip(edit, "peace", strict=True)) for edit in look_alikes} == {1}


# ---- against brute force ---------------------------------------------------------------------


@given(st.lists(st.sampled_from([*WEIGHTS, "the", "of", "story"]), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_greedy_is_optimal_where_words_add_up(words: list[str]) -> None:
    """A search that spends its changes on the wrong words reports a weak model as a robust one.

    No edit of a word is another word of weight, so the best attack with k changes removes the k
    largest contributions to the true class: the margin is known in closed form.
    """
    known = set(WEIGHTS)
    assert not any(known & inner_edits(word) for word in known)
    text = " ".join(words)
    label = labels_of([text])[0]
    sign = 1 if label else -1
    result = attacked(TextAttack("half", "character", max_changed=0.5), [text])
    allowed = len(words) // 2
    helpful = sorted((sign * WEIGHTS.get(word, 0.0) for word in words), reverse=True)
    best = sign * 0.05 + sum(sign * WEIGHTS.get(word, 0.0) for word in words)
    # A word weighs nothing once it is misspelt; only those that help its class are worth a change.
    best -= sum(weight for weight in helpful[:allowed] if weight > 0)
    flips = best < 0 if label else best <= 0  # the first class wins a tie
    if abs(best) > 1e-9:  # rounding decides a tie
        assert result.attacked_correct[0] == (not flips)
    if not flips:
        assert sign * Victim().margin(result.texts[0]) == pytest.approx(best, abs=1e-9)


def test_one_word_is_attacked_as_by_trying_every_edit() -> None:
    """An edit that makes another word of weight is the only attack here: one of thousands."""
    weights = {"boat": 1.0, "boast": -3.0, "story": 0.9}
    victim = Victim(weights)
    text = "boat story"
    brute = min(
        victim.margin(changed)
        for changed in (
            *(f"{edit} story" for edit in inner_edits("boat")),
            *(f"boat {edit}" for edit in inner_edits("story")),
        )
    )
    attack = TextAttack("all edits", "character", 10_000, max_changed=0.5, max_queries=10_000)
    result = attack_texts(victim, [text], [1], attack)
    assert result.texts == ("boast story",)
    assert not result.attacked_correct[0]
    assert victim.margin(result.texts[0]) == pytest.approx(brute)


# ---- counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 1, 5, 9, 17, 40, 500])
def test_queries_are_the_texts_asked_about(budget: int) -> None:
    """Mean queries would be compared with other tools' and with a budget, and be wrong."""
    attack = TextAttack("a", "character", max_changed=1.0, max_queries=budget)
    for text, label in zip(TEXTS, labels_of(TEXTS), strict=True):
        for given_label in (label, 1 - label):
            victim = Victim()
            result = attack_texts(victim, [text], [given_label], attack)
            asked = [query for call in victim.asked for query in call]
            assert result.queries[0] == len(asked) <= budget + 1
            assert asked[0] == text
            if given_label != label:
                assert len(asked) == 1
                assert not result.original_correct[0]
                assert not result.attacked_correct[0]
                assert result.texts[0] == text


def test_one_call_for_each_step() -> None:
    """A call per candidate instead of one per word is tens of times slower on a real model."""
    victim = Victim()
    text = "great film, great plot, great scene"
    attack = TextAttack("a", "character", candidates=7, max_changed=0.5)
    result = attack_texts(victim, [text], [1], attack)
    assert result.attacked_correct[0]
    assert [len(call) for call in victim.asked] == [1, 6, 7, 7, 7]
    assert result.queries[0] == 28
    assert victim.asked[1] == [
        *("film, great plot, great scene", "great , great plot, great scene"),
        *("great film, plot, great scene", "great film, great , great scene"),
        *("great film, great plot, scene", "great film, great plot, great "),
    ]


def test_changed_words_are_counted_and_limited() -> None:
    """A share above the limit is another attack than the one that the report names."""
    for share in (0.0, 0.1, 0.2, 0.25, 0.3, 0.5, 1.0):
        for level in ("character", "word"):
            table = {word: ["zzz"] for word in WEIGHTS} if level == "word" else None
            result = attacked(TextAttack("a", level, max_changed=share, neighbours=table))
            for before, after, changed in zip(
                TEXTS, result.texts, result.words_changed, strict=True
            ):
                old, new = WORD.findall(before), WORD.findall(after)
                assert len(old) == len(new)
                differ = sum(a != b for a, b in zip(old, new, strict=True))
                assert changed == pytest.approx(differ / max(len(old), 1))
                assert changed <= share + 1e-12
                assert WORD.sub("", before) == WORD.sub("", after)
    exact = TextAttack("a", "character", max_changed=0.29)  # 0.29 * 100 is 28.999999999999996
    text = " ".join(["good"] * 100)
    assert attacked(exact, [text]).words_changed[0] == pytest.approx(0.29)


# ---- budgets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_more_budget_never_looks_better(seed: int) -> None:
    """A model that survives 50 queries and not 20 shows that the search itself went wrong."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices([*WEIGHTS, "the"], k=draw.randint(1, 12))) for _ in range(15)]
    clean = attacked(TextAttack("a", "character", max_queries=0), texts, seed)
    assert clean.attacked_correct.tolist() == clean.original_correct.tolist()
    assert clean.texts == tuple(texts)
    budgets = [
        [TextAttack("a", "character", 4, 0.4, budget) for budget in range(0, 60, 4)],
        [TextAttack("a", "character", 4, share / 10, 10_000) for share in (0, 1, 2, 3, 5, 10)],
    ]
    for attacks in budgets:
        survived = [attacked(attack, texts, seed).attacked_correct for attack in attacks]
        for less, more in itertools.pairwise(survived):
            assert (more <= less).all()
        assert survived[-1].sum() < survived[0].sum()


def test_a_larger_budget_asks_the_same_first() -> None:
    """Greedy searches that part ways early make budgets incomparable."""
    text = TEXTS[0]
    longest: list[str] = []
    for budget in range(80, 0, -7):
        victim = Victim()
        attack = TextAttack("a", "character", 5, 0.5, budget)
        attack_texts(victim, [text], [1], attack)
        asked = [query for call in victim.asked for query in call]
        longest = longest or asked
        assert asked == longest[: len(asked)]


# ---- determinism -----------------------------------------------------------------------------


def test_results_depend_on_the_text_and_the_seed_alone() -> None:
    """Models would be shown different misspellings, and their difference be one of luck."""
    attack = TextAttack("a", "character", max_changed=0.5)
    random.seed(1)
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    whole = attacked(attack)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    again = attacked(attack, TEXTS[::-1])
    assert again.texts[::-1] == whole.texts
    assert again.queries[::-1].tolist() == whole.queries.tolist()
    for at, text in enumerate(TEXTS):
        alone = attacked(attack, [text])
        assert alone.texts[0] == whole.texts[at]
        assert alone.words_changed[0] == whole.words_changed[at]
    others = [attacked(attack, seed=seed).texts for seed in range(5)]
    assert len(set(others)) > 1


def test_logits_and_log_probabilities_are_attacked_alike() -> None:
    """A score that depends on the normalisation would make another attack of each."""

    def normalised(texts: Sequence[str]) -> np.ndarray:
        return torch.tensor(Victim()(texts)).log_softmax(-1).numpy()

    attack = TextAttack("a", "character", max_changed=1.0, max_queries=60)
    given_logits = attacked(attack)
    given_logs = attack_texts(normalised, TEXTS, labels_of(TEXTS), attack)
    assert given_logs.texts == given_logits.texts
    certain = attack_texts(lambda t: np.array([[-np.inf, 0.0]] * len(t)), ["a film"], [1], attack)
    assert certain.attacked_correct.tolist() == [True]


def test_three_classes() -> None:
    """The true class would be compared with one other class instead of the best of them."""

    def predict(texts: Sequence[str]) -> np.ndarray:
        return np.array([[1.0 * ("red" in t), 0.5, 2.0 * ("blue" in t)] for t in texts])

    attack = TextAttack("a", "character", max_changed=0.5)
    result = attack_texts(predict, ["blue red", "one red", "one two"], [2, 0, 1], attack)
    assert result.original_correct.all()
    assert result.attacked_correct.tolist() == [False, False, True]
    assert result.texts[0].endswith(" red")
    assert result.texts[1].startswith("one ")


# ---- words -----------------------------------------------------------------------------------


def test_word_attack_takes_neighbours_and_spares_stop_words() -> None:
    """A negation that goes missing turns the meaning round, and the label is wrong then."""
    table = {
        "great": ["great", "not", "grand", "good"],
        "not": ["indeed"],
        "film": ["movie"],
    }
    attack = TextAttack("words", "word", candidates=2, max_changed=1.0, neighbours=table)
    victim = Victim({"great": 1.0, "grand": 0.5, "good": 0.1, "film": 0.2, "not": 3.0})
    result = attack_texts(victim, ["Great film, not GREAT"], [1], attack)
    # 2 x 1 + .2 + 3 falls to 2 x .1 + 0 + 3: "good" is second once "great" and "not" are out.
    assert result.texts == ("Good movie, not GOOD",)
    assert result.attacked_correct[0]
    assert [len(call) for call in victim.asked] == [1, 3, 2, 2, 1]
    assert "not" in STOP_WORDS
    assert not POSITIVE & NEGATIVE
    assert not STOP_WORDS & (POSITIVE | NEGATIVE)


class Tokens:
    """As much of a tokenizer as the vocabulary is read from."""

    def __init__(self, tokens: list[str], special: tuple[int, ...] = ()):
        self.tokens, self.all_special_ids = tokens, list(special)

    def __len__(self) -> int:
        return len(self.tokens)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.tokens[i] for i in ids]


@pytest.mark.parametrize("marker", ["", "Ġ", "▁"], ids=["word pieces", "bytes", "sentence pieces"])
def test_neighbours_are_the_nearest_whole_words(marker: str) -> None:
    """Half a word, another case or an antonym would stand for a word."""
    words = ["good", "decent", "solid", "bad", "awful", "film", "movie", "house", "horse", "worse"]
    junk = [f"{marker}the", f"{marker}Good", f"{marker}go2", f"{marker}ox"]
    part = "##good" if marker == "" else "good"  # a piece within a word
    tokens = ["[PAD]", *(marker + word for word in words), *junk, part]
    table = np.random.default_rng(0).normal(size=(len(tokens) + 3, 6))  # padded rows at the end
    table[1 + words.index("bad")] = table[1] + 0.01  # "bad" beside "good"
    table[-4] = table[1]  # the piece "good" too
    found = embedding_neighbours(Tokens(tokens, (0,)), table, k=3, least_cosine=-1.0)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    for at, word in enumerate(words):
        cosines = {other: unit[1 + at] @ unit[1 + i] for i, other in enumerate(words)}
        del cosines[word]
        crossed = {"good", "decent", "solid"}, {"bad", "awful", "worse"}
        for ours, theirs in (crossed, crossed[::-1]):
            if word in ours:
                cosines = {other: c for other, c in cosines.items() if other not in theirs}
        assert found[word] == tuple(sorted(cosines, key=cosines.__getitem__, reverse=True)[:3])
    assert set(found) == set(words)
    tensor = torch.tensor(table, requires_grad=True)
    assert embedding_neighbours(Tokens(tokens, (0,)), tensor, 3, -1.0) == found
    assert embedding_neighbours(Tokens(tokens, (0,)), table, 3, 2.0) == {}


def test_a_transformers_tokenizer_is_read() -> None:
    """The stand-in above would hide a method that real tokenizers lack."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"[UNK]": 0, "good": 1, "decent": 2, "##ly": 3, "Good": 4}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")),
        unk_token="[UNK]",
    )
    table = torch.nn.Embedding(5, 4).weight
    found = embedding_neighbours(fast, table, least_cosine=-1.0)
    assert found == {"good": ("decent",), "decent": ("good",)}


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "charcter"}, "got 'charcter'. Did you mean 'character'"),
        ({"edits": ("swop",)}, "got 'swop'. Did you mean 'swap'"),
        ({"edits": ()}, "an attack with edits"),
        ({"candidates": 0}, "at least 1 candidate"),
        ({"max_queries": -1}, "0 queries or more"),
        ({"max_changed": 1.5}, "from 0 to 1, got 1.5"),
        ({"level": "word"}, "Expected `neighbours` for the level 'word'.*got.*none"),
        ({"neighbours": {"a": ["b"]}}, "for no other, got the level 'character' and some"),
    ],
)
def test_an_attack_that_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    """A misspelt setting would run as another attack, hours later, under its name."""
    with pytest.raises(ValueError, match=message):
        TextAttack(**{"name": "a", "level": "character", **arguments})


@pytest.mark.parametrize(
    ("texts", "labels", "logits", "message"),
    [
        (["a"], [0, 1], [[0.0, 1.0]], "one class id"),
        (["a"], [0.5], [[0.0, 1.0]], "dtype float64"),
        (["a"], [2], [[0.0, 1.0]], "labels from 0 to 1.*got 2"),
        (["a"], [-100], [[0.0, 1.0]], "Leave unlabelled texts out"),
        ("text", [0] * 4, [[0.0, 1.0]], "got one text: 'text'"),
        ([[1, 2]], [0], [[0.0, 1.0]], "got list at place 0"),
        (["a"], [0], [0.0, 1.0], r"\(N, C\) with N = 1 texts"),
        (["a"], [0], [[1.0]], "at least 2 classes"),
        (["a"], [0], [[float("nan"), 1.0]], "NaN or infinity for 'a'"),
    ],
)
def test_bad_input_is_named(texts: object, labels: object, logits: object, message: str) -> None:
    """A wrong shape or label would count as an attack that succeeded."""
    attack = TextAttack("a", "character")
    with pytest.raises(ValueError, match=message):
        attack_texts(lambda _: np.array(logits), texts, labels, attack)


def test_embeddings_of_another_model_are_refused() -> None:
    """Rows of another vocabulary give words at random as neighbours."""
    with pytest.raises(ValueError, match=r"each of the tokenizer's 3 tokens, got shape \(2, 4\)"):
        embedding_neighbours(Tokens(["one", "two", "three"]), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="found none in Tokens with 2 tokens"):
        embedding_neighbours(Tokens(["##a", "##b"]), np.zeros((2, 4)))


def test_no_texts() -> None:
    """An empty group of texts would crash a whole report."""
    empty = attack_texts(Victim(), [], [], TextAttack("a", "character"))
    assert empty.texts == ()
    assert empty.queries.shape == empty.attacked_correct.shape == (0,)
