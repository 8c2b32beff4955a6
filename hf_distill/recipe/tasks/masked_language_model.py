"""Masked language models: perplexity of the masked tokens.

Masks of validation and test are drawn once, those of training at each reading, by
`DataCollatorForLanguageModeling`. Reference: Devlin et al., 2019, arXiv 1810.04805.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    EvalPrediction,
)

from hf_distill.models.tasks import TASKS
from hf_distill.recipe import language
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.labels import NONE
from hf_distill.recipe.tasks.base import RecipeTask, Split, logits_of

IGNORED = -100


def tokenized(dataset: Dataset, data: Data, tokenizer: Any, keep: Collection[str] = ()) -> Dataset:
    """Tokens of the texts, one text per row or all in a row in rows of ``data.max_length``.

    Raises:
        RecipeError: a tokenizer without a mask or, for whole words, a slow one; ``first_fit``.
    """
    length = language.length_of(data, tokenizer)
    if tokenizer.mask_token is None or (data.masking.whole_word and not tokenizer.is_fast):
        raise RecipeError(
            "`data.processor`: expected a tokenizer with a mask token, fast for "
            f"`data.masking.whole_word`, got a {type(tokenizer).__name__}. Choose that of a masked "
            "language model."
        )
    if data.packing == "first_fit":
        raise RecipeError(
            "`data.packing`: expected wrapped, or nothing, for masked_lm, got first_fit. Its texts "
            "would attend to one another."
        )
    options: Any = {"return_special_tokens_mask": True}
    options |= {"return_offsets_mapping": True} if data.masking.whole_word else {}
    if data.packing is None:
        options |= {"truncation": True, "max_length": length}

    def tokenize(batch: Mapping[str, list[str]]) -> Mapping[str, Any]:
        tokens: Mapping[str, Any] = tokenizer(batch[data.text_column], **options)
        return tokens

    def wrap(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        whole = {key: list(chain.from_iterable(rows)) for key, rows in batch.items()}
        end = len(whole["input_ids"]) // length * length
        return {k: [v[at : at + length] for at in range(0, end, length)] for k, v in whole.items()}

    others = [name for name in dataset.column_names if name not in keep]
    found = dataset.map(tokenize, batched=True, remove_columns=others, desc="Tokenizing")
    if data.packing is None:
        return found
    packed = found.map(wrap, batched=True, batch_size=len(found), desc="Packing")
    if not len(packed):
        raise RecipeError(
            f"`data.packing`: expected at least one sequence of {length} tokens, got fewer tokens. "
            "Set a smaller `data.max_length`, or leave `packing` out."
        )
    return packed


@dataclass(frozen=True)
class Masked:
    """Examples with masked tokens and their labels, as a transform of a data set."""

    collate: DataCollatorForLanguageModeling

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        made = [self.collate([row]) for row in rows]
        return {key: [row[key][0] for row in made] for key in made[0]}


def masked(dataset: Dataset, name: str, data: Data, tokenizer: Any) -> Dataset:
    """A split with masked tokens; those of training are drawn at each reading unless fixed."""
    section = data.masking
    kinds: Any = (
        {"mask_replace_prob": 1.0, "random_replace_prob": 0.0} if section.whole_word else {}
    )
    again = name.startswith("train") and not section.fixed
    transform = Masked(
        DataCollatorForLanguageModeling(
            tokenizer,
            whole_word_mask=section.whole_word,
            mlm_probability=section.probability,
            seed=None if again else section.seed,
            **kinds,
        )
    )
    if again:
        return dataset.with_transform(transform)
    rows = [
        {key: values[0] for key, values in transform({k: [v] for k, v in row.items()}).items()}
        for row in dataset
    ]
    found = Dataset.from_list([{key: value.tolist() for key, value in row.items()} for row in rows])
    if not any(label != IGNORED for row in found["labels"][:] for label in row):
        raise RecipeError(
            f"`data.masking.probability`: expected a masked token in split {name!r}, got none in "
            f"{len(found):,} sequences. Give a larger share, or more texts."
        )
    return found


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of the masked tokens of each sequence ``(B,)``, nats."""
    return F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").sum(-1)


def likelihoods(prediction: EvalPrediction, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Summed negative log-likelihoods and numbers of masked tokens of the sequences."""
    return np.asarray(logits_of(prediction)), (np.asarray(prediction.label_ids) != IGNORED).sum(-1)


MASKED_LM = RecipeTask(
    TASKS["masked_lm"],
    "AutoTokenizer",
    ("text_column",),
    tokenized,
    DataCollatorForTokenClassification,
    metrics={NONE: ("token_perplexity",)},
    outputs=likelihoods,
    reduce=losses,
    drawn=masked,
    check=language.check_fit,
    reads_raw=False,
)
