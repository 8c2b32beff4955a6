"""Data collation for teachers with inputs of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from hf_distill.teachers.own_inputs import OwnInputs

Collator = Callable[[list[Any]], Mapping[str, Any]]


class OwnInputsCollator:
    """Collator that adds the columns of teachers' own inputs to another collator's batch.

    The student's part of the batch does not change: columns that only teachers read are removed
    before the other collator sees the examples.

    Args:
        collate: The student's collator.
        inputs: The teachers' inputs.
        hidden: The columns to remove.
    """

    def __init__(self, collate: Collator, inputs: Sequence[Any], hidden: Collection[str]):
        self.collate, self.inputs, self.hidden = collate, tuple(inputs), frozenset(hidden)

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        own = {k: v for inputs in self.inputs for k, v in inputs.batch(examples).items()}
        rest = [{k: v for k, v in row.items() if k not in self.hidden} for row in examples]
        batch = dict(self.collate(rest))
        for inputs in self.inputs:
            own |= inputs.positions(examples, batch)
        return {**batch, **own}


def inputs_of(teacher: Any) -> Iterator[Any]:
    """The own inputs of a teacher, of its members, of a cache's live teacher."""
    own = getattr(teacher, "own_inputs", None)
    if own is not None:
        yield from own if isinstance(own, list) else [own]
    for member in (getattr(teacher, "teachers", None) or {}).values():
        yield from inputs_of(member)


def with_own_inputs(
    collate: Collator, teacher: Any, student_columns: Collection[str] | None = None
) -> Collator:
    """A collator that also makes the columns that a teacher reads.

    Args:
        collate: The student's collator.
        teacher: A `Teacher`; without inputs of its own the collator is returned as it is.
        student_columns: The columns that the student's collator receives; None: all.
    """
    found = list(inputs_of(teacher))
    if not found or isinstance(collate, OwnInputsCollator):
        return collate
    read = {name for inputs in found for name in inputs.columns}
    raw = {n for inputs in found for n in inputs.columns if isinstance(inputs, OwnInputs)}
    hidden = read - (raw if student_columns is None else set(student_columns))
    return OwnInputsCollator(collate, found, hidden)
