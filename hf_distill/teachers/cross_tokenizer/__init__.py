"""Alignment of two tokenizers: bytes of tokens, common boundaries, shared tokens."""

from hf_distill.teachers.cross_tokenizer.byte_tokens import ByteTokens
from hf_distill.teachers.cross_tokenizer.collator import AligningCollator
from hf_distill.teachers.cross_tokenizer.retokenize import Retokenized, Retokenizer
from hf_distill.teachers.cross_tokenizer.shared_vocabulary import SharedVocabulary, shared_tokens

__all__ = [
    "AligningCollator",
    "ByteTokens",
    "Retokenized",
    "Retokenizer",
    "SharedVocabulary",
    "shared_tokens",
]
