"""Tasks of recipes: model inputs, collator and metrics."""

from __future__ import annotations

from hf_distill.recipe.errors import RecipeError, unknown
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.tasks.audio import AUDIO_CLASSIFICATION
from hf_distill.recipe.tasks.base import (
    IDS,
    RandomVersionCollator,
    RecipeTask,
    Split,
    first_output,
)
from hf_distill.recipe.tasks.choices import MULTIPLE_CHOICE
from hf_distill.recipe.tasks.embeddings import BI_ENCODER
from hf_distill.recipe.tasks.image import IMAGE_CLASSIFICATION
from hf_distill.recipe.tasks.language_model import CAUSAL_LM
from hf_distill.recipe.tasks.masked_language_model import MASKED_LM
from hf_distill.recipe.tasks.questions import QUESTION_ANSWERING
from hf_distill.recipe.tasks.reranker import RERANKER
from hf_distill.recipe.tasks.text import TEXT_CLASSIFICATION, with_noise
from hf_distill.recipe.tasks.text_to_text import TEXT_TO_TEXT
from hf_distill.recipe.tasks.tokens import TOKEN_CLASSIFICATION

__all__ = [
    "IDS",
    "RECIPE_TASKS",
    "RandomVersionCollator",
    "RecipeTask",
    "Split",
    "first_output",
    "recipe_task",
    "with_noise",
]

RECIPE_TASKS: dict[str, RecipeTask] = {
    "text_classification": TEXT_CLASSIFICATION,
    "image_classification": IMAGE_CLASSIFICATION,
    "audio_classification": AUDIO_CLASSIFICATION,
    "causal_lm": CAUSAL_LM,
    "bi_encoder": BI_ENCODER,
    "token_classification": TOKEN_CLASSIFICATION,
    "masked_lm": MASKED_LM,
    "multiple_choice": MULTIPLE_CHOICE,
    "reranker": RERANKER,
    "text_to_text": TEXT_TO_TEXT,
    "question_answering": QUESTION_ANSWERING,
}
"""Task of a recipe -> how its examples become batches. Add a row for another one."""


def recipe_task(recipe: Recipe) -> RecipeTask:
    """The row of the table, or a `RecipeError`."""
    if recipe.task not in RECIPE_TASKS:
        raise RecipeError(f"`task`: {unknown(recipe.task, RECIPE_TASKS)}")
    return RECIPE_TASKS[recipe.task]
