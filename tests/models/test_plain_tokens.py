"""Token ids for models without a network, against the tokenizer itself."""

from __future__ import annotations

import random
from typing import Any

import pytest
import transformers as tf
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from hf_distill.models.embedding.tokens import PlainTokenizer

WORDS = [
    "[PAD]",
    "[UNK]",
    "[SEP]",
    *"abcxyzABC01é北.,'-_#",
    "the",
    "##s",
    "##b",
    "cat",
    "don",
    "The",
]
ODD = "abcABC01  ..,'-_#é北Å\u0301ß\u200b\u00a0\u2003\t\n\r\x00\x01\x1c\x7f\ufffd😀İ[]<>"


def tokenizer(kind: str) -> Any:
    """A fast tokenizer of a few words."""
    vocabulary = {word: n for n, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=kind != "cased")
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if kind == "other words":
        inner.pre_tokenizer = pre_tokenizers.Split("a c", "isolated")
    if kind == "bytes":
        letters = {letter: n for n, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
        inner = Tokenizer(models.BPE(letters, []))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel()
    if kind == "added":
        inner.add_tokens(
            ["catcat", AddedToken("a.b", single_word=True), AddedToken("Zz", lstrip=True)]
        )
    if kind == "added with a space":
        inner.add_tokens(["cat the", "b"])
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", sep_token="[SEP]")


def texts() -> list[str]:
    """Words and marks in any order, with what normalizers and added tokens change."""
    draw = random.Random(0)
    pieces = [
        *ODD,
        "cat",
        "cats",
        "The",
        "[SEP]",
        "[sep]",
        "catcat",
        "a.b",
        "zz",
        "ZZ",
        "cat the",
        "don't",
    ]
    made = ["".join(draw.choices(pieces, k=draw.randrange(12))) for _ in range(600)]
    return ["", " ", "a" * 99, "a" * 101 + " cat", "the cat's  cats", *made]


KINDS = ["lower", "cased", "added", "added with a space", "other words", "bytes"]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_parts_are_those_of_the_text(kind: str) -> None:
    """A word looked up instead of read would get other ids than the student was trained on."""
    tok = tokenizer(kind)
    plain = PlainTokenizer(tok)
    ids, lengths = plain(texts())
    expected = [
        tok.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in texts()
    ]
    assert lengths.tolist() == [len(each) for each in expected]
    assert ids.tolist() == [number for each in expected for number in each]
    again, _ = plain(texts())  # now from memory
    assert again.tolist() == ids.tolist()


def test_lengths_set_for_a_network_do_not_cut() -> None:
    """A tokenizer last used for a network would cut long texts; it must keep its settings."""
    tok = tokenizer("lower")
    tok.backend_tokenizer.enable_truncation(3)
    tok.backend_tokenizer.enable_padding(length=3)
    _, lengths = PlainTokenizer(tok)(["the cat the cat the", "cat"])
    assert lengths.tolist() == [5, 1]
    assert tok.backend_tokenizer.truncation["max_length"] == 3
    assert tok.backend_tokenizer.padding["length"] == 3
