"""Shared tokens of two vocabularies: computed once per pair, and cached on disk."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_distill.teachers.cross_tokenizer.byte_tokens import ByteTokens
from hf_distill.teachers.cross_tokenizer.retokenize import Retokenizer
from hf_distill.utils.files import replacing


@dataclass(frozen=True)
class SharedVocabulary:
    """Pairs of tokens of identical bytes, or of the same special meaning.

    Attributes:
        student: ``(M,)`` int64, the student's ids.
        teacher: ``(M,)``, the teacher's ids, in the same order.
        student_classes: ``(C_s,)``: for each of the student's tokens the pair to which it belongs,
            else the pair with the longest beginning of its bytes; M: none.
        teacher_classes: ``(C_t,)``: the same for the teacher's.
    """

    student: Tensor
    teacher: Tensor
    student_classes: Tensor
    teacher_classes: Tensor

    def to(self, device: torch.device) -> SharedVocabulary:
        """The same on a device."""
        return SharedVocabulary(**{name: ids.to(device) for name, ids in vars(self).items()})

    @property
    def classes(self) -> int:
        """Number of comparable classes: the pairs, and one for all others if both have some."""
        pairs = len(self.student)
        both = (self.student_classes, self.teacher_classes)
        return pairs + all(bool((side == pairs).any()) for side in both)


def shared_tokens(translator: Retokenizer, folder: str | Path | None = None) -> SharedVocabulary:
    """Find the tokens that two tokenizers share, or raise ValueError. Results are kept in
    ``folder``, by default ``hf_distill/tokens`` in ``HF_HOME``."""
    kept = Path(constants.HF_HOME) / "hf_distill" / "tokens" if folder is None else Path(folder)
    path = kept / f"{_fingerprint(translator)}.safetensors"
    if path.is_file():
        return SharedVocabulary(**load_file(path))
    shared = _compare(translator)
    with contextlib.suppress(PermissionError):  # a read-only home: computed every time
        kept.mkdir(parents=True, exist_ok=True)
        with replacing(path, shared=True) as temporary:
            save_file(vars(shared), temporary)
    return shared


def _fingerprint(translator: Retokenizer) -> str:
    found = hashlib.sha256(b"1")  # the version of the following values
    for spelling in (translator.student, translator.teacher):
        tokens = sorted(spelling.vocabulary.items(), key=lambda pair: pair[1])
        found.update(repr(tokens).encode())
        found.update(repr(spelling.bytes).encode())
    found.update(repr(sorted(translator.specials.items())).encode())
    return found.hexdigest()[:32]


def _compare(translator: Retokenizer) -> SharedVocabulary:
    ours, theirs = translator.student, translator.teacher
    if ours.vocabulary == theirs.vocabulary:
        same = sorted(ours.vocabulary.values())
        pairs = list(zip(same, same, strict=True))
    else:
        other = _by_bytes(theirs)
        texts = [(i, other[spelt]) for spelt, i in _by_bytes(ours).items() if spelt in other]
        if not texts:
            raise ValueError(
                f"Expected tokenizers that share tokens, got {len(ours.vocabulary)} tokens of the "
                f"student and {len(theirs.vocabulary)} of the teacher, and none of the same bytes. "
                "Nothing of what this teacher says can be told to this student: choose another."
            )
        pairs = sorted(texts + _same_meaning(translator))
    student, teacher = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    return SharedVocabulary(student, teacher, _classes(ours, student), _classes(theirs, teacher))


def _by_bytes(spelling: ByteTokens) -> dict[bytes, int]:
    """Tokens by their bytes; a byte's fallback token only if there is no other."""
    found: dict[bytes, int] = {}
    for token, index in sorted(spelling.vocabulary.items(), key=lambda pair: pair[1]):
        spelt = spelling.bytes[index]
        if spelt and (spelt not in found or not token.startswith("<0x")):
            found[spelt] = index
    return found


def _same_meaning(translator: Retokenizer) -> list[tuple[int, int]]:
    """Special tokens, each in one pair: those of one string first."""
    specials, theirs = translator.specials, translator.teacher.special
    by_name = {i: theirs[name] for name, i in translator.student.special.items() if name in theirs}
    order = sorted(specials, key=lambda i: specials[i] != [by_name.get(i)])
    found: dict[int, int] = {}
    for index in order:
        if len(specials[index]) == 1 and translator.teacher.is_special(specials[index][0]):
            found.setdefault(specials[index][0], index)
    return [(index, target) for target, index in found.items()]


def _classes(spelling: ByteTokens, matched: Tensor) -> Tensor:
    none = len(matched)
    found = torch.full((len(spelling),), none)
    found[matched] = torch.arange(none)
    beginnings: dict[bytes, int] = {}
    for pair, index in enumerate(matched.tolist()):
        spelt = spelling.bytes[index]
        if spelt:
            beginnings[spelt] = pair
    longest = max(map(len, beginnings), default=0)
    for index in (found == none).nonzero().flatten().tolist():
        spelt = spelling.bytes[index] or b""
        lengths = range(min(len(spelt), longest), 0, -1)
        found[index] = next(
            (beginnings[spelt[:n]] for n in lengths if spelt[:n] in beginnings), none
        )
    return found
