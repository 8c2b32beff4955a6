"""Answers as spans of a text, in the form of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorWithPadding, EvalPrediction

from hf_distill.models.tasks import TASKS
from hf_distill.recipe import language
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.labels import NONE
from hf_distill.recipe.spans import check_spans
from hf_distill.recipe.tasks.base import RecipeTask, Split

LONGEST = 30
"""Longest answer in tokens, as in BERT's evaluation (Devlin et al. 2019, arXiv 1810.04805)."""
EXAMPLE, OFFSETS = "example", "offsets"
"""Columns of a window: the row of its question, and the characters ``(L, 2)`` of its tokens in the
context; [-1, -1] for those of the question and special ones."""


def windowed(dataset: Dataset, data: Data, tokenizer: Any, keep: Collection[str] = ()) -> Dataset:
    """Windows of each question and its context, with the tokens of the first answer.

    Of a window without the whole answer, both positions are those of the first token ([CLS]).

    Raises:
        RecipeError: answers that are not in their context; a tokenizer without places of its
            tokens, or that pads on the left; questions that leave no room for their context.
    """
    _check_tokenizer(tokenizer)
    check_spans(dataset[data.context_column][:], dataset[data.answers_column][:])
    length = language.length_of(data, tokenizer)
    stride = length // 4 if data.stride is None else data.stride
    _check_room(dataset[data.question_column][:], length, stride, tokenizer)

    def tokenize(batch: Mapping[str, list[Any]], rows: list[int]) -> dict[str, Any]:
        tokens = tokenizer(
            batch[data.question_column],
            batch[data.context_column],
            truncation="only_second",
            max_length=length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        sources = tokens.pop("overflow_to_sample_mapping")
        found: dict[str, list[Any]] = {name: [] for name in ("start_positions", "end_positions")}
        places = []
        for window, (source, offsets) in enumerate(
            zip(sources, tokens.pop("offset_mapping"), strict=True)
        ):
            parts = tokens.sequence_ids(window)
            own = [o if p == 1 else (-1, -1) for o, p in zip(offsets, parts, strict=True)]
            start, end = _positions(own, batch[data.answers_column][source])
            found["start_positions"].append(start)
            found["end_positions"].append(end)
            places.append(own)
        kept = {name: [batch[name][source] for source in sources] for name in keep}
        examples = [rows[source] for source in sources]
        return {**tokens, **found, EXAMPLE: examples, OFFSETS: places, **kept}

    return dataset.map(
        tokenize,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        desc="Tokenizing",
    )


def _check_tokenizer(tokenizer: Any) -> None:
    if not tokenizer.is_fast or tokenizer.padding_side != "right":
        raise RecipeError(
            "`data.processor`: expected a fast tokenizer (tokenizer.json), which has the place of "
            f"each token, and which pads on the right, got a {type(tokenizer).__name__} that pads "
            f"on the {tokenizer.padding_side}. Save one with "
            'AutoTokenizer.from_pretrained(…, padding_side="right").save_pretrained(folder).'
        )


def _check_room(questions: Sequence[str], length: int, stride: int, tokenizer: Any) -> None:
    """Refuse questions that leave no more than ``stride`` tokens of a window to the context."""
    special = tokenizer.num_special_tokens_to_add(pair=True)
    sizes = [len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"]]
    bad = sum(size + special + stride >= length for size in sizes)
    if bad or stride < 0:
        raise RecipeError(
            f"`data.stride`: expected windows of {length} tokens with more than {stride} tokens of "
            f"the context behind each question, got questions of up to {max(sizes)} tokens, "
            f"{bad:,} of {len(sizes):,} too long. Set a smaller `data.stride`, or a larger "
            "`data.max_length`."
        )


def _positions(offsets: Sequence[Sequence[int]], answers: Mapping[str, Any]) -> tuple[int, int]:
    """First and last token of the first answer; 0 and 0 if it is not wholly in the window."""
    inside = [at for at, (start, _) in enumerate(offsets) if start >= 0]
    if not answers["text"] or not inside:
        return 0, 0
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    if offsets[inside[0]][0] > begin or offsets[inside[-1]][1] < end:
        return 0, 0
    own = [at for at in inside if offsets[at][1] > begin and offsets[at][0] < end]
    return (own[0], own[-1]) if own else (0, 0)


def best_span(
    start: np.ndarray, end: np.ndarray, offsets: Sequence[Sequence[int]]
) -> tuple[float, int, int]:
    """The span of a window with the largest sum of logits, of at most `LONGEST` tokens.

    Args:
        start: Logits of the first token ``(L,)``.
        end: Logits of the last token ``(L,)``.
        offsets: Characters of each token in the context; -1: not of the context.

    Returns:
        The sum, and the first character of the span and the one behind it; -∞: there is none.
    """
    places = np.asarray(offsets)
    inside = np.flatnonzero(places[:, 0] >= 0)
    if not len(inside):
        return -np.inf, 0, 0
    sums = start[inside][:, None].astype(np.float64) + end[inside][None, :]
    distance = inside[None, :] - inside[:, None]
    sums[(distance < 0) | (distance >= LONGEST)] = -np.inf
    first, last = np.unravel_index(sums.argmax(), sums.shape)
    reach = places[inside[first]][0], places[inside[last]][1]
    return float(sums[first, last]), int(reach[0]), int(reach[1])


def answered(prediction: EvalPrediction, split: Split) -> tuple[list[str], list[list[str]]]:
    """The answer to each question, of all its windows, and the right ones.

    If some questions of the split have no answer, "" is one where the first token ([CLS]) has a
    larger sum of logits, the smallest over the windows, than every span.
    """
    logits: Any = prediction.predictions
    starts, ends = logits[:2]
    contexts = split.raw[split.data.context_column][:]
    right = [list(row["text"]) for row in split.raw[split.data.answers_column][:]]
    best = [(-np.inf, 0, 0)] * len(contexts)
    none = np.full(len(contexts), np.inf)
    windows = zip(split.rows[EXAMPLE][:], split.rows[OFFSETS][:], starts, ends, strict=True)
    for example, offsets, start, end in windows:
        size = len(offsets)
        best[example] = max(best[example], best_span(start[:size], end[:size], offsets))
        none[example] = min(none[example], float(start[0]) + float(end[0]))
    refusable = not all(right)
    texts = [
        "" if refusable and nothing > score else context[begin:stop]
        for context, (score, begin, stop), nothing in zip(contexts, best, none, strict=True)
    ]
    return texts, right


QUESTION_ANSWERING = RecipeTask(
    TASKS["question_answering"],
    "AutoTokenizer",
    ("question_column", "context_column", "answers_column"),
    windowed,
    DataCollatorWithPadding,
    metrics={NONE: ("squad_f1", "squad_exact_match")},
    outputs=answered,
    hidden=(EXAMPLE, OFFSETS),
    reads_raw=False,
)
