"""Data for language models: tokens, labels and weights from text, prompts and conversations."""

from hf_distill.data.language.chat import one_answer_each
from hf_distill.data.language.checks import check_context, check_packing
from hf_distill.data.language.collating import LanguageCollator
from hf_distill.data.language.packing import pack
from hf_distill.data.language.tokenizing import tokenize

__all__ = [
    "LanguageCollator",
    "check_context",
    "check_packing",
    "one_answer_each",
    "pack",
    "tokenize",
]
