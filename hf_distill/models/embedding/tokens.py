"""Token ids of many texts, for models without a network, whose time is the tokenizer's."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

WORD = re.compile(r"[0-9A-Za-z]+|[^0-9A-Za-z]")
"""A word of printable ASCII text without spaces, as BERT cuts it: punctuation marks are words."""


class PlainTokenizer:
    """The ids of texts without special tokens, padding and truncation.

    Tokenizers of BERT's kind (its normalizer, its words, WordPiece) cut at every space, so that the
    ids of a text are those of its parts in a row: each distinct part, and each distinct word of
    these, is tokenised once. Other tokenizers read each text as a whole. The tokenizer that was
    given does not change. Ids are kept as bytes, which are joined quickly and which the garbage
    collector does not visit.

    Args:
        tokenizer: A fast tokenizer of transformers.

    Raises:
        ValueError: a tokenizer in Python.
    """

    def __init__(self, tokenizer: Any):
        inner: Any = getattr(tokenizer, "backend_tokenizer", None)
        if not hasattr(inner, "encode_batch_fast"):
            raise ValueError(
                f"Expected a fast tokenizer, got {type(tokenizer).__name__}. Load it with "
                "AutoTokenizer.from_pretrained(…), which converts it."
            )
        if inner.truncation is not None or inner.padding is not None:
            inner = Tokenizer.from_str(inner.to_str())
            inner.no_truncation()
            inner.no_padding()
        self._inner = inner
        self._parts = _Parts(inner) if _cuts_at_spaces(inner) else None

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts in a row, int64, and the number of ids of each text, ``(N,)``."""
        if self._parts is None:
            found = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
            rows = [_packed(encoded.ids) for encoded in found]
        else:
            part = self._parts.__getitem__
            rows = [b"".join(map(part, text.split(" "))) for text in texts]
        flat = np.frombuffer(b"".join(rows), np.int32).astype(np.int64)
        return flat, np.fromiter(map(len, rows), np.int64, len(rows)) // 4


class _Parts(dict[str, bytes]):
    """Ids of each part of a text between spaces."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner, self.words = inner, _Words(inner.model)
        self.lower = inner.normalizer.lowercase
        added = [re.escape(token.content) for token in _added(inner)]
        self.added = re.compile("|".join(added) or r"(?!)", re.IGNORECASE)

    def __missing__(self, part: str) -> bytes:
        if part.isascii() and part.isprintable() and not self.added.search(part):
            words = WORD.findall(part.lower() if self.lower else part)
            ids = b"".join(map(self.words.__getitem__, words))
        else:
            ids = _packed(self.inner.encode(part, add_special_tokens=False).ids)
        self[part] = ids
        return ids


class _Words(dict[str, bytes]):
    """Ids of each word."""

    def __init__(self, model: WordPiece):
        super().__init__()
        self.model = model

    def __missing__(self, word: str) -> bytes:
        ids = self[word] = _packed(token.id for token in self.model.tokenize(word))
        return ids


def _packed(ids: Iterable[int]) -> bytes:
    return array("i", ids).tobytes()


def _added(inner: Any) -> list[Any]:
    return list(inner.get_added_tokens_decoder().values())


def _cuts_at_spaces(inner: Any) -> bool:
    return (
        isinstance(inner.model, WordPiece)
        and isinstance(inner.normalizer, BertNormalizer)
        and isinstance(inner.pre_tokenizer, BertPreTokenizer)
        and not any(re.search(r"\s", token.content) for token in _added(inner))
    )
