"""A class for each word: named entities, parts of speech."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorForTokenClassification, EvalPrediction

from hf_distill.models.tasks import TASKS
from hf_distill.recipe import language
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.labels import TAGS
from hf_distill.recipe.sections import Data
from hf_distill.recipe.tasks.base import RecipeTask, Split

IGNORED = -100


def tagged(dataset: Dataset, data: Data, tokenizer: Any, keep: Collection[str] = ()) -> Dataset:
    """Tokens of lists of words; the first token of a word has its label, the others -100.

    Raises:
        RecipeError: a slow tokenizer, or words and labels that are not equally many.
    """
    if not tokenizer.is_fast:
        raise RecipeError(
            "`data.processor`: expected a fast tokenizer (tokenizer.json), which knows the word of "
            f"each token, got a {type(tokenizer).__name__}. Save one with "
            "AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(folder)."
        )
    length = language.length_of(data, tokenizer)

    def tokenize(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        words = batch[data.tokens_column]
        for number, (row, tags) in enumerate(zip(words, batch["labels"], strict=True)):
            if len(row) != len(tags):
                raise RecipeError(
                    f"`data`: expected a label for each word, got {len(row)} words "
                    f"({data.tokens_column!r}) and {len(tags)} labels in {row[:8]}… (row {number} "
                    "of its batch). Correct the data."
                )
        options: Any = {"truncation": True, "max_length": length, "is_split_into_words": True}
        tokens = tokenizer(words, **options)
        found = []
        for number, tags in enumerate(batch["labels"]):
            before, labels = None, []
            for word in tokens.word_ids(number):
                labels.append(IGNORED if word is None or word == before else tags[word])
                before = word
            found.append(labels)
        return {**tokens, "labels": found}

    others = [name for name in dataset.column_names if name != "labels" and name not in keep]
    return dataset.map(tokenize, batched=True, remove_columns=others, desc="Tokenizing")


def named_tags(prediction: EvalPrediction, split: Split) -> tuple[list[list[str]], list[list[str]]]:
    """Names of the likeliest and of the right classes of each text's words."""
    predictions: Any = prediction.predictions
    if isinstance(predictions, tuple):
        predictions = predictions[0]
    labels, names = np.asarray(prediction.label_ids), np.array(split.labels.names)
    chosen = np.argmax(predictions, -1)
    rows = [row != IGNORED for row in labels]
    return (
        [names[row[kept]].tolist() for row, kept in zip(chosen, rows, strict=True)],
        [names[row[kept]].tolist() for row, kept in zip(labels, rows, strict=True)],
    )


TOKEN_CLASSIFICATION = RecipeTask(
    TASKS["token_classification"],
    "AutoTokenizer",
    ("tokens_column",),
    tagged,
    DataCollatorForTokenClassification,
    metrics={TAGS: ("entity_f1", "token_accuracy")},
    outputs=named_tags,
    reads_raw=False,
)
