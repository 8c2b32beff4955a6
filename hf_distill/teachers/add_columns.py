"""A teacher's outputs as columns of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.teachers.cache.teacher import CachedTeacher
from hf_distill.teachers.cache.writer import Collator, TeacherRunner, write_cache


def add_teacher_columns(
    dataset: Dataset,
    teacher: Any,
    data_collator: Collator,
    folder: str | Path,
    *,
    prefix: str = "teacher_",
    top_k: int | None = None,
    embedding: bool = False,
    batch_size: int = 32,
    task_model: TaskModel | None = None,
    processing_class: Any = None,
    say: Callable[[str], None] = print,
) -> Dataset:
    """Run a teacher over a data set and add its outputs as columns, for `ColumnTeacher`.

    The outputs are kept in a cache (`write_cache`) as they come, so an interrupted call is simply
    repeated. Columns are lists of numbers: one list per example, or one per item for heads with
    several items (only counted ones).

    Args:
        dataset: The data.
        teacher: Any `Teacher` of a head that can be cached.
        data_collator: Makes a batch of examples, without changing them at random.
        folder: The folder of the cache.
        prefix: Prefix of the columns' names.
        top_k: Keep only so many of the likeliest classes: columns ``…ids`` and ``…log_probs``;
            None: all logits in float32, column ``…logits``.
        embedding: Keep the pooled embedding of an encoder instead: column ``…embedding``.
        batch_size: Examples per forward.
        task_model: See `write_cache`.
        processing_class: See `write_cache`.
        say: Receives lines of progress.

    Returns:
        The data set with the columns.

    Raises:
        ValueError: a column of this name is there already; or as `write_cache`.
    """
    names = [f"{prefix}embedding"] if embedding else [f"{prefix}logits"]
    if top_k is not None and not embedding:
        names = [f"{prefix}ids", f"{prefix}log_probs"]
    if there := sorted(set(names) & set(dataset.column_names)):
        raise ValueError(
            f"Expected data without the columns {there}, which would be overwritten. Remove them "
            "(dataset.remove_columns) or choose another prefix."
        )
    form: Mapping[str, Any] = {"kind": "full", "dtype": "float32"}
    form = form if top_k is None else {"kind": "top_k", "k": top_k, "dtype": "float32"}
    path = write_cache(
        folder,
        teacher,
        dataset,
        data_collator,
        format={"kind": "none"} if embedding else form,
        hidden_states={"embedding": [0]} if embedding else False,
        dtype="float32",
        batch_size=batch_size,
        shard_size=256,
        task_model=task_model,
        processing_class=processing_class,
        say=say,
    )
    cached = CachedTeacher(path)
    runner = TeacherRunner(teacher, task_model, dataset, data_collator, batch_size)
    needs = Needs(hidden_states=True) if embedding else cached.provides
    found: dict[str, list[Any]] = {name: [] for name in names}
    for start in tqdm(range(0, len(dataset), batch_size), desc="columns"):
        examples = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        batch, items = runner.collated(examples)
        for values in _rows(cached(batch, needs, items), items, runner.axis, embedding):
            for name, value in zip(names, values, strict=True):
                found[name].append(value)
    for name, column in found.items():
        dataset = dataset.add_column(name, column)
    return dataset


def _rows(signal: Signal, items: BatchItems, axis: int, embedding: bool) -> list[tuple[Any, ...]]:
    """The values of each example: those of its counted items, if there are several."""
    if embedding:
        return [(row,) for row in signal.hidden_states["embedding"][0].tolist()]
    sparse = signal.sparse
    tensors = (signal.logits,) if sparse is None else (sparse.ids, sparse.log_probs)
    mask = items.masks["items"].movedim(axis, 0)
    found = []
    for row, counted in enumerate(mask):
        values = [tensor.movedim(axis, 0)[row] for tensor in tensors if tensor is not None]
        kept = values if counted.dim() == 0 else [value[counted] for value in values]
        found.append(tuple(value.tolist() for value in kept))
    return found
