"""Packing: several short examples in one row, without attention between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value

from hf_distill.data.language.tokenizing import COLUMNS, IGNORE
from hf_distill.data.streams import columns_of

Part = tuple[int, int, int]  # an example and a range of its tokens
FIRST = {"labels": IGNORE, "token_weights": 0.0}
"""Label of the first token of an example in a row: the tokens before it must not predict it."""


def pack(
    dataset: Dataset | IterableDataset,
    length: int,
    *,
    strategy: Literal["first_fit", "wrapped"] = "first_fit",
    buffer_size: int = 1000,
) -> Dataset | IterableDataset:
    """Pack examples into rows of at most ``length`` tokens.

    The position ids restart with every example, by which a model without an attention mask
    separates them (see `check_packing` for those that do not), and the first token of an example is
    not a label: the loss equals that of the separate examples.

    Args:
        dataset: Rows of `tokenize`; other columns are left out.
        length: Tokens per row.
        strategy: ``first_fit`` keeps examples whole; ``wrapped`` fills every row to the last token
            and cuts examples at the end of the row: the remainder is a separate example.
        buffer_size: Number of examples among which those that fit together are chosen.

    Raises:
        ValueError: rows that are not tokenized, or packed already; with ``first_fit`` an example
            longer than a row.
    """
    if strategy not in ("first_fit", "wrapped"):
        raise ValueError(f"Expected the strategy 'first_fit' or 'wrapped', got {strategy!r}.")
    if length < 2:
        raise ValueError(f"Expected rows of 2 tokens or more, got a length of {length}.")
    columns, dataset = columns_of(dataset)
    if "input_ids" not in columns or "position_ids" in columns:
        state = "packed already" if "position_ids" in columns else "not tokenised"
        raise ValueError(
            f"Expected rows of input_ids and labels, as hf_distill.tokenize gives them, "
            f"got {sorted(columns)}: {state}."
        )
    names = [name for name in COLUMNS if name in columns or name != "token_weights"]
    types = {name: COLUMNS[name] for name in names} | {"position_ids": "int32"}
    return dataset.map(
        _Packer(length, strategy),
        batched=True,
        batch_size=buffer_size,
        remove_columns=columns,
        features=Features({name: List(Value(kind)) for name, kind in types.items()}),
    )


@dataclass(frozen=True)
class _Packer:
    length: int
    strategy: str

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[list[Any]]]:
        ids = batch["input_ids"]
        columns = {"input_ids": ids, "labels": batch.get("labels", ids)}
        if "token_weights" in batch:
            columns["token_weights"] = batch["token_weights"]
        lengths = [len(example) for example in ids]
        place = first_fit if self.strategy == "first_fit" else wrapped
        packed: dict[str, list[list[Any]]] = {name: [] for name in (*columns, "position_ids")}
        for parts in place(lengths, self.length):
            for name, values in columns.items():
                row: list[Any] = []
                for example, start, stop in parts:
                    own = list(values[example][start:stop])
                    row += [FIRST[name], *own[1:]] if name in FIRST else own
                packed[name].append(row)
            packed["position_ids"].append([i for _, a, b in parts for i in range(b - a)])
        return packed


def first_fit(lengths: Sequence[int], length: int) -> list[list[Part]]:
    """Pack the longest examples first, each into the first row with room for it.

    Examples of one token are left out.
    """
    longest = max(lengths, default=0)
    if longest > length:
        raise ValueError(
            f"Expected examples of at most {length} tokens to pack, got one of {longest}. Cut them "
            f"(tokenize(…, max_length={length})), raise the length, or cut them where the rows end "
            "(strategy='wrapped')."
        )
    room = np.full(len(lengths), length)
    rows: list[list[int]] = [[] for _ in lengths]
    for example in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[example] > 1:
            row = int(np.argmax(room >= lengths[example]))
            room[row] -= lengths[example]
            rows[row].append(example)
    return sorted([(i, 0, lengths[i]) for i in sorted(row)] for row in rows if row)


def wrapped(lengths: Sequence[int], length: int) -> list[list[Part]]:
    """Concatenate the examples and cut them where a row is full, without pieces of one token."""
    rows: list[list[Part]] = [[]]
    room = length
    for example, tokens in enumerate(lengths):
        start = 0
        while tokens - start > 1:
            if room < 2:
                rows.append([])
                room = length
            stop = min(tokens, start + room)
            rows[-1].append((example, start, stop))
            room -= stop - start
            start = stop
    return [row for row in rows if row]
