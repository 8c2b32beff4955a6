"""Collation of rows of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import default_data_collator

from hf_distill.data.language.tokenizing import IGNORE

Row = Mapping[str, Any]
OWN = ("input_ids", "attention_mask", "labels", "token_weights", "position_ids")


@dataclass(frozen=True)
class LanguageCollator:
    """Collator that pads rows of tokens on the right.

    The rows of `pack` get no attention mask: their position ids separate the examples, and each
    token of their padding has position 0. Padding is recognised by the mask and the labels; a
    tokenizer without a padding token pads with its end token.

    Args:
        tokenizer: Source of the padding token.
        pad_to_multiple_of: Pad to a multiple of this number of tokens.
    """

    tokenizer: Any
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Collate rows of ``input_ids`` and, if present, ``labels`` (default: the tokens),
        ``attention_mask``, ``token_weights``, ``position_ids``, and numbers.

        Returns:
            ``input_ids``, ``labels``, ``token_weights`` and ``attention_mask`` or ``position_ids``,
            ``(B, T)``; numbers as from ``default_data_collator``.

        Raises:
            ValueError: a list of another length than the row's tokens; packed and unpacked rows
                together.
        """
        packed = ["position_ids" in row for row in rows]
        if any(packed) and not all(packed):
            raise ValueError(
                "Expected rows that are all packed or none, got both in one batch. Pack all of the "
                "data (hf_distill.data.language.pack), or none."
            )
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        padding = next(token for token in ids if token is not None)
        fill = {"input_ids": int(padding), "labels": IGNORE, "token_weights": 0.0}
        fill |= {"position_ids": 0} if all(packed) else {"attention_mask": 0}
        full = [_filled(row, "position_ids" in fill) for row in rows]
        names = [name for name in fill if all(name in row for row in full)]
        batch = {name: self._pad([row[name] for row in full], fill[name]) for name in names}
        others = [{k: v for k, v in row.items() if k not in OWN} for row in rows]
        return {**default_data_collator(others), **batch} if any(others) else batch

    def _pad(self, rows: Sequence[Any], value: float) -> Tensor:
        tensors = [torch.as_tensor(row) for row in rows]
        kind = torch.float32 if isinstance(value, float) else torch.int64
        padded = pad_sequence([t.to(kind) for t in tensors], True, value)
        more = -padded.shape[1] % (self.pad_to_multiple_of or 1)
        return torch.nn.functional.pad(padded, (0, more), value=value)


def _filled(row: Row, packed: bool) -> dict[str, Any]:
    """Complete a row with labels, and with a mask unless it is packed."""
    ids = row["input_ids"]
    found = {name: row[name] for name in OWN if name in row}
    if "labels" not in row:
        starts = row["position_ids"] if packed else range(len(ids))
        found["labels"] = [i if at else IGNORE for i, at in zip(ids, starts, strict=True)]
    if not packed:
        found.setdefault("attention_mask", [1] * len(ids))
    for name, values in found.items():
        if len(values) != len(ids):
            raise ValueError(
                f"Expected {name} to be as long as input_ids, got {len(values)} and {len(ids)}."
            )
    return found
