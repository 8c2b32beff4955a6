"""A class for each word: named entities, parts of speech.

Words without a token, because the text is cut, count as `O`: the model has no output for them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorForTokenClassification, EvalPrediction

from hf_distill.evaluation.scoring.tags import OUTSIDE, PREFIXES, entities
from hf_distill.models.tasks import TASKS
from hf_distill.recipe import language
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.labels import TAGS, Labels
from hf_distill.recipe.tasks.base import RecipeTask, Split, logits_of

IGNORED = -100
WORDS = "words"
"""Column with the numbers of the words whose first token has a label."""


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
        found: dict[str, list[list[int]]] = {"labels": [], WORDS: []}
        for number, tags in enumerate(batch["labels"]):
            own = tokens.word_ids(number)
            first = [word is not None and word not in own[:at] for at, word in enumerate(own)]
            labels = [
                tags[word] if is_first else IGNORED
                for word, is_first in zip(own, first, strict=True)
            ]
            found["labels"].append(labels)
            found[WORDS].append(
                [w for w, label in zip(own, labels, strict=True) if label != IGNORED]
            )
        return {**tokens, **found}

    others = [name for name in dataset.column_names if name != "labels" and name not in keep]
    return dataset.map(tokenize, batched=True, remove_columns=others, desc="Tokenizing")


def named_tags(prediction: EvalPrediction, split: Split) -> tuple[list[list[str]], list[list[str]]]:
    """Names of the likeliest and of the right class of each labelled word of the texts."""
    chosen, labels = np.argmax(logits_of(prediction), -1), np.asarray(prediction.label_ids)
    names = split.labels.names
    ours, theirs = [], []
    for row, seen, tags, words in zip(
        chosen, labels, split.raw["labels"][:], split.rows[WORDS][:], strict=True
    ):
        found = dict(zip(words, row[seen != IGNORED].tolist(), strict=True))
        labelled = [word for word, tag in enumerate(tags) if tag != IGNORED]
        ours.append([names[found[word]] if word in found else OUTSIDE for word in labelled])
        theirs.append([names[tags[word]] for word in labelled])
    return ours, theirs


def is_of_entities(labels: Labels) -> bool:
    """True if every class is `O` or has one of the prefixes B, I, E, S, L and U."""
    parts = [name.partition("-") for name in labels.names]
    tags = all(own == OUTSIDE or (own in PREFIXES and dash) for own, dash, _ in parts)
    return tags and len(labels.names) > 1


def metrics_of_names(labels: Labels, metrics: tuple[str, ...]) -> tuple[str, ...]:
    """The metrics of entities are for names such as B-PER and I-PER."""
    return metrics if is_of_entities(labels) else ("token_accuracy",)


def check_tags(splits: Mapping[str, Split], metrics: Sequence[str]) -> list[str]:
    """Facts about cut texts and inconsistent entities.

    Raises:
        RecipeError: a metric of entities for other classes, or for a split without any.
    """
    told = []
    by_entity = [name for name in metrics if name.startswith("entity_")]
    for name, split in splits.items():
        if by_entity and not is_of_entities(split.labels):
            raise RecipeError(
                f"`metric`: {by_entity[0]} is for classes such as B-PER, I-PER and O, got "
                f"{split.labels.names[:8]}. Choose token_accuracy, or rename the classes."
            )
        tags, words = split.raw["labels"][:], split.rows[WORDS][:]
        rows = [[split.labels.names[tag] for tag in row if tag != IGNORED] for row in tags]
        if by_entity and name != "train" and not any(map(entities, rows)):
            raise RecipeError(
                f"`metric`: {by_entity[0]} needs entities, but split {name!r} has none in its "
                f"{len(rows):,} texts. Choose token_accuracy, or another split."
            )
        total = sum(map(len, rows))
        if cut := total - sum(map(len, words)):
            told.append(
                f"Split {name}: {cut:,} of {total:,} labelled words are beyond the maximum length "
                f"or have no token; they count as predicted {OUTSIDE}."
            )
        if by_entity and (begun := sum(map(_unbegun, rows))):
            told.append(
                f"Split {name}: {begun:,} entities begin with I- after another word; they count as "
                "entities of their own."
            )
    return told


def _unbegun(tags: Sequence[str]) -> int:
    """Number of tags I-X that do not follow a tag of the same entity."""
    pairs = pairwise([OUTSIDE, *tags])
    return sum(tag[:2] == "I-" and before[1:] != tag[1:] for before, tag in pairs)


TOKEN_CLASSIFICATION = RecipeTask(
    TASKS["token_classification"],
    "AutoTokenizer",
    ("tokens_column",),
    tagged,
    DataCollatorForTokenClassification,
    metrics={TAGS: ("entity_f1", "token_accuracy")},
    narrowed=metrics_of_names,
    outputs=named_tags,
    hidden=(WORDS,),
    inspect=check_tags,
    reads_raw=False,
)
