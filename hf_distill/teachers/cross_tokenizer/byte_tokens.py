"""Bytes of a tokenizer's tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

UNKNOWN = b"\xff"
"""Byte of the unknown token, which no UTF-8 text contains."""
ROLES = ("eos", "bos", "pad")
"""Roles of special tokens. The end comes first: if a token has several roles, a model predicts it
as the end."""
EMPTY = {"type": "Sequence", "normalizers": []}
ALPHABET = {character: byte for byte, character in bytes_to_unicode().items()}
"""Bytes by character of byte-level tokenizers."""


class ByteTokens:
    """Byte form of a tokenizer: tokenization of text in bytes, without special tokens.

    Supported are fast tokenizers of byte-level BPE (GPT-2, Llama 3, Qwen), SentencePiece (Llama 2,
    Gemma, T5), and WordPiece, whose words include the space before them; ValueError for others.

    Attributes:
        bytes: Bytes of each id; None for a special token and for an id without a token.
        special: The special tokens, string -> id.
        roles: The ids of those that are ``bos``, ``eos`` and ``pad``.
        unknown: The id for what the tokenizer cannot write, or None.
        prefix: The ids that it puts before a text.
    """

    def __init__(self, tokenizer: Any):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"Expected a fast tokenizer, got {type(tokenizer).__name__}, whose rules are in "
                "Python code. Convert it (AutoTokenizer.from_pretrained(…, use_fast=True))."
            )
        spec = json.loads(backend.to_str())
        self._whole = Tokenizer.from_str(json.dumps({**spec, "truncation": None, "padding": None}))
        self._inner = Tokenizer.from_str(json.dumps(_without_prefix_space(spec)))
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        added = tokenizer.added_tokens_decoder
        self.special = {token.content: i for i, token in added.items() if token.special}
        named = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES}
        self.roles: dict[str, int] = {role: i for role, i in named.items() if i is not None}
        unknown = tokenizer.unk_token_id
        self.unknown = None if unknown in self.roles.values() else unknown
        self.bytes = self._spelt(spec, {i: token.content for i, token in added.items()})
        self.prefix = self._prefix(tokenizer)
        self._spaced = {first: self._adds_space(first) for first in (True, False)}
        if not self.gives_back("the a"):
            raise ValueError(
                f"Expected a tokenizer that gives back a text, got {self._back('the a')!r} for "
                "'the a': its tokens cannot be spelt in bytes. Use models with byte-level, "
                "SentencePiece or WordPiece tokenizers."
            )

    def __len__(self) -> int:
        return len(self.bytes)

    def spell(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each of some tokens that are not special."""
        return [UNKNOWN if (spelt := self.bytes[i]) is None else spelt for i in ids]

    def is_special(self, token: int) -> bool:
        """True for a token that is not part of a text."""
        return token != self.unknown and (token >= len(self) or self.bytes[token] is None)

    def text(self, spelt: Sequence[bytes], first: bool) -> str:
        """Text of tokens by their bytes; bytes that are not UTF-8 become a replacement character.
        They begin a text (``first``), or follow a special token."""
        joined = b"".join(spelt)
        if self._spaced[first]:
            joined = joined.removeprefix(b" ")  # the tokenizer's own, not the text's
        return joined.decode(errors="replace")

    def cut(self, text: str, first: bool) -> list[int]:
        """Ids of a text, in which names of special tokens are ordinary text; ``first`` as in
        `text`."""
        used = self._whole if self._spaced[first] else self._inner
        used.encode_special_tokens = True  # set here, since pickling loses it
        found: list[int] = used.encode(text, add_special_tokens=False).ids
        return found

    def _spelt(self, spec: Any, added: dict[int, str]) -> list[bytes | None]:
        spell = _speller(spec)
        found: list[bytes | None] = [None] * (max(self.vocabulary.values()) + 1)
        special = {*self.special.values(), self.unknown}
        for token, index in self.vocabulary.items():
            if index in added:
                found[index] = None if index in special else added[index].encode()
            elif index not in special:
                found[index] = spell(token)
        return found

    def _prefix(self, tokenizer: Any) -> list[int]:
        plain, whole = (tokenizer("a", add_special_tokens=s)["input_ids"] for s in (False, True))
        starts = (k for k in range(len(whole)) if whole[k : k + len(plain)] == plain)
        return list(whole[: next(starts, 0)])

    def _adds_space(self, first: bool) -> bool:
        """True if the tokenizer puts a space before a text, or after a special token."""
        self._whole.encode_special_tokens = False
        before = "" if first else next(iter(self.special), "")
        ids = self._whole.encode(before + "a", add_special_tokens=False).ids
        return b"".join(self.spell(ids[bool(before) :])) == b" a"

    def gives_back(self, text: str) -> bool:
        """True if the tokens of a text reproduce it, except for unknown characters."""
        back = self._back(text)
        return back == text or "\ufffd" in back

    def _back(self, text: str) -> str:
        return self.text(self.spell(self.cut(text, True)), True)


def _parts(spec: Any) -> Iterator[dict[str, Any]]:
    """Every typed part of a tokenizer's JSON, nested ones included."""
    if isinstance(spec, dict):
        if "type" in spec:
            yield spec
        for value in spec.values():
            yield from _parts(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from _parts(value)


def _speller(spec: Any) -> Any:
    """The function token -> bytes of the tokenizer's decoder."""
    model = {k: v for k, v in spec["model"].items() if k not in ("vocab", "merges")}
    decoders = {part["type"]: part for part in _parts(spec["decoder"])}
    if "ByteLevel" in decoders:
        return _byte_level
    if model["type"] == "WordPiece":
        mark = model["continuing_subword_prefix"]
        return lambda t: (t[len(mark) :] if t.startswith(mark) else f" {t}").encode()
    space = None
    if "Metaspace" in decoders:
        space = decoders["Metaspace"]["replacement"]
    elif decoders.get("Replace", {}).get("content") == " ":
        space = decoders["Replace"]["pattern"]["String"]
    if space is None:
        raise ValueError(
            f"Expected a byte-level, SentencePiece or WordPiece tokenizer, got a {model['type']} "
            f"model with the decoder {sorted(decoders) or None}, whose tokens cannot be spelt in "
            "bytes. Choose a teacher (or a student) with another tokenizer."
        )
    fallback = bool(model.get("byte_fallback"))

    def spell(token: str) -> bytes:
        if fallback and len(token) == 6 and token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        return token.replace(space, " ").encode()

    return spell


def _byte_level(token: str) -> bytes:
    if not ALPHABET.keys() >= set(token):
        return token.encode()
    return bytes(ALPHABET[character] for character in token)


def _without_prefix_space(spec: Any) -> Any:
    """JSON of the same tokenizer without a space before texts."""
    copy = json.loads(json.dumps({**spec, "truncation": None, "padding": None}))
    for part in _parts(copy):
        if part["type"] == "Metaspace" and part.get("prepend_scheme"):
            part["prepend_scheme"] = "never"
        elif part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
        elif part["type"] == "Prepend":
            part.clear()
            part.update(EMPTY)
    return copy
