"""Attacks on text by search: change a few letters or words until the model errs.

The search is greedy, as in DeepWordBug and TextFooler: words are ranked by how much the true class
loses when one is left out; then, from the first word down, the candidate that hurts the true class
most is kept. Accuracy under this attack is an upper bound of the accuracy under the strongest one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_distill.robustness.attacks.words import EDITS, WORD, character_candidates, word_candidates
from hf_distill.utils.suggest import did_you_mean

Predict = Callable[[Sequence[str]], np.ndarray]
"""Texts -> logits ``(N, C)`` or their log-softmax. Logarithms of rounded probabilities (0 or 1)
would hide effective edits from a search."""


@dataclass(frozen=True)
class TextAttack:
    """Text attack: allowed changes and query budget.

    Args:
        name: For tables and messages.
        level: ``"character"``: one misspelling within a word. ``"word"``: another word for it.
        candidates: Replacements that are tried per word, at most: drawn edits, an equal number of
            each kind, or the nearest neighbours.
        max_changed: At most this share of a text's words is changed, rounded down.
        max_queries: Queries of the model beyond the original text. Ranking takes one per word that
            may change; a text with as many of these stays unchanged. 0 gives the clean accuracy.
        edits: Which misspellings: some of `hf_distill.robustness.attacks.words.EDITS`.
        keep_ends: Misspellings leave the first and the last letter of a word.
        neighbours: Level ``"word"`` only: word in lower case -> words to put for it, nearest first;
            see `hf_distill.robustness.attacks.words.embedding_neighbours`. One for all models.

    Raises:
        ValueError: an unknown level or edit, a number out of range, or neighbours missing for the
            word level or given for the character level.

    Reference: Gao et al., 2018, "Black-box Generation of Adversarial Text Sequences to Evade Deep
    Learning Classifiers", arXiv:1801.04354 (DeepWordBug); Pruthi et al., 2019, "Combating
    Adversarial Misspellings with Robust Word Recognition", arXiv:1905.11268 (edits within a word);
    Jin et al., 2020, "Is BERT Really Robust?", arXiv:1907.11932 (TextFooler).
    """

    name: str
    level: str
    candidates: int = 10
    max_changed: float = 0.2
    max_queries: int = 500
    edits: tuple[str, ...] = EDITS
    keep_ends: bool = True
    neighbours: Mapping[str, Sequence[str]] | None = field(default=None, repr=False, hash=False)

    def __post_init__(self) -> None:
        for what, names, known in (
            ("level", (self.level,), ("character", "word")),
            ("edit", self.edits, EDITS),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"Expected each {what} of the attack {self.name!r} to be one of "
                        f"{', '.join(known)}, got {name!r}.{did_you_mean(name, known, 0.0)}"
                    )
        if not self.edits or self.candidates < 1 or self.max_queries < 0:
            raise ValueError(
                f"Expected an attack with edits, at least 1 candidate per word and 0 queries or "
                f"more, got {self}."
            )
        if not 0 <= self.max_changed <= 1:
            raise ValueError(
                f"Expected max_changed, a share of a text's words, from 0 to 1, got "
                f"{self.max_changed}."
            )
        if (self.level == "word") != (self.neighbours is not None):
            raise ValueError(
                f"Expected `neighbours` for the level 'word' and for no other, got the level "
                f"{self.level!r} and {'none' if self.neighbours is None else 'some'}. Make "
                "them with `embedding_neighbours(tokenizer, embedding_matrix)`."
            )

    def options(self, word: str, generator: np.random.Generator) -> list[str]:
        """Candidate replacements for a word."""
        if self.neighbours is not None:
            return word_candidates(word, self.neighbours, self.candidates)
        return character_candidates(word, self.edits, self.keep_ends, self.candidates, generator)


@dataclass(frozen=True)
class TextAttackResult:
    """Results of an attack, one entry per text.

    Args:
        original_correct: ``(N,)`` bool. A text that was misclassified as it stands is not attacked.
        attacked_correct: ``(N,)`` bool, False also where ``original_correct`` is.
        queries: ``(N,)`` int: queries of the model, the original included.
        words_changed: ``(N,)``: the share of the words that differ in ``texts``, 0 to 1.
        texts: The changed texts: those that succeeded, else the worst that was found.
    """

    original_correct: np.ndarray
    attacked_correct: np.ndarray
    queries: np.ndarray
    words_changed: np.ndarray
    texts: tuple[str, ...]


def query(predict: Predict, texts: Sequence[str]) -> np.ndarray:
    """The logits of texts, float64 ``(N, C)``, after a look at their shape.

    Raises:
        ValueError: not two classes or more for each text, or NaN or infinite values (-inf, the
            logarithm of a probability of 0, is allowed next to a finite value).
    """
    logits = np.asarray(predict(texts), dtype=np.float64)
    if logits.ndim != 2 or len(logits) != len(texts) or logits.shape[1] < 2:
        raise ValueError(
            f"Expected `predict` to give logits of shape (N, C) with N = {len(texts)} texts and at "
            f"least 2 classes, got {logits.shape}."
        )
    if not np.isfinite(logits.max(axis=1)).all():
        raise ValueError(
            "Expected `predict` to give finite logits or log-probabilities, got NaN or infinity "
            f"for {texts[int(np.argmin(np.isfinite(logits.max(axis=1))))]!r}."
        )
    return logits


def seeded(seed: int, *parts: object) -> np.random.Generator:
    """Generator that depends only on the seed and the given parts (by their ``str``)."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *parts))).encode("utf-8", "surrogatepass"))
    return np.random.default_rng(int.from_bytes(digest.digest()[:16], "big"))


