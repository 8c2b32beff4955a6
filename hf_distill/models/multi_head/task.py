"""Items and labels of several heads in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hf_distill.models import batches
from hf_distill.models.batches import TASKS_COLUMN, Batch, batch_of, labels_of
from hf_distill.models.signals import BatchItems
from hf_distill.models.tasks import Task, task_of


def multi_task(model: Any) -> Task:
    """The task of a `MultiHead`: the items of a batch are those of each of its heads."""
    heads: Mapping[str, nn.Module] = dict(model.heads.items())
    rows = {name: task_of(head) for name, head in heads.items()}
    first = next(iter(rows.values()))
    return Task(
        "multi_task",
        auto_class="",
        mapping="",
        items=items_of_heads,
        read=None,
        kind="none",
        classes="positions",
        hidden=first.hidden,
        attentions=first.attentions,
        label_keys=tuple(map(labels_of, heads)),
        fields=tuple(f"{name}_logits" for name in heads),
        heads=heads,
    )


def items_of_heads(batch: Batch, model: Any, rows: Tensor) -> BatchItems:
    """Tokens of the encoder, and the items of every head among the examples of its task."""
    members = {}
    for index, (name, head) in enumerate(model.heads.items()):
        column = batch.get(TASKS_COLUMN)
        own = rows if column is None else rows & column[:, index]
        members[name] = task_of(head).items(batch_of(batch, name), head, own)
    return replace(batches.no_items(batch, model, rows), members=members)
