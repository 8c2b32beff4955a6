"""A teacher whose outputs are columns of the data: stored logits, votes, embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from hf_distill.models.batches import Batch
from hf_distill.models.signals import BatchItems, Needs, Signal, SparseProbs
from hf_distill.teachers.protocol import Teacher

LOGITS, LOG_PROBS, PROBABILITIES, VOTES = "logits", "log_probs", "probabilities", "votes"
SUM = 1e-3
"""Largest distance of a sum of probabilities from 1."""


class ColumnTeacher(Teacher):
    """Outputs from columns of the data set: one form of scores of the classes, embeddings.

    A column holds a list of numbers per example, or for heads with items at tokens a list of lists,
    one for each counted item or each token. They are checked as batches are collated. The student's
    part of a batch does not change.

    Args:
        logits: The column of logits.
        log_probs: The column of log-probabilities; -inf is permitted.
        probabilities: The column of probabilities, which add up to 1 (``kind="sigmoid"``: of each
            class).
        votes: The column of votes per class, which are divided by their sum.
        top_k: The columns of class ids and of their log-probabilities; the rest is one mass.
        embedding: The column of vectors, for `HiddenStates(groups=("embedding",))` and relations,
            or the column of each group: ``{"query": …, "candidates": …}`` for a bi-encoder.
        labels: The names of the classes in the order of the columns; None: the student's order.
        kind: ``softmax``, ``sigmoid`` or ``regression``.
        classes: Number of classes; needed for ``top_k`` without ``labels``.
        temperature: Temperature of the ``top_k`` probabilities.
        name: The source of the columns, for the model card.

    Raises:
        ValueError: no column, several columns of logits, or an unknown kind.
    """

    def __init__(
        self,
        *,
        logits: str | None = None,
        log_probs: str | None = None,
        probabilities: str | None = None,
        votes: str | None = None,
        top_k: tuple[str, str] | None = None,
        embedding: str | Mapping[str, str] | None = None,
        labels: Sequence[str] | None = None,
        kind: str = "softmax",
        classes: int | None = None,
        temperature: float = 1.0,
        name: str | None = None,
    ):
        given = {LOGITS: logits, LOG_PROBS: log_probs, PROBABILITIES: probabilities, VOTES: votes}
        scores = {form: column for form, column in given.items() if column is not None}
        if len(scores) + (top_k is not None) > 1:
            raise ValueError(
                "Expected one of logits, log_probs, probabilities, votes and top_k, got "
                f"{[*scores, *(['top_k'] if top_k else [])]}. Name the column to learn from."
            )
        if not scores and top_k is None and not embedding:
            raise ValueError(
                "Expected the name of a column, got none: ColumnTeacher(logits='teacher_logits')."
            )
        if kind not in ("softmax", "sigmoid", "regression"):
            raise ValueError(f"Expected kind softmax, sigmoid or regression, got {kind!r}.")
        count = len(labels) if labels is not None else classes
        if top_k is not None and count is None:
            raise ValueError("Expected the number of classes of top_k; pass labels=… or classes=….")
        self.kind, self.temperature, self.name = kind, float(temperature), name
        self.form: str | None = next(iter(scores), None)
        self.column: str | None = next(iter(scores.values()), None)
        self.top_k, self.classes = top_k, count
        groups = {"embedding": embedding} if isinstance(embedding, str) else embedding
        self.embeddings: dict[str, str] = dict(groups or {})
        self.config = None if labels is None else _config(labels)
        names = (self.column, *self.embeddings.values(), *(top_k or ()))
        self.own_inputs = ColumnInputs(tuple(name for name in names if name), self)

    @property
    def provides(self) -> Needs:
        scores = self.column is not None or self.top_k is not None
        return Needs(
            logits=scores,
            unsampled=scores,
            full_vocabulary=self.column is not None,
            hidden_states=bool(self.embeddings),
        )

    def columns(self) -> set[str]:
        return set(self.own_inputs.columns)

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        missing = sorted(self.columns() - set(batch))
        if missing:
            raise ValueError(
                f"Expected the teacher's columns {missing} in the batch, got {sorted(batch)}. Keep "
                "them in the data, and let DistillationTrainer collate it."
            )
        hidden = {group: (batch[name],) for group, name in self.embeddings.items()}
        if self.top_k is not None:
            ids, log_probs = (_placed(batch[name], items) for name in self.top_k)
            return Signal(kind=self.kind, hidden_states=hidden, sparse=self._sparse(ids, log_probs))
        if self.column is None:
            return Signal(kind="none", hidden_states=hidden)
        values = _placed(batch[self.column], items)
        values = values if values.is_floating_point() else values.float()
        if values.shape == items.masks["items"].shape:  # one number per item
            values = values.unsqueeze(-1)
        return Signal(self._logits(values), self.kind, hidden)

    def _logits(self, values: Tensor) -> Tensor:
        if self.form in (LOGITS, None) or self.kind == "regression":
            return values
        lowest = torch.finfo(values.dtype).min
        if self.form == VOTES:
            values = values / values.sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
        if self.form == LOG_PROBS:
            logs = values
        elif self.kind == "sigmoid":
            return torch.logit(values).clamp(lowest / 4, -lowest / 4)
        else:
            logs = values.log()
        if self.kind == "sigmoid":
            return (logs - torch.log1p(-logs.exp())).clamp(lowest / 4, -lowest / 4)
        return logs.clamp(min=lowest)

    def _sparse(self, ids: Tensor, log_probs: Tensor) -> SparseProbs:
        mass = log_probs.exp().sum(-1)
        rest = (1 - mass).clamp(min=0).log()
        return SparseProbs(ids, log_probs, rest, int(self.classes or 0), self.temperature)

    def check(self, name: str, values: Tensor, row: int) -> None:
        """Raise a ValueError for a value that cannot be learned from.

        Args:
            name: The column.
            values: Those of one example.
            row: Its place in the batch, for the message.
        """
        wrong = self._fault(name, values)
        if wrong is not None:
            raise ValueError(
                f"Expected {wrong[0]} in the column {name!r}, got {wrong[1]} (example {row} of a "
                "batch). Correct the column, or leave such examples out."
            )

    def _fault(self, name: str, values: Tensor) -> tuple[str, str] | None:
        if bool(values.isnan().any()) if values.is_floating_point() else False:
            return "numbers", "NaN"
        shape = f"a value of shape {tuple(values.shape)}"
        sized = name == self.column and values.dim() and self.kind != "regression"
        if sized and self.classes and values.shape[-1] != self.classes:
            return f"{self.classes} numbers, one per class", shape
        if self.top_k is not None and name == self.top_k[0]:
            strange = values[(values < 0) | (values >= int(self.classes or 0))]
            if len(strange):
                return f"class ids from 0 to {int(self.classes or 0) - 1}", f"{int(strange[0])}"
        elif self.top_k is not None and name == self.top_k[1]:
            if bool((values > 1e-6).any()):
                return "log-probabilities of at most 0", f"{float(values.max()):g}"
        elif name in self.embeddings.values() or self.form == LOGITS:
            if bool(values.isinf().any()):
                return "finite numbers", "infinity"
        elif self.form == LOG_PROBS:
            if bool((values > 1e-6).any()):
                return "log-probabilities of at most 0", f"{float(values.max()):g}"
        elif bool((values < 0).any()) or bool(values.isinf().any()):
            return "numbers of at least 0", f"{float(values.min()):g}"
        return self._sums(name, values)

    def _sums(self, name: str, values: Tensor) -> tuple[str, str] | None:
        """Sums over the classes."""
        if name != self.column or self.kind != "softmax" or self.form == LOGITS:
            return None
        total = values.exp().sum(-1) if self.form == LOG_PROBS else values.sum(-1)
        if self.form == VOTES:
            return None if bool((total > 0).all()) else ("a vote", "none")
        wrong = (total - 1).abs() > SUM
        if bool(wrong.any()):
            first = float(total[wrong].flatten()[0] if total.dim() else total)
            return "probabilities that add up to 1", f"a sum of {first:g}"
        return None

    def describe(self) -> dict[str, Any]:
        facts = {"architecture": "ColumnTeacher", "columns": sorted(self.columns())}
        return {"name": self.name, **facts}


@dataclass(frozen=True, eq=False)
class ColumnInputs:
    """Columns of a `ColumnTeacher` as tensors: stacked, or padded with NaN (ids with -1)."""

    columns: tuple[str, ...]
    teacher: ColumnTeacher

    def batch(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The tensors of a batch, checked.

        Raises:
            ValueError: a column that is missing, or with values that cannot be learned from.
        """
        found = {}
        for name in self.columns:
            rows = []
            for number, example in enumerate(examples):
                if not isinstance(example, Mapping) or example.get(name) is None:
                    held = sorted(map(str, example)) if isinstance(example, Mapping) else "others"
                    raise ValueError(
                        f"Expected the teacher's column {name!r} in each example, got {held}. Keep "
                        "it in the training and evaluation data."
                    )
                values = torch.as_tensor(example[name])
                self.teacher.check(name, values, number)
                rows.append(values)
            found[name] = _padded(name, rows)
        return found

    def positions(self, examples: Sequence[Any], batch: Batch) -> dict[str, Tensor]:
        return {}


