"""A tiny tokenizer of each family, trained on a few words, and tiny language models for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers as tf
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "the end of the thing",
    "there and then the other thing ends",
    "an end and another",
    "things end there",
]
OTHERS = ["hen when then", "her other mother", "ending thing", "ing in and hand", "an end of it"]
"""With these, words are cut at other places."""
SPECIALS = ["<unk>", "<s>", "</s>"]


def _ours(backend: Tokenizer, **names: str) -> Any:
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def byte_level(
    corpus: Sequence[str] = CORPUS,
    specials: Sequence[str] = ("<|end|>",),
    *,
    spaced: bool = False,
    eos: str = "<|end|>",
    size: int = 300,
) -> Any:
    """As GPT-2's: byte-level BPE without a beginning."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(specials),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return _ours(backend, eos_token=eos, pad_token=eos)


def fallback(corpus: Sequence[str] = OTHERS, scheme: str = "always") -> Any:
    """As Llama 2's: SentencePiece BPE with bytes to fall back to, and a beginning."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    extra = [f"<0x{b:02X}>" for b in range(256)]
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS + extra, show_progress=False),
    )
    trained = json.loads(backend.to_str())["model"]
    merges = [tuple(m) for m in trained["merges"]]
    backend = Tokenizer(
        models.BPE(trained["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if scheme == "always":  # as the converter of Llama 2 writes it
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        strip = [decoders.Strip(" ", 1, 0)]
        first = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*first, *strip])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        backend.decoder = decoders.Sequence(
            [decoders.Metaspace(prepend_scheme=scheme), decoders.ByteFallback(), decoders.Fuse()]
        )
    backend.add_special_tokens(SPECIALS)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return _ours(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(corpus: Sequence[str] = CORPUS) -> Any:
    """As T5's, without an end: SentencePiece Unigram, whose unknown characters are lost."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        corpus,
        trainers.UnigramTrainer(
            vocab_size=50, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
        ),
    )
    return _ours(backend, eos_token="</s>", unk_token="<unk>")


def word_piece(corpus: Sequence[str] = CORPUS) -> Any:
    """As BERT's, of lower-case words between spaces."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(cleanup=False)
    specials = ["[UNK]", "[PAD]", "[END]"]
    backend.train_from_iterator(
        corpus,
        trainers.WordPieceTrainer(vocab_size=60, special_tokens=specials, show_progress=False),
    )
    return _ours(backend, unk_token="[UNK]", pad_token="[PAD]", eos_token="[END]")


def word_level() -> Any:
    """A list of words."""
    words = {"<unk>": 0, "the": 1}
    return _ours(Tokenizer(models.WordLevel(words, unk_token="<unk>")), unk_token="<unk>")


MAKERS: dict[str, Any] = {
    "byte_level": byte_level,
    "byte_level_spaced": lambda corpus=CORPUS: byte_level(corpus, spaced=True),
    "fallback": fallback,
    "fallback_first": lambda corpus=OTHERS: fallback(corpus, "first"),
    "unigram": unigram,
    "word_piece": word_piece,
}
FAMILIES = list(MAKERS)


@cache
def _family(name: str) -> Any:
    return MAKERS[name]()


def family(name: str, fresh: bool = False, corpus: Sequence[str] | None = None) -> Any:
    """A tokenizer of a family; a fresh one may be changed."""
    if corpus is not None:
        return MAKERS[name](corpus)
    return MAKERS[name]() if fresh else _family(name)


def model(tokens: int, seed: int = 0, width: int = 16, **settings: Any) -> Any:
    """A tiny causal language model in float64."""
    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        **{"max_position_embeddings": 64, "initializer_range": 0.3, **settings},
    )
    return tf.LlamaForCausalLM(config).double()
