"""Tokenization of texts, prompts with completions, and conversations."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value

from hf_distill.data.language.chat import Chat
from hf_distill.data.language.encoding import encode, encode_cut
from hf_distill.data.streams import first_row

IGNORE = -100
KEPT, EMPTY, CUT = range(3)
COLUMNS = {"input_ids": "int32", "labels": "int32", "token_weights": "float32"}


def tokenize(
    dataset: Dataset | IterableDataset,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    text_column: str = "text",
    assistant_only: bool = True,
    completion_only: bool = True,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Tokens, labels and weights for a causal language model.

    A row is a conversation (``messages``), a ``prompt`` with its ``completion`` (both text, or both
    lists of messages), or a text; the columns decide, in this order. Texts and completions end with
    the tokenizer's end token, answers with the end of their turn: an empty completion trains the
    student to end at once. Rows without labels (empty, or an answer beyond ``max_length``) are
    dropped, with a warning. A message of the assistant may have a ``weight`` (0: no labels). A
    column ``tools`` is passed to the chat template.

    Args:
        dataset: One split, streamed or not.
        tokenizer: A transformers tokenizer.
        max_length: In tokens; longer rows are truncated at the end.
        text_column: The column of plain texts.
        assistant_only: In conversations, labels on the assistant's messages only.
        completion_only: Labels on completions only, not on their prompts.
        chat_template_kwargs: Further arguments of the chat template, such as ``enable_thinking``.
        keep: Columns to keep, such as those that a teacher reads with a prompt of its own.
        num_proc: Processes; not for streams.

    Returns:
        ``input_ids``, ``labels`` (-100: none; not shifted) and, where messages have weights,
        ``token_weights``; each as long as the row.

    Raises:
        TypeError: not a data set.
        ValueError: unknown columns; no chat template, or one without the answers; no labels at all.
    """
    first, dataset = _first_row(dataset)
    kind = _kind(list(first), text_column)
    chat = None
    if kind == "messages" or (kind == "prompt" and not isinstance(first["prompt"], str)):
        chat = Chat(tokenizer, assistant_only, dict(chat_template_kwargs or {}))
    weighted = chat is not None and _weighted(dataset, first)
    read = _Reader(kind, tokenizer, chat, max_length, text_column, completion_only, weighted)
    names = [name for name in COLUMNS if weighted or name != "token_weights"]
    types = {name: List(Value(COLUMNS[name])) for name in names}
    kept = {name: (dataset.features or {}).get(name) for name in keep}
    if None in kept.values():
        raise ValueError(f"Expected columns with known types to keep, got {kept} in {list(first)}.")
    features = Features({**types, "state": Value("int8"), **kept})
    columns = [name for name in first if name not in keep]
    if isinstance(dataset, IterableDataset):
        stream = dataset.map(_Warning(read), remove_columns=columns, features=features)
        return stream.filter(_is_kept).remove_columns("state")
    rows = dataset.map(read, remove_columns=columns, features=features, num_proc=num_proc)
    return _kept(rows, max_length)


def _first_row(dataset: Any) -> tuple[Mapping[str, Any], Any]:
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(
            "Expected a datasets.Dataset or IterableDataset, got "
            f"{type(dataset).__name__}. Pass one split (data['train']), or "
            "Dataset.from_list(rows)."
        )
    first, dataset = first_row(dataset)
    if first is None:
        raise ValueError("Expected a data set with rows, got an empty one. Check its filters.")
    return first, dataset


def _kind(columns: Sequence[str], text_column: str) -> str:
    if "messages" in columns:
        return "messages"
    if {"prompt", "completion"} <= set(columns):
        return "prompt"
    if text_column in columns:
        return "text"
    raise ValueError(
        f"Expected the columns ['messages'], ['prompt', 'completion'] or [{text_column!r}], got "
        f"{sorted(columns)}. Rename them (dataset.rename_column), or name the column of plain "
        "texts (text_column=…)."
    )