def check_texts(texts: Sequence[str]) -> None:
    """Raise a ValueError unless these are texts."""
    if isinstance(texts, str):
        raise ValueError(f"Expected a list of texts, got one text: {texts[:50]!r}.")
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"Expected texts, got {type(text).__name__} at place {at}. These attacks and tests "
                "are for text; decode token ids first."
            )


def attack_texts(
    predict: Predict,
    texts: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    attack: TextAttack,
    seed: int = 0,
) -> TextAttackResult:
    """Attack each text separately until it is misclassified or the budget is used up.

    A text's result depends on the text, its label and the seed. A larger budget makes all queries
    of a smaller one too, so it never makes a model look better.

    `predict` gives logits or log-probabilities ``(N, C)`` of N texts; labels are ids ``(N,)``.

    Raises:
        ValueError: labels that do not fit the texts or the classes, values that are not texts, or
            what `query` refuses.

    >>> def predict(texts):  # "good" makes it class 1
    ...     return np.array([[0.5, float("good" in text)] for text in texts])
    >>> attack = TextAttack("one deletion", "character", max_changed=0.5, edits=("delete",))
    >>> result = attack_texts(predict, ["quite a good film"], [1], attack)
    >>> result.texts, result.attacked_correct.tolist(), result.queries.tolist()
    (('quite a god film',), [False], [5])
    """
    check_texts(texts)
    answers = np.asarray(labels)
    fits = answers.shape == (len(texts),)
    if not fits or (len(texts) and answers.dtype.kind not in "iu"):
        raise ValueError(
            f"Expected one class id (an integer) per text, {len(texts)} in all, got labels of "
            f"shape {answers.shape} and dtype {answers.dtype}. Text attacks need labelled text."
        )
    rows = [
        _attack_one(predict, text, label, attack, seed)
        for text, label in zip(texts, answers.tolist(), strict=True)
    ]
    columns = zip(*rows, strict=True) if rows else ((),) * 5
    original, attacked, queries, changed, found = columns
    return TextAttackResult(
        original_correct=np.array(original, dtype=bool),
        attacked_correct=np.array(attacked, dtype=bool),
        queries=np.array(queries, dtype=np.int64),
        words_changed=np.array(changed, dtype=np.float64),
        texts=tuple(found),
    )


def _margins(predict: Predict, texts: list[str], label: int) -> tuple[np.ndarray, np.ndarray]:
    """Margin of the true class over the best other one, and the correctness of the prediction."""
    logits = query(predict, texts)
    classes = logits.shape[1]
    if not 0 <= label < classes:
        raise ValueError(
            f"Expected labels from 0 to {classes - 1}, as the model has {classes} classes, got "
            f"{label}. Leave unlabelled texts out."
        )
    others = np.delete(logits, label, axis=1).max(axis=1)
    return logits[:, label] - others, logits.argmax(axis=1) == label


def _attack_one(
    predict: Predict, text: str, label: int, attack: TextAttack, seed: int
) -> tuple[bool, bool, int, float, str]:
    """Fields of a `TextAttackResult` for one text."""
    margins, right = _margins(predict, [text], label)
    if not right[0]:
        return False, False, 1, 0.0, text
    pieces = WORD.split(text)
    places = range(1, len(pieces), 2)
    # The small number: 0.29 * 100 is 28.999999999999996.
    may_change = math.floor(attack.max_changed * len(places) + 1e-9)
    options = {at: attack.options(pieces[at], seeded(seed, at, text)) for at in places}
    open_places = [at for at in places if options[at]] if may_change else []

    left = attack.max_queries
    if left <= len(open_places):  # the ranking would leave none to try a candidate with
        open_places = []
    order: list[int] = []
    if open_places:
        leads = _margins(predict, [_without(pieces, at) for at in open_places], label)[0]
        order = [open_places[i] for i in np.argsort(leads, kind="stable")]
        left -= len(order)
    lead, changed, correct = float(margins[0]), 0, True
    for at in order:
        tried = [[*pieces[:at], new, *pieces[at + 1 :]] for new in options[at][:left]]
        if not tried or changed == may_change:
            break
        leads, rights = _margins(predict, ["".join(new) for new in tried], label)
        left -= len(tried)
        # First among those that err, then by the lead: at a lead of 0 the class ids decide.
        best = min(range(len(tried)), key=lambda i: (bool(rights[i]), leads[i]))
        if leads[best] < lead or not rights[best]:
            pieces, lead, changed = tried[best], float(leads[best]), changed + 1
            correct = bool(rights[best])
        if not correct:
            break
    asked = 1 + attack.max_queries - left
    share = changed / len(places) if changed else 0.0
    return True, correct, asked, share, "".join(pieces)


def _without(pieces: list[str], at: int) -> str:
    """Text without one word and the space after it."""
    return "".join(pieces[:at]) + "".join(pieces[at + 1 :]).removeprefix(" ")
