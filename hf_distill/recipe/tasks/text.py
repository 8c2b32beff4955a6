"""Classification and regression of texts and pairs of texts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorWithPadding

from hf_distill.models.tasks import TASKS
from hf_distill.recipe import language
from hf_distill.recipe.data_section import Data, NoiseSection
from hf_distill.recipe.labels import CLASS, MULTI_LABEL, VALUE
from hf_distill.recipe.tasks.base import IDS, RecipeTask
from hf_distill.robustness.perturbations import perturb

Encode = Callable[[list[str]], Sequence[list[int]]]


def tokenized(dataset: Dataset, data: Data, tokenizer: Any, keep: Collection[str] = ()) -> Dataset:
    """Tokens of a text, or of two, beside the labels."""
    length = language.length_of(data, tokenizer)

    def tokenize(batch: Mapping[str, list[str]]) -> Mapping[str, Any]:
        pair = batch[data.text_pair_column] if data.text_pair_column else None
        tokens: Mapping[str, Any] = tokenizer(
            batch[data.text_column], pair, truncation=True, max_length=length, padding=False
        )
        return tokens

    others = [name for name in dataset.column_names if name != "labels" and name not in keep]
    return dataset.map(tokenize, batched=True, remove_columns=others, desc="Tokenizing")


def with_noise(
    dataset: Dataset, texts: Sequence[str], encode: Encode, noise: NoiseSection, versions: int
) -> Dataset:
    """Add a column with the tokens of several perturbed versions of each text: each version is
    under one of the perturbations, at one severity."""
    made = [encode(_version(texts, noise, number)) for number in range(versions)]
    return dataset.add_column(IDS, [list(each) for each in zip(*made, strict=True)])


def _version(texts: Sequence[str], noise: NoiseSection, number: int) -> list[str]:
    kinds = [(name, severity) for name in noise.perturbations for severity in noise.severities]
    drawn = np.random.default_rng([noise.seed, number]).integers(len(kinds), size=len(texts))
    found = list(texts)
    for kind, (name, severity) in enumerate(kinds):
        own = np.flatnonzero(drawn == kind).tolist()
        changed = perturb([texts[i] for i in own], name, severity, seed=noise.seed + number)
        for index, text in zip(own, changed, strict=True):
            found[index] = text
    return found


def _misspelt(dataset: Dataset, raw: Dataset, data: Data, tokenizer: Any, versions: int) -> Dataset:
    """Tokenised examples with perturbed versions of their texts."""
    length = language.length_of(data, tokenizer)

    def encode(texts: list[str]) -> Any:
        return tokenizer(texts, truncation=True, max_length=length)["input_ids"]

    assert data.noisy is not None
    return with_noise(dataset, raw[data.text_column][:], encode, data.noisy, versions)


TEXT_CLASSIFICATION = RecipeTask(
    TASKS["sequence_classification"],
    "AutoTokenizer",
    ("text_column", "text_pair_column"),
    tokenized,
    DataCollatorWithPadding,
    metrics={
        CLASS: ("accuracy",),
        VALUE: ("mse", "pearson", "spearman"),
        MULTI_LABEL: ("micro_f1_labels", "macro_f1_labels"),
    },
    noisy=_misspelt,
)
