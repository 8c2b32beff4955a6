"""Retokenization of the student's tokens with the teacher's tokenizer, and their alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from hf_distill.teachers.cross_tokenizer.byte_tokens import ByteTokens

Span = tuple[int, int, int, int]
"""The student's tokens ``[0]:[1]`` and the teacher's ``[2]:[3]``, with the same bytes."""

PLAIN = "The end, (a) b"


@dataclass(frozen=True)
class Retokenized:
    """Tokens of a text in another vocabulary, and the smallest groups of tokens of both with the
    same bytes, or the same special token, in order."""

    ids: list[int]
    spans: list[Span]


class Retokenizer:
    """Tokenizes the text of one tokenizer's tokens with another one.

    A special token is matched by its string, else as the beginning, the end, or padding; it is
    never read as text. Text that the teacher's tokenizer normalises, and bytes that are not text,
    are in no span; incomplete characters at the ends of a text are left out.

    Args:
        student: The tokenizer of the ids that are given.
        teacher: The tokenizer of the ids that are wanted.
        specials: The teacher's text for special tokens of the student:
            ``{"<|im_start|>": "<|start_header_id|>"}``; ``""`` removes them.

    Raises:
        ValueError: a key of ``specials`` is not a special token of the student; the teacher's
            tokenizer changes every text.
    """

    def __init__(
        self, student: ByteTokens, teacher: ByteTokens, specials: Mapping[str, str] | None = None
    ):
        if not teacher.gives_back(PLAIN):
            raise ValueError(
                f"Expected a teacher whose tokenizer keeps a text as it is ({PLAIN!r}): this one "
                "changes its letters or its spaces, and hardly a position would be left to "
                "compare. Choose one with a cased byte-level or SentencePiece tokenizer."
            )
        self.student, self.teacher = student, teacher
        self.specials = _matched_specials(student, teacher)
        for token, text in (specials or {}).items():
            if token not in student.special:
                raise ValueError(
                    f"Expected special tokens of the student {sorted(student.special)[:8]} as the "
                    f"keys of `specials`, got {token!r}."
                )
            self.specials[student.special[token]] = _with_specials(teacher, text)

    def __call__(self, ids: Sequence[int], *, strict: bool = True) -> Retokenized:
        """Retokenize a row without padding.

        ``strict`` raises ValueError on a special token of the student, or an id without a token,
        without a counterpart of the teacher; otherwise it is left out.
        """
        begins = bool(ids) and ids[0] == self.student.roles.get("bos")
        out: list[int] = [] if begins else list(self.teacher.prefix)
        spans: list[Span] = []
        first, start = True, 0

        def stands_alone(token: int) -> bool:
            return self.student.is_special(token) and (strict or token in self.specials)

        for special, group in groupby(ids, stands_alone):
            tokens = list(group)
            if special:
                for at, token in enumerate(tokens, start):
                    leads = begins and at == 0
                    found = (leads and self.teacher.prefix) or self._special(token)
                    first &= leads
                    if len(found) == 1:
                        spans.append((at, at + 1, len(out), len(out) + 1))
                    out += found
            else:
                spelt = [self._written(token) for token in tokens]
                skipped, end = whole_characters(spelt)
                spelt, m, n = spelt[skipped:end], start + skipped, len(out)
                other = self.teacher.cut(self.student.text(spelt, first), first)
                both = common_spans(spelt, self.teacher.spell(other))
                both = [span for span in both if all(spelt[span[0] : span[1]])]
                spans += [(m + a, m + b, n + c, n + d) for a, b, c, d in both]
                out += other
                first = False
            start += len(tokens)
        return Retokenized(out, spans)

    def _written(self, token: int) -> bytes:
        """Bytes of a token within a text; none for tokens that are left out."""
        return b"" if self.student.is_special(token) else self.student.spell([token])[0]

    def _special(self, token: int) -> list[int]:
        if token in self.specials:
            return self.specials[token]
        names = {i: name for name, i in self.student.special.items()}
        name = names.get(token, f"id {token}")
        raise ValueError(
            f"Expected special tokens that both tokenizers have, got {name!r} of the student, "
            "which the teacher does not know. Say what it reads in its place: specials="
            f"{{{name!r}: '<one of its special tokens, or nothing>'}}."
        )


def _matched_specials(student: ByteTokens, teacher: ByteTokens) -> dict[int, list[int]]:
    found = {i: [teacher.special[t]] for t, i in student.special.items() if t in teacher.special}
    for role, ours in student.roles.items():
        theirs = teacher.roles.get(role)
        if theirs is not None:
            found.setdefault(ours, [theirs])
        elif role != "eos":  # no token for a missing beginning, or for padding
            found.setdefault(ours, [])
    return found


def _with_specials(spelling: ByteTokens, text: str) -> list[int]:
    """The ids of a text with special tokens in it."""
    found: list[int] = []
    while text:
        at, name = min(
            ((text.find(name), name) for name in spelling.special if name in text),
            key=lambda pair: (pair[0], -len(pair[1])),
            default=(len(text), ""),
        )
        if at:
            found += spelling.cut(text[:at], first=False)
        if name:
            found.append(spelling.special[name])
        text = text[at + len(name) :]
    return found


def whole_characters(spelt: Sequence[bytes]) -> tuple[int, int]:
    """Range of tokens that form whole characters: blocks of text may be cut within one."""
    start, end = 0, len(spelt)
    while start < end and spelt[start][:1] and 0x80 <= spelt[start][0] < 0xC0:
        start += 1
    while start < end and _ends_within_character(b"".join(spelt[max(start, end - 4) : end])):
        end -= 1
    return start, end


def _ends_within_character(text: bytes) -> bool:
    for length, byte in enumerate(reversed(text[-4:]), 1):
        if byte < 0x80:
            return False
        if byte >= 0xC0:  # the first of 2, 3 or 4
            return length < 2 + (byte >= 0xE0) + (byte >= 0xF0)
    return False


def common_spans(ours: Sequence[bytes], theirs: Sequence[bytes]) -> list[Span]:
    """The smallest groups of tokens that cover the same bytes, in order; where the two texts
    differ, what they have in common at the beginning and at the end counts."""
    one, other = b"".join(ours), b"".join(theirs)
    head, tail = len(one), 0
    if one != other:
        head, tail = _agreement(one, other), _agreement(one[::-1], other[::-1])
        shorter = min(len(one), len(other))
        if head < tail:  # the longer one stays whole where they overlap
            head = min(head, shorter - tail)
        tail = min(tail, shorter - head)
    ours_at, theirs_at = (np.cumsum([0, *map(len, tokens)]) for tokens in (ours, theirs))
    spans = _between(ours_at, theirs_at, 0, head)
    if tail:
        spans += _between(ours_at - len(one), theirs_at - len(other), -tail, 0)
    return spans


def _agreement(one: bytes, other: bytes) -> int:
    """Length in bytes of the common prefix of two texts."""
    length = min(len(one), len(other))
    ours, theirs = (np.frombuffer(text[:length], np.uint8) for text in (one, other))
    differ = ours != theirs
    return int(differ.argmax()) if differ.any() else length


def _between(ours: np.ndarray, theirs: np.ndarray, low: int, high: int) -> list[Span]:
    """Spans between common boundaries from one offset to another."""
    common, a, c = np.intersect1d(ours, theirs, return_indices=True)
    a, c = (places[(common >= low) & (common <= high)].tolist() for places in (a, c))
    return list(zip(a[:-1], a[1:], c[:-1], c[1:], strict=True))
