"""A question with choices, one of which is right."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from datasets import Dataset
from transformers import DataCollatorForMultipleChoice

from hf_distill.models.tasks import TASKS
from hf_distill.recipe import language
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.labels import CHOICE
from hf_distill.recipe.tasks.base import RecipeTask


def with_choices(
    dataset: Dataset, data: Data, tokenizer: Any, keep: Collection[str] = ()
) -> Dataset:
    """Tokens of the pairs of a text and each of its choices, beside the labels.

    Raises:
        RecipeError: no column of choices, different numbers of choices, or a label beyond them.
    """
    length, column = language.length_of(data, tokenizer), data.choices_column
    if column is None:
        raise RecipeError(
            "`data.choices_column` is missing: the column with a list of choices for the text in "
            "`data.text_column`."
        )
    counts = [len(choices) for choices in dataset[column][:]]
    if len(set(counts)) != 1 or counts[0] < 2:
        raise RecipeError(
            f"`data.choices_column`: expected equally many choices in every row of {column!r}, at "
            f"least 2, got {sorted(set(counts))[:5]}. Leave the other examples out."
        )
    beyond = [row for row, label in enumerate(dataset["labels"][:]) if label >= counts[0]]
    if beyond:
        raise RecipeError(
            f"`data.label_column`: expected numbers of choices from 0 to {counts[0] - 1}, got "
            f"{dataset['labels'][beyond[0]]} in row {beyond[0] + 1}. Count the choices from 0."
        )

    def tokenize(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        texts = [
            text
            for text, own in zip(batch[data.text_column], batch[column], strict=True)
            for _ in own
        ]
        flat = [choice for own in batch[column] for choice in own]
        tokens = tokenizer(texts, flat, truncation=True, max_length=length)
        size = counts[0]
        return {k: [v[i : i + size] for i in range(0, len(v), size)] for k, v in tokens.items()}

    others = [name for name in dataset.column_names if name != "labels" and name not in keep]
    return dataset.map(tokenize, batched=True, remove_columns=others, desc="Tokenizing")


MULTIPLE_CHOICE = RecipeTask(
    TASKS["multiple_choice"],
    "AutoTokenizer",
    ("text_column", "choices_column"),
    with_choices,
    DataCollatorForMultipleChoice,
    metrics={CHOICE: ("accuracy",)},
    reads_raw=False,
)
