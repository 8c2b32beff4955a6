"""Candidate words for text attacks: misspellings, or neighbours in a model's embeddings.

Nothing here looks at the model under attack, so that every model is offered the same candidates.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from hf_distill.robustness.perturbations.characters import HOMOGLYPHS, NEIGHBOURS

WORD = re.compile(r"([^\W\d_]+(?:['’][^\W\d_]+)*)")
"""A word: letters, with apostrophes between them. Splitting by it leaves words at odd places."""
SHORTEST = 3
"""Words of fewer letters are never changed: no inner letter, and hardly a neighbour."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOP_WORDS = _words(
    """
    a about above after again against all almost alone along already also although always am
    among an and another any anyone anything are around as at away back be because been before
    behind being below between both but by came can cannot could did do does doing done down
    during each either else enough even ever every everyone everything except few for from
    further get gets got had has have having he her here hers herself him himself his how
    however i if in into is it its itself just least less let like made make many may me might
    mine more most much must my myself near neither never next no nobody none nor not nothing
    now nowhere of off often on once one only onto or other others our ours out over own per
    quite rather really same shall she should since so some someone something somewhere still
    such than that the their theirs them themselves then there these they this those though
    through thus to together too toward towards two under until up upon us use used very was we
    well were what whatever when where whether which while who whom whose why will with within
    without would yet you your yours yourself
    """
)
"""English function words: the word attack neither changes them nor puts one in."""

POSITIVE = _words(
    """
    admirable admire admired amazing amusing attractive awesome beautiful beautifully best
    better brilliant brilliantly captivating charm charming clever comfortable compelling cute
    decent delight delightful easily easy effective elegant engaging enjoy enjoyable enjoyed
    enjoying entertaining excellent exceptional exciting exquisite fantastic fascinating
    favorite fine flawless fresh friendly fun funny generous gentle genuine glad good gorgeous
    graceful great gripping happiness happy helpful hilarious honest hope hopeful impressive
    innovative inspired inspiring intelligent interesting joy kind laugh liked likes lively
    lovable love loved lovely loves magnificent marvelous masterful memorable moving nice
    original perfect perfectly pleasant pleasure positive powerful pretty profound promising
    rewarding rich satisfying smart solid sophisticated spectacular splendid strong stunning
    success successful superb superior sweet terrific thoughtful thrilling touching triumph true
    unforgettable vivid warm win winning witty wonderful wonderfully worth worthwhile worthy
    """
)
NEGATIVE = _words(
    """
    absurd annoying appalling atrocious awful awkward bad badly banal bland bleak bored boredom
    boring broken cheap cliche clumsy cold confused confusing crap crude cruel damaged dead
    depressing difficult dire dirty disappointed disappointing disappointment disaster
    disgusting dishonest dislike dismal dreadful dreary dull dumb empty fail failed fails
    failure fake false flawed foolish forgettable forgotten frustrating grim hate hated hateful
    hates hideous hollow horrible horribly horrific idiotic ineffective inferior lame lazy
    lifeless loathe lose losing loss lost ludicrous mediocre mess messy mindless miserable
    misguided monotonous mundane nasty negative nonsense obnoxious obvious offensive ordinary
    pain painful painfully pathetic pointless poor poorly predictable pretentious repetitive
    ridiculous rude sad sadly shallow shitty sick silly sloppy slow sorry stale stupid tedious
    terrible terribly tired tiresome tragic trite ugly unable unfunny unhappy uninteresting
    unpleasant unworthy useless vile waste wasted weak weird worse worst worthless wrong
    """
)
"""Positive and negative words. They are close in embeddings, but no replacement crosses the sets.
"""

EDITS = ("swap", "delete", "insert", "keyboard", "homoglyph")
"""Kinds of edits: swap of neighbouring letters, deletion, insertion, neighbouring key, look-alike.
"""


def character_edits(word: str, kinds: Collection[str], keep_ends: bool) -> dict[str, list[str]]:
    """All words one edit away, by kind; no duplicates, and never the word itself.

    Args:
        word: At least `SHORTEST` letters; a shorter one has no edits.
        kinds: Some of `EDITS`.
        keep_ends: The first and the last letter stay (as readers hardly notice changes within).

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
    words: Iterable[str] | None = None,
    least_cosine: float = 0.45,
) -> dict[str, tuple[str, ...]]:
    """The nearest words of each word in a model's input embeddings, by cosine.

    Take the embeddings of one reference model (the teacher's encoder, say), and give the same table
    to the attacks on all models. Words are tokens that stand for a whole word in lower case, of at
    least three letters, without stop words. A word of praise is no neighbour of a word of blame
    (see `POSITIVE` and `NEGATIVE`). Other antonyms remain: neighbours are used alike, and do not
    always mean the same. So a success of this attack is no proof that a reader would disagree.

    Args:
        tokenizer: A tokenizer of transformers; WordPiece, byte-level BPE or SentencePiece.
        embedding_matrix: ``(V, d)``, array or tensor, such as
            ``model.get_input_embeddings().weight``.
        k: Neighbours per word, at most.
        words: Look only for neighbours of these (those in the texts to attack): saves time. All
            when None. The neighbours themselves come from the whole vocabulary.
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
    wanted = vocabulary if words is None else sorted({word.lower() for word in words} & set(places))
    position = {word: i for i, word in enumerate(vocabulary)}
    found: dict[str, tuple[str, ...]] = {}
    for start in range(0, len(wanted), 512):
        part = wanted[start : start + 512]
        cosines = (table[[position[word] for word in part]] @ table.T).numpy()
        for word, row in zip(part, cosines, strict=True):
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
