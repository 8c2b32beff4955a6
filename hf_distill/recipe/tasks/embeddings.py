"""Retrieval by embeddings: queries with the document that answers them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import AutoModel, PreTrainedModel

from hf_distill.data.candidates import CandidateCollator
from hf_distill.models.embedding import BiEncoder
from hf_distill.models.tasks import TASKS
from hf_distill.recipe import language
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.labels import NONE
from hf_distill.recipe.tasks.base import RecipeTask, Split
from hf_distill.utils.processes import process_state

ROWS = 512
"""Queries whose scores are computed together."""


class BiEncoders:
    """The class that loads a recipe's bi-encoders: folders of sentence-transformers, of model2vec,
    or encoders, which are pooled by the mean."""

    @staticmethod
    def from_pretrained(path: str, **options: Any) -> BiEncoder:
        """Load a folder or Hub id."""
        options.pop("ignore_mismatched_sizes", None)
        return BiEncoder.from_pretrained(path, **options)

    @staticmethod
    def from_config(config: Any) -> BiEncoder:
        """A new encoder with random weights."""
        return BiEncoder(AutoModel.from_config(config))


def with_candidates(
    dataset: Dataset, data: Data, tokenizer: Any, keep: Collection[str] = ()
) -> Dataset:
    """Tokens of each query, and of its document and negatives.

    Raises:
        RecipeError: no column of documents, or queries with different numbers of negatives.
    """
    length = language.length_of(data, tokenizer)
    tokenizer.model_max_length = length  # of the published one too
    documents, negatives = data.text_pair_column, data.negatives_column
    if documents is None:
        raise RecipeError(
            "`data.text_pair_column` is missing: the column with the document that answers the "
            "query in `data.text_column`."
        )
    if negatives is not None and len({len(row) for row in dataset[negatives][:]}) > 1:
        raise RecipeError(
            f"`data.negatives_column`: expected equally many texts in each list of {negatives!r}. "
            "Keep as many of each query."
        )

    def tokenize(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        options: Any = {"truncation": True, "max_length": length}
        found = tokenizer(batch[data.text_column], **options)["input_ids"]
        lists = [[document] for document in batch[documents]]
        if negatives is not None:
            lists = [one + list(more) for one, more in zip(lists, batch[negatives], strict=True)]
        flat = tokenizer([text for row in lists for text in row], **options)["input_ids"]
        size = len(lists[0])
        rows = [flat[start : start + size] for start in range(0, len(flat), size)]
        return {"input_ids": found, "candidate_input_ids": rows}

    others = [name for name in dataset.column_names if name not in keep]
    return dataset.map(tokenize, batched=True, remove_columns=others, desc="Tokenizing")


def ranked(model: PreTrainedModel, split: Split, args: Any) -> tuple[np.ndarray, np.ndarray]:
    """``(Q, N)``, similarities of every query of a split with its different documents, and 1 for
    the right ones; the processes share the texts."""
    queries, right = (split.raw[name][:] for name in (split.data.text_column, _pairs(split.data)))
    corpus = {text: number for number, text in enumerate(dict.fromkeys(right))}
    ours = _embedded(model, queries, split, args)
    theirs = _embedded(model, list(corpus), split, args)
    # Rounded, so that equal documents have equal scores whatever the order of a sum.
    scores = np.concatenate(
        [
            (ours[start : start + ROWS].astype(np.float64) @ theirs.T).astype(np.float32)
            for start in range(0, len(ours), ROWS)
        ]
    )
    relevant = np.zeros(scores.shape, np.float32)
    relevant[np.arange(len(right)), [corpus[text] for text in right]] = 1
    return scores, relevant


def _pairs(data: Data) -> str:
    assert data.text_pair_column is not None  # see `with_candidates`
    return data.text_pair_column


def _embedded(model: PreTrainedModel, texts: list[str], split: Split, args: Any) -> np.ndarray:
    state = process_state()
    parts = np.array_split(np.arange(len(texts)), state.num_processes)
    own = [texts[i] for i in parts[state.process_index]]
    model = model.to(state.device).eval()
    encode: Any = model.encode
    found = [encode(own, split.processor, args.eval_batch_size)] if own else []
    gathered = gather_object(found) if state.num_processes > 1 else found
    return np.concatenate(gathered)


BI_ENCODER = RecipeTask(
    TASKS["bi_encoder"],
    "AutoTokenizer",
    ("text_column", "text_pair_column", "negatives_column"),
    with_candidates,
    CandidateCollator,
    metrics={NONE: ("recall@1", "mrr@10", "ndcg@10")},
    generate=ranked,
    watch="loss",
    without=("ece", "agreement", "forward_kl_divergence", "reverse_kl_divergence"),
    objective=[
        {"name": "hard_labels", "weight": 1.0},
        {
            "name": "hidden_states",
            "weight": 1.0,
            "layers": "last",
            "groups": ["query", "candidates"],
            "distance": "cosine",
        },
    ],
    models=BiEncoders,
    library="sentence-transformers",
    reads_raw=False,
)
