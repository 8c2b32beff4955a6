"""Cross-encoders: one score for a query and a document, which orders the candidates of a query.

A training example is a pair; metrics are those of the rankings of whole queries.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, List, Value
from transformers import DataCollatorWithPadding, EvalPrediction

from hf_distill.models.tasks import TASKS
from hf_distill.recipe import language
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.labels import RELEVANCE
from hf_distill.recipe.tasks.base import RecipeTask, Split, logits_of

QUERY = "query_number"
"""Column with the number of a pair's query."""


def pairs(dataset: Dataset, data: Data, tokenizer: Any, keep: Collection[str] = ()) -> Dataset:
    """Tokens of each pair of a query and a document, with its relevance ``(1,)``.

    Rows hold a query with a list of candidates (``data.choices_column``), or one pair each
    (``data.text_pair_column``); the pairs of a query are those with the same text.

    Raises:
        RecipeError: neither column or both, or candidates and relevances that are not equally many.
    """
    length = language.length_of(data, tokenizer)
    query, single, several = data.text_column, data.text_pair_column, data.choices_column
    if (single is None) == (several is None):
        raise RecipeError(
            "`data`: expected the documents of a reranker in `data.choices_column` (a list of "
            "candidates per query) or in `data.text_pair_column` (one per row), got "
            f"{'neither' if single is None else 'both'}."
        )
    numbers = {text: number for number, text in enumerate(dict.fromkeys(dataset[query][:]))}

    def tokenize(batch: Mapping[str, list[Any]], places: list[int]) -> dict[str, Any]:
        if single is not None:
            texts, documents, relevances = batch[query], batch[single], batch["labels"]
            queries = [numbers[text] for text in texts]
        else:
            assert several is not None
            rows = list(zip(places, batch[query], batch[several], batch["labels"], strict=True))
            for place, _, own, labels in rows:
                if len(own) != len(labels):
                    raise RecipeError(
                        f"`data`: expected a relevance for each candidate, got {len(own)} "
                        f"candidates ({several!r}) and {len(labels)} relevances in row "
                        f"{place + 1}. Correct the data."
                    )
            queries = [place for place, _, own, _ in rows for _ in own]
            texts = [text for _, text, own, _ in rows for _ in own]
            documents = [document for _, _, own, _ in rows for document in own]
            relevances = [label for *_, labels in rows for label in labels]
        tokens = tokenizer(texts, documents, truncation=True, max_length=length)
        return {**tokens, "labels": [[value] for value in relevances], QUERY: queries}

    found = dataset.map(
        tokenize,
        batched=True,
        with_indices=True,
        remove_columns=[name for name in dataset.column_names if name not in keep],
        desc="Tokenizing",
    )
    return found.cast_column("labels", List(Value("float32")))


def rankings(prediction: EvalPrediction, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Scores and relevances ``(queries, candidates)`` in the order of the data; NaN is padding."""
    _, queries = np.unique(split.rows[QUERY][:], return_inverse=True)
    order = np.argsort(queries, kind="stable")
    counts = np.bincount(queries)
    places = np.concatenate([np.arange(count) for count in counts])
    made = []
    for values in (np.asarray(logits_of(prediction))[:, 0], np.asarray(prediction.label_ids)[:, 0]):
        table = np.full((len(counts), counts.max()), np.nan)
        table[queries[order], places] = values[order]
        made.append(table)
    return made[0], made[1]


def check_rankings(splits: Mapping[str, Split], metrics: Sequence[str]) -> list[str]:
    """Numbers of queries without a relevant candidate, which have no rank.

    Raises:
        RecipeError: no query of a split has one.
    """
    told = []
    for name, split in splits.items():
        labels = np.asarray(split.rows["labels"][:])
        relevances = EvalPrediction(labels, labels)
        _, table = rankings(relevances, split)
        without = int((~(table > 0).any(1)).sum())
        if without == len(table):
            raise RecipeError(
                f"`data.label_column`: expected a relevance above 0 for a candidate of a query, "
                f"got none among the {len(table):,} queries of split {name!r}. Correct the data."
            )
        if without:
            told.append(
                f"Split {name}: {without:,} of {len(table):,} queries have no relevant candidate; "
                "they do not count in the metrics."
            )
    return told


RERANKER = RecipeTask(
    TASKS["sequence_classification"],
    "AutoTokenizer",
    ("text_column", "text_pair_column", "choices_column"),
    pairs,
    DataCollatorWithPadding,
    metrics={RELEVANCE: ("mrr@10", "ndcg@10")},
    outputs=rankings,
    hidden=(QUERY,),
    inspect=check_rankings,
    tag="text-ranking",
    reads_raw=False,
)