def _config(labels: Sequence[str]) -> Any:
    return PretrainedConfig(id2label=dict(enumerate(map(str, labels))))


def _padded(name: str, rows: Sequence[Tensor]) -> Tensor:
    if len({row.shape for row in rows}) == 1:
        return torch.stack(list(rows))
    if len({row.shape[1:] for row in rows}) > 1 or rows[0].dim() < 2:
        raise ValueError(
            f"Expected values of one size in the column {name!r}, got "
            f"{sorted({tuple(row.shape) for row in rows})}. Store the same number for each example."
        )
    fill = math.nan if rows[0].is_floating_point() else -1
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)


def _placed(values: Tensor, items: BatchItems) -> Tensor:
    """Values of the counted items, or of the real tokens, ``(B, n, C)`` at their positions
    ``(B, T, C)``.

    Raises:
        ValueError: another number of values.
    """
    mask, real = items.masks.get("items"), items.masks.get("hidden")
    if mask is None or mask.dim() != 2 or values.dim() != 3:
        return values
    missing = values[..., 0].isnan() if values.is_floating_point() else values[..., 0] < 0
    counts = (~missing).sum(-1)
    places = (where for where in (mask, real) if where is not None and where.shape == mask.shape)
    here = next((where for where in places if torch.equal(where.sum(-1), counts)), None)
    if here is None:
        raise ValueError(
            f"Expected one value for each of the {mask.sum(-1).tolist()} counted items of the "
            f"examples (or for each token), got {counts.tolist()}. Store the teacher's outputs "
            "with add_teacher_columns, or those of all tokens, special ones included."
        )
    placed = values.new_zeros((*mask.shape, values.shape[-1]))
    placed[here] = values[~missing]
    return placed
