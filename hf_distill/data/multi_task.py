"""Batches of examples that have labels of one or several tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORE = -100
TOKENS = "token_classification"
FLOATS = ("regression", "multi_label_classification")
"""Problem types whose labels are floats."""


class MultiTaskCollator:
    """Collator of examples for a `MultiHead` model.

    An example has either a ``task``, the name of its head, with the label in ``labels`` (or
    ``<head>_labels``), and is an item of that task alone; or no ``task``, with the labels that it
    has in ``<head>_labels``: then it is an item of every task, taught by every teacher, and counts
    in the label losses of those tasks whose label it has. A missing label is absent or None.

    The batch has ``<head>_labels`` of every head (missing ones are -100 or, of floats, NaN) and
    ``tasks`` ``(B, H)``, true where an example is an item of a task.

    Args:
        collate: Collator of the inputs, such as `DataCollatorWithPadding`.
        heads: The settings of the heads: ``model.config.heads``.
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        heads: Mapping[str, Mapping[str, Any]],
    ):
        self.collate, self.heads = collate, {name: dict(head) for name, head in heads.items()}
        self._columns = {f"{name}_labels": name for name in heads}

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate examples.

        Raises:
            ValueError: an unknown task, a label without a task, a label of another form.
        """
        found = [self._labels(example) for example in examples]
        own = {*self._columns, "task", "labels", "label"}
        rest = [{k: v for k, v in example.items() if k not in own} for example in examples]
        batch = dict(self.collate(rest))
        tasks = [[task in (None, name) for name in self.heads] for task, _ in found]
        batch["tasks"] = torch.tensor(tasks)
        for column, name in self._columns.items():
            values = [labels.get(name) for _, labels in found]
            batch[column] = self._stacked(name, values, rest, batch)
        return batch

    def _labels(self, example: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """The task of an example (None: all), and its labels by head."""
        task = example.get("task")
        if task is not None and task not in self.heads:
            raise ValueError(
                f"Expected the task of an example to be one of {list(self.heads)}, got {task!r}. "
                "Name the head that it is an example of."
            )
        labels = {
            name: example[column]
            for column, name in self._columns.items()
            if example.get(column) is not None and task in (None, name)
        }
        plain = example.get("labels", example.get("label"))
        if plain is not None and task is None:
            raise ValueError(
                f"Expected the task of an example with a column 'labels', got none. Add a column "
                f"'task' with one of {list(self.heads)}, or call the labels "
                f"{next(iter(self._columns))!r}."
            )
        return task, {task: plain, **labels} if plain is not None and task is not None else labels

    def _stacked(
        self, name: str, values: Sequence[Any], rest: Sequence[Mapping[str, Any]], batch: Any
    ) -> Tensor:
        head = self.heads[name]
        if head["task"] == TOKENS:
            return _token_labels(name, values, rest, batch)
        floats, width = head["problem_type"] in FLOATS, head["num_labels"]
        if not floats:
            return torch.tensor([IGNORE if value is None else int(value) for value in values])
        shape = () if head["problem_type"] == "regression" and width == 1 else (width,)
        rows = [torch.full(shape, math.nan) if v is None else torch.tensor(v) for v in values]
        for row in rows:
            if row.numel() != math.prod(shape):
                raise ValueError(
                    f"Expected {math.prod(shape)} numbers as a label of the head {name!r} "
                    f"({head['problem_type']}), got {tuple(row.shape)}. Give 0 or 1 for each "
                    "class, or a number for each output."
                )
        return torch.stack([row.float().reshape(shape) for row in rows])


def _token_labels(
    name: str, values: Sequence[Any], rest: Sequence[Mapping[str, Any]], batch: Any
) -> Tensor:
    """Labels at the places of the tokens, on the side on which the inputs are not padded."""
    length, rows = batch["input_ids"].shape[1], []
    left = bool((batch["attention_mask"][:, 0] == 0).any()) if "attention_mask" in batch else False
    for value, example in zip(values, rest, strict=True):
        own = [IGNORE] * len(example["input_ids"]) if value is None else list(value)
        if len(own) != len(example["input_ids"]):
            raise ValueError(
                f"Expected a label of the head {name!r} for each of {len(example['input_ids'])} "
                f"tokens, got {len(own)}. Align word labels with the tokens (-100: none)."
            )
        rows.append(torch.tensor(own, dtype=torch.long))
    side = "left" if left else "right"
    labels = pad_sequence(rows, True, IGNORE, side)
    missing = length - labels.shape[1]
    pad = (missing, 0) if left else (0, missing)
    return torch.nn.functional.pad(labels, pad, value=IGNORE)
