"""Causal language models."""

from __future__ import annotations

from hf_distill.data.language import LanguageCollator
from hf_distill.models.tasks import TASKS
from hf_distill.recipe import language
from hf_distill.recipe.labels import NONE
from hf_distill.recipe.tasks.base import RecipeTask

CAUSAL_LM = RecipeTask(
    TASKS["causal_lm"],
    "AutoTokenizer",
    (),
    language.tokenized,
    LanguageCollator,
    metrics={NONE: ("perplexity",)},
    check=language.check_fit,
    prompt=language.prompt_of,
    reads_raw=False,
)
