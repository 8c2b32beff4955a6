"""Candidate words for text attacks: misspellings, or neighbours in a model's embeddings.

Nothing here looks at the model under attack, so that every model is offered the same candidates.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_distill.robustness.perturbations.characters import HOMOGLYPHS, NEIGHBOURS, word_table

WORD = re.compile(r"([^\W\d_]+(?:['’][^\W\d_]+)*)")
"""A word: letters, with apostrophes between them. Splitting by it leaves words at odd places."""
SHORTEST = 3
"""Words of fewer letters are never changed: no inner letter, and hardly a neighbour."""


_LISTS = {k: frozenset(v) for k, v in word_table(Path(__file__).with_name("words.txt")).items()}
STOP_WORDS = _LISTS["stop_words"]
"""English function words: the word attack neither changes them nor puts one in."""
POSITIVE, NEGATIVE = _LISTS["positive"], _LISTS["negative"]
"""Positive and negative words are close in embeddings, but no replacement crosses the sets."""

EDITS = ("swap", "delete", "insert", "keyboard", "homoglyph")
"""Kinds of edits of letters."""


def character_edits(word: str, kinds: Collection[str], keep_ends: bool) -> dict[str, list[str]]:
    """All words one edit away, by kind (some of `EDITS`), without duplicates and the word itself.

    A word of fewer than `SHORTEST` letters has none. `keep_ends`: its first and last letter stay.

    >>> character_edits("bad", ("delete", "swap"), keep_ends=True)
    {'delete': ['bd'], 'swap': []}
    """
    if len(word) < SHORTEST:
        return {}
    end = len(word)
    inner = range(1, end - 1) if keep_ends else range(end)
    gaps = range(1, end) if keep_ends else range(end + 1)
    letters = string.ascii_uppercase if word.isupper() else string.ascii_lowercase
    alphabet = letters if word.isascii() else sorted(set(word))

    def replaced(table: Mapping[str, str]) -> Iterable[str]:
        return (word[:i] + new + word[i + 1 :] for i in inner for new in table.get(word[i], ""))

    every: dict[str, Iterable[str]] = {
        "swap": (word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in inner[:-1]),
        "delete": (word[:i] + word[i + 1 :] for i in inner),
        "insert": (word[:i] + new + word[i:] for i in gaps for new in alphabet),
        "keyboard": replaced(NEIGHBOURS),
        "homoglyph": replaced(HOMOGLYPHS),
    }
    seen, found = {word}, {}
    for kind in kinds:
        found[kind] = [new for new in dict.fromkeys(every[kind]) if new not in seen]
        seen.update(found[kind])
    return found


def character_candidates(
    word: str, kinds: Collection[str], keep_ends: bool, limit: int, generator: np.random.Generator
) -> list[str]:
    """Up to ``limit`` random edits of a word, as many of each kind as there are.

    Each kind is shuffled, and the kinds take turns. A higher limit adds to those of a lower one.
    """
    shuffled = [
        [edits[i] for i in generator.permutation(len(edits))]
        for edits in character_edits(word, kinds, keep_ends).values()
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*shuffled))
    return [edit for edit in turns if edit is not None][:limit]


def word_candidates(word: str, neighbours: Mapping[str, Iterable[str]], limit: int) -> list[str]:
    """Up to ``limit`` nearest words with the same capitals; none for stop words."""
    lower = word.lower()
    if lower in STOP_WORDS or len(lower) < SHORTEST:
        return []
    found = dict.fromkeys(
        new
        for new in neighbours.get(lower, ())
        if new.lower() != lower and new.lower() not in STOP_WORDS
    )
    return [_cased(new, word) for new in found][:limit]


def _cased(new: str, old: str) -> str:
    """``new`` with the capitals of ``old``: all of them, the first, or none."""
    if old.isupper():
        return new.upper()
    return new.capitalize() if old[:1].isupper() else new


def embedding_neighbours(
    tokenizer: Any,
    embedding_matrix: Any,
    k: int = 8,
    least_cosine: float = 0.45,
) -> dict[str, tuple[str, ...]]:
    """The nearest words of each word in a model's input embeddings, by cosine.

    Give the table of one reference model to the attacks on all models. Words are tokens that stand
    for a whole word in lower case, of at least three letters, without stop words. A word of praise
    is no neighbour of a word of blame; other antonyms remain, so a success of this attack is no
    proof that a reader would disagree.

    Args:
        tokenizer: A tokenizer of transformers; WordPiece, byte-level BPE or SentencePiece.
        embedding_matrix: ``(V, d)``: ``model.get_input_embeddings().weight``.
        k: Neighbours per word, at most.
        least_cosine: Neighbours less similar than this are left out. 0.45 fits the embeddings of
            all-MiniLM-L6-v2; other models' spaces are narrower or wider.

    Returns:
        Word -> its neighbours, the nearest first; words without any are left out.

    Raises:
        ValueError: a matrix that does not fit the tokenizer, or no whole words in its vocabulary.

    Reference: Jin et al., 2020, "Is BERT Really Robust?", arXiv:1907.11932 (nearest neighbours,
    there in counter-fitted vectors and with a sentence encoder as a second filter).
    """
    table = torch.as_tensor(embedding_matrix).detach().float().cpu()
    if table.dim() != 2 or len(table) < len(tokenizer):
        raise ValueError(
            f"Expected an embedding matrix (V, d) with a row for each of the tokenizer's "
            f"{len(tokenizer)} tokens, got shape {tuple(table.shape)}. Pass "
            "`model.get_input_embeddings().weight` of the model this tokenizer belongs to."
        )
    places = _whole_words(tokenizer)
    if not places:
        raise ValueError(
            f"Expected a vocabulary with whole words, found none in {type(tokenizer).__name__} "
            f"with {len(tokenizer)} tokens. Use a word-piece, BPE or SentencePiece tokenizer, or "
            "write the table of neighbours yourself."
        )
    vocabulary = list(places)
    table = torch.nn.functional.normalize(table[list(places.values())], dim=1)
    found: dict[str, tuple[str, ...]] = {}
    for start in range(0, len(vocabulary), 512):
        part = slice(start, start + 512)
        cosines = (table[part] @ table.T).numpy()
        for word, row in zip(vocabulary[part], cosines, strict=True):
            close = np.flatnonzero(row >= least_cosine)
            ordered = (vocabulary[i] for i in close[np.argsort(-row[close], kind="stable")])
            near = tuple(itertools.islice((w for w in ordered if _may_stand_for(w, word)), k))
            if near:
                found[word] = near
    return found


def _may_stand_for(new: str, word: str) -> bool:
    crosses = (new in POSITIVE and word in NEGATIVE) or (new in NEGATIVE and word in POSITIVE)
    return new != word and not crosses


def _whole_words(tokenizer: Any) -> dict[str, int]:
    """Word -> its token, for tokens that begin a word, in the order of their ids."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    # Byte-level BPE and SentencePiece mark where a word begins, WordPiece where one goes on ("##").
    starts = [token[:1] for token in tokens if token]
    marker = next((m for m in ("Ġ", "▁") if starts.count(m) > len(tokens) / 10), "")
    found: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if number in special or not token or not token.startswith(marker):
            continue
        word = token.removeprefix(marker)
        readable = word.isalpha() and word.islower() and (word.isascii() or marker != "Ġ")
        if readable and len(word) >= SHORTEST and word not in STOP_WORDS:
            found.setdefault(word, number)
    return found