def _weighted(dataset: Dataset | IterableDataset, first: Mapping[str, Any]) -> bool:
    """True if messages have weights, by the columns' types or else by the first row."""
    names = [n for n in ("messages", "completion") if n in first]
    known = dataset.features
    if known is not None:
        return any("weight" in str(known[name]) for name in names)
    return any("weight" in message for name in names for message in first[name])


@dataclass
class _Reader:
    kind: str
    tokenizer: Any
    chat: Chat | None
    max_length: int | None
    text_column: str
    completion_only: bool
    weighted: bool

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        ids, weights = self._read(row)
        weights[:1] = [0.0] * len(weights[:1])  # nothing predicts the first token
        some = any(weights)
        ids, weights = ids[: self.max_length], weights[: self.max_length]
        state = KEPT if any(weights) else CUT if some else EMPTY
        labels = [i if weight else IGNORE for i, weight in zip(ids, weights, strict=True)]
        found = {"input_ids": ids, "labels": labels, "state": state}
        if self.weighted:
            return {**found, "token_weights": weights}
        if not {*weights} <= {0.0, 1.0}:
            raise ValueError(
                "A message has a weight, and those of the stream's first row have none. Give "
                "every message of the first row one ('weight': 1.0), or give the stream features."
            )
        return found

    def _read(self, row: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        if self.kind == "text":
            return self._text(row[self.text_column])
        if self.kind == "messages":
            assert self.chat is not None
            return self.chat.read(row["messages"] or [], row.get("tools") or None)
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            return self._completed(prompt, completion)
        if self.chat is None or isinstance(prompt, str) or isinstance(completion, str):
            types = [type(part).__name__ for part in (prompt, completion)]
            raise ValueError(
                "Expected prompt and completion to be both text or both lists of messages, alike "
                f"in all rows, got {types[0]} and {types[1]}."
            )
        first = len(prompt) if self.completion_only else 0
        return self.chat.read([*prompt, *completion], row.get("tools") or None, first)

    def _text(self, text: str | None) -> tuple[list[int], list[float]]:
        if not text or not text.strip():
            return [], []
        ids = self._ended(encode(self.tokenizer, text, special=True))
        return ids, [1.0] * len(ids)

    def _completed(self, prompt: str, completion: str) -> tuple[list[int], list[float]]:
        text, cut = prompt + completion, len(prompt)
        ids, (before,) = encode_cut(self.tokenizer, text, [cut], special=True)
        ids = self._ended(ids)
        if not self.completion_only:
            before = 0
        return ids, [0.0] * before + [1.0] * (len(ids) - before)

    def _ended(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]


@dataclass
class _Warning:
    """Warn once that rows are dropped; the number in a stream is only known at its end."""

    read: _Reader
    warned: bool = False

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        found = self.read(row)
        if found["state"] != KEPT and not self.warned:
            self.warned = True
            why = "is empty" if found["state"] == EMPTY else "lies beyond max_length"
            warnings.warn(
                f"tokenize drops rows without anything to learn; this one {why}, and others may "
                "follow (said once).",
                stacklevel=2,
            )
        return found


def _is_kept(row: Mapping[str, Any]) -> bool:
    return bool(row["state"] == KEPT)


def _kept(rows: Dataset, max_length: int | None) -> Dataset:
    states = np.asarray(rows.with_format("numpy")["state"])
    empty, cut = (int((states == state).sum()) for state in (EMPTY, CUT))
    if empty or cut:
        what = (
            f"Of {len(rows)} rows, {empty + cut} have nothing to learn: {empty} are empty (no text "
            f"or no answer), and what {cut} would teach lies beyond max_length={max_length}."
        )
        if empty + cut == len(rows):
            raise ValueError(f"{what} Check the columns and the roles, or raise max_length.")
        warnings.warn(f"{what} They are dropped.", stacklevel=3)
        rows = rows.select(np.flatnonzero(states == KEPT))
    return rows.remove_columns("state")
