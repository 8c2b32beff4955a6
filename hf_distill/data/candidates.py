"""Batches of queries with candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class CandidateCollator:
    """Collator of queries with candidates, for `BiEncoder`.

    An example has ``input_ids`` of its query, ``candidate_input_ids``, a list of them for each
    candidate, and perhaps ``labels``, the place of the right candidate (default: the first).

    Args:
        tokenizer: Pads queries and candidates, each to the longest of the batch.
    """

    tokenizer: Any

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``input_ids`` ``(B, T)``, ``candidate_input_ids`` ``(B, C, T')``, their masks, labels.

        Raises:
            ValueError: queries with different numbers of candidates.
        """
        rows = [example["candidate_input_ids"] for example in examples]
        counts = sorted({len(row) for row in rows})
        if len(counts) != 1 or not counts[0]:
            raise ValueError(
                f"Expected one number of candidates for all queries of a batch, at least 1, got "
                f"{counts}. Keep as many negatives of each query (dataset.map)."
            )
        batch = dict(self._padded([example["input_ids"] for example in examples]))
        flat = self._padded([ids for row in rows for ids in row])
        for name, values in flat.items():
            batch[f"candidate_{name}"] = values.unflatten(0, (len(rows), counts[0]))
        if all(example.get("labels") is not None for example in examples):
            batch["labels"] = torch.tensor([int(example["labels"]) for example in examples])
        return batch

    def _padded(self, ids: list[list[int]]) -> Mapping[str, Tensor]:
        padded: Mapping[str, Tensor] = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        return {name: padded[name] for name in ("input_ids", "attention_mask")}
