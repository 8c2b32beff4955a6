"""Unlabelled examples of a recipe, from which the students learn the teacher's outputs alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from datasets import Dataset, List, Value, concatenate_datasets
from transformers import TrainingArguments

from hf_distill.recipe.data_section import Data
from hf_distill.recipe.estimate import steps, steps_of_epoch
from hf_distill.recipe.labels import CLASS, MULTI_LABEL, RELEVANCE, TAGS, VALUE, Labels

MIXED = "train (with unlabelled)"
"""Training split of the students that have a teacher."""
NO_CLASS = -100
EPOCH = "epoch"


def without_labels(rows: Dataset, labels: Labels, data: Data) -> Dataset:
    """Examples with a column ``labels`` that holds none.

    Args:
        rows: The examples, without labels.
        labels: The labels of the others.
        data: The section of the recipe.
    """
    missing = math.nan
    values: list[Any] = [NO_CLASS] * len(rows)
    if labels.kind == VALUE:
        values = [missing if labels.width == 1 else [missing] * labels.width] * len(rows)
    elif labels.kind == MULTI_LABEL:
        values = [[missing] * len(labels.names)] * len(rows)
    elif labels.kind == TAGS:
        values = [[NO_CLASS] * len(row) for row in rows[data.tokens_column][:]]
    elif labels.kind == RELEVANCE and data.choices_column is not None:
        values = [[missing] * len(row) for row in rows[data.choices_column][:]]
    elif labels.kind == RELEVANCE:
        values = [missing] * len(rows)
    return rows.add_column("labels", values)


def mixture(labelled: Dataset, unlabelled: Dataset, kind: str, share: float) -> Dataset:
    """All unlabelled examples once, and labelled ones so often that ``share`` are unlabelled.

    Labelled examples are repeated, or left out, evenly; the order is shuffled with seed 0.

    Args:
        labelled: The training examples, with ``labels``.
        unlabelled: The other ones, see `without_labels`.
        kind: The kind of the labels.
        share: Share of unlabelled examples, above 0 and below 1.
    """
    whole = {CLASS: Value("int64"), TAGS: List(Value("int64"))}
    held = whole.get(kind, labelled.features["labels"])
    count = max(1, round(len(unlabelled) * (1 - share) / share))
    draw = np.random.default_rng(0)
    rounds = [draw.permutation(len(labelled)) for _ in range(math.ceil(count / len(labelled)))]
    chosen = labelled.select(np.concatenate(rounds)[:count])
    parts = (chosen, unlabelled.select_columns(labelled.column_names))
    mixed = concatenate_datasets([part.cast_column("labels", held) for part in parts])
    return mixed.shuffle(seed=0)


def equal_steps(args: TrainingArguments, examples: int, processes: int) -> dict[str, Any]:
    """Training arguments with which a training on a mixture takes as many steps, and is evaluated
    as often, as one on the labelled examples alone.

    Args:
        args: The training arguments for the labelled examples.
        examples: Number of labelled examples.
        processes: Number of processes.
    """
    every = steps_of_epoch(examples, args, processes)
    changes: dict[str, Any] = {"max_steps": steps(examples, args, processes)}
    for key in ("eval", "save", "logging"):
        if str(getattr(getattr(args, f"{key}_strategy"), "value", "")) == EPOCH:
            changes |= {f"{key}_strategy": "steps", f"{key}_steps": every}
    return changes
