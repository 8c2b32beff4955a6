"""Tokenization with boundaries that no token may span."""

from collections.abc import Sequence
from typing import Any


def encode(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    """Tokens of a text; special tokens that are written out in it are read as such.

    ``special``: with the beginning token, where this tokenizer adds one and the text has none.
    """
    begin, end = tokenizer.bos_token, tokenizer.eos_token_id
    special = special and not (begin and text.startswith(begin))
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    if special and ids and ids[-1] == end:  # the caller decides on the end
        return ids[:-1]
    return ids


def encode_cut(
    tokenizer: Any, text: str, cuts: Sequence[int], special: bool = False
) -> tuple[list[int], list[int]]:
    """Tokens of a text, and the number of tokens before each cut (characters, ascending).

    The text is read as a whole; where that would give a token on both sides of a cut, it is read in
    two, as a model reads a prompt before it writes the answer.
    """
    done: list[int] = []
    counts, start = [], 0
    rest = encode(tokenizer, text, special)
    for cut in cuts:
        before = encode(tokenizer, text[start:cut], special and start == 0)
        counts.append(len(done) + len(before))
        if rest[: len(before)] != before:
            done, start = done + before, cut
            rest = encode(tokenizer, text[cut:])
    return done + rest, counts
