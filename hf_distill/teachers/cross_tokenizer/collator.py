"""Batches with the student's and the teacher's tokens of the same texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_distill.models.batches import ALIGNED, GENERATED
from hf_distill.teachers.cross_tokenizer.retokenize import Retokenized, Retokenizer

TEACHER_IDS = "teacher_input_ids"
TEACHER_MASK = "teacher_attention_mask"
STUDENT_SPANS = "student_spans"
TEACHER_SPANS = "teacher_spans"
PACKED = ("cu_seq_lens_q", "seq_idx")


class AligningCollator:
    """Collator that adds the teacher's tokens of the same texts to another collator's batch.

    Added keys, for B rows of T tokens of the student and U of the teacher, padded on the right:

    - ``teacher_input_ids``, ``teacher_attention_mask``: ``(B, U)``.
    - ``teacher_positions``: ``(B, T)``, at each position where both have a boundary at the same
      byte, the teacher's position, so that both predict the same text; -1 elsewhere. The items of
      the batch are those where it is not -1.
    - ``student_spans`` ``(B, T)`` and ``teacher_spans`` ``(B, U)``: for each position, of the token
      that it predicts, the student's position that predicts the first token of the same span;
      -1: none.

    Args:
        collate: Makes batches with ``input_ids``, and ``attention_mask`` if they are padded.
        translator: From the student's tokens to the teacher's.
        padding: The id for the teacher's padding.
        longest: The teacher's context length; later tokens are not compared.
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        translator: Retokenizer,
        padding: int = 0,
        longest: int | None = None,
    ):
        self.collate, self.translator = collate, translator
        self.padding, self.longest = padding, longest

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        batch = dict(self.collate(examples))
        return {**batch, **self.text_columns(batch)}

    def text_columns(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Keys added to a batch, to be computed again when its texts change. ValueError without
        ``input_ids``, for several texts packed into a row, and for special tokens without a
        counterpart of the teacher (in student-generated texts they are left out)."""
        ids: Any = batch.get("input_ids")
        if ids is None:
            raise ValueError(
                f"Expected a batch with input_ids to read as text, got {sorted(batch)}. Let the "
                "collator tokenize with the student's tokenizer."
            )
        mask = batch.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        _refuse_packed(batch, mask)
        places = [row.nonzero().flatten().tolist() for row in mask]
        strict = batch.get(GENERATED) is None
        rows = [
            self.translator([row[p] for p in own], strict=strict)
            for row, own in zip(ids.tolist(), places, strict=True)
        ]
        width = max((len(row.ids) for row in rows), default=0)
        width = max(1, width if self.longest is None else min(width, self.longest))
        other = torch.full((len(rows), width), self.padding)
        real = torch.zeros_like(other)
        theirs = torch.full_like(other, -1)
        positions, ours = torch.full_like(ids, -1), torch.full_like(ids, -1)
        for r, (row, own) in enumerate(zip(rows, places, strict=True)):
            kept = row.ids[:width]
            other[r, : len(kept)] = torch.tensor(kept, dtype=other.dtype)
            real[r, : len(kept)] = 1
            _place(row, own, width, positions[r], ours[r], theirs[r])
        teacher = {TEACHER_IDS: other, TEACHER_MASK: real, TEACHER_SPANS: theirs}
        return {**teacher, ALIGNED: positions, STUDENT_SPANS: ours}


def _place(row: Retokenized, places: Sequence[int], width: int, *out: Tensor) -> None:
    """Write the spans of one row: a token is predicted one position before it."""
    positions, ours, theirs = out
    for a, b, c, d in row.spans:
        start = places[a] - 1
        gapless = places[b - 1] - places[a] == b - 1 - a
        if a == 0 or c == 0 or d > width or places[a - 1] != start or not gapless:
            continue
        positions[start] = c - 1
        ours[start : start + b - a] = start
        theirs[c - 1 : d - 1] = start


def _refuse_packed(batch: Mapping[str, Any], mask: Tensor) -> None:
    places = batch.get("position_ids")
    packed = any(batch.get(name) is not None for name in PACKED) or mask.dim() != 2
    if places is not None and not packed:
        steps = places[..., 1:] - places[..., :-1]
        packed = bool(((steps != 1) & (mask[..., 1:] * mask[..., :-1]).bool()).any())
    if packed:
        raise ValueError(
            "Expected one text per row, got rows into which several are packed (position_ids that "
            "start again): the teacher's tokens of the texts are cut at other places. Switch "
            "packing off for a teacher with another tokenizer."
        )
