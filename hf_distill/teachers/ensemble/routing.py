"""Each example of a batch goes to one member of an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_distill.losses.numerics import compute_dtype
from hf_distill.models.batches import Batch, batch_size, rows_of
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.models.tasks import Task
from hf_distill.teachers.ensemble.tail_mass import stacked_rows

Ask = Callable[[str, Batch, Needs, BatchItems], Signal]


class Router:
    """Splits a batch by a column with the index of each example's member, runs the members, and
    joins their outputs; ValueError for a task whose head compares the examples of a batch."""

    def __init__(self, column: str, names: Sequence[str], task: Task | None):
        axis = 0 if task is None else task.axis
        if task is not None and axis is None:
            raise ValueError(
                f"A {task.name} head compares the examples of a batch with each other, so that "
                "they cannot go to different members. Leave route out."
            )
        self.column, self.names = column, list(names)
        self._axis = axis or 0

    def __call__(
        self, batch: Batch, needs: Needs, items: BatchItems, ask: Ask, task_model: TaskModel | None
    ) -> Signal:
        """The logits of the whole batch, each row by its member."""
        check_rows(batch)
        parts = []
        for name, rows in self._rows(batch).items():
            if needs.logits and len(rows):
                chosen = rows.tolist()
                part, own = rows_of(batch, items, chosen, self._axis)
                lists = {k: v for k, v in batch.items() if isinstance(v, (list, tuple))}
                part |= {key: [value[row] for row in chosen] for key, value in lists.items()}
                if task_model is not None:
                    own = task_model.items(part, own.masks["samples"])
                parts.append((rows, ask(name, part, needs, own)))
        return self._whole(parts)

    def _rows(self, batch: Batch) -> dict[str, Tensor]:
        column = batch.get(self.column)
        wanted = f"int64 indexes of the members 0 … {len(self.names) - 1} ({self.names})"
        if not isinstance(column, Tensor) or column.dim() != 1 or column.is_floating_point():
            found: Any = column
            if isinstance(column, Tensor):
                found = f"{column.dtype} {tuple(column.shape)}"
            raise ValueError(
                f"Expected a column {self.column!r} in the batch, with {wanted}, got {found}. Add "
                "it to the data set, and let the collator keep it."
            )
        wrong = sorted({i for i in column.tolist() if not 0 <= i < len(self.names)})
        if wrong:
            raise ValueError(f"Expected in the column {self.column!r} {wanted}, got {wrong[:8]}.")
        return {
            name: (column == index).nonzero().squeeze(-1) for index, name in enumerate(self.names)
        }

    def _whole(self, parts: Sequence[tuple[Tensor, Signal]]) -> Signal:
        if not parts:
            return Signal()
        kind = parts[0][1].kind
        sparse = [(rows, signal.sparse) for rows, signal in parts if signal.sparse is not None]
        if sparse:
            return Signal(kind=kind, sparse=stacked_rows(sparse, self._axis))
        logits = [signal.logits for _, signal in parts if signal.logits is not None]
        dtype = logits[0].dtype if len({t.dtype for t in logits}) == 1 else compute_dtype(*logits)
        joined = torch.cat([t.to(dtype) for t in logits], self._axis)
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return Signal(joined.index_select(self._axis, order), kind)


def check_rows(batch: Batch) -> None:
    """Raise on a batch with a tensor or list that does not have one row per example."""
    size = batch_size(batch)
    for key, value in batch.items():
        sized = isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.dim())
        if sized and len(value) != size:
            raise ValueError(
                f"Expected one row per example in all of the batch, got {len(value)} for {key!r} "
                f"in a batch of {size}. Such inputs cannot be divided among members by route."
            )
