"""Two tokenizers, one text: the bytes of tokens, where both cut alike, which tokens both have."""

from hf_distill.crossing.collator import AligningCollator
from hf_distill.crossing.shared import Shared, shared_tokens
from hf_distill.crossing.spelling import Spelling
from hf_distill.crossing.translation import Translation, Translator

__all__ = [
    "AligningCollator",
    "Shared",
    "Spelling",
    "Translation",
    "Translator",
    "shared_tokens",
]
