"""Inputs of teachers that do not read the student's: settled once, in the constructor."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import datasets
from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from hf_distill.data.random_states import same_randomness
from hf_distill.models.raw_inputs import WORDS, differ, processor_kind, value_kind
from hf_distill.models.task_model import TaskModel
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.own_inputs import PREFIX
from hf_distill.teachers.privileged import PromptInputs

TOKENS = "token_classification"
BY_POSITION = frozenset({"question_answering"})
"""Heads whose items are positions of the tokens, besides those with a vocabulary."""
PARTS = {"text": "tokenizer", "image": "image_processor", "audio": "feature_extractor"}
"""Attributes of a processor of several kinds."""


def settle_inputs(teacher: Any, student: TaskModel, processor: Any, dataset: Any) -> None:
    """Let each model among the teachers whose processor is not the student's read its own inputs.

    Args:
        teacher: The teacher, or None.
        student: The student.
        processor: The student's tokenizer or processor.
        dataset: The data, or None. Its first example is read only if a teacher has own inputs.

    Raises:
        ValueError: own inputs were requested, and the data have no raw column for them, or the
            head's classes are at positions that do not match.
    """
    for name, member in _models(teacher):
        requested = member.own_inputs is not None
        if not requested and not _differs(member, processor):
            continue
        decoder = "decoder" in student.task.hidden and _kind(member.processor) != "text"
        by_position = student.task.classes == "vocabulary" and not decoder
        by_position |= student.task.name in BY_POSITION
        by_position |= student.task.axis is None or bool(name and student.task.name == TOKENS)
        by_position &= not isinstance(member.own_inputs, PromptInputs)
        if by_position and not requested:
            continue  # refused, or matched by vocabulary, when the classes are aligned
        if by_position:
            raise ValueError(
                f"Expected a head with one row of logits per example for a teacher with inputs of "
                f"its own, got {student.task.name}: its items are positions, and those of two "
                "tokenizers do not match. Leave inputs=… out and choose a teacher with the "
                "student's tokenizer; for a causal language model use CrossTokenizerTeacher."
            )
        example = raw_example(dataset)
        own = member.own_inputs or member.read_own_inputs()
        found = own.found_in(example, student.columns)
        if found is None and requested and example is not None:
            raise ValueError(
                f"Expected a raw column that the {type(own.processor).__name__} of "
                f"{member.task_model.who} reads, got the columns {sorted(map(str, example))}. Keep "
                "it in the data (dataset.map without remove_columns), or name it: "
                "ModelTeacher(model, processor, inputs='text')."
            )
        if found is None and not requested:
            member.own_inputs = member.task_model.own_processor = None
            _warn_of_values(member, processor)
            continue
        found = found or own
        words = student.task.name == TOKENS
        if words and example is not None and value_kind(example[found.columns[0]]) != WORDS:
            raise ValueError(
                f"Expected a column of lists of words for {member.task_model.who}, whose tokens "
                f"are not the student's, got {found.columns[0]!r}. Name the one that both "
                "tokenizers read: ModelTeacher(model, tokenizer, inputs='tokens')."
            )
        member.own_inputs = replace(
            found,
            prefix=f"{PREFIX}{name}_" if name else PREFIX,
            student=_part(processor, "text") if words else None,
        )


def raw_example(dataset: Any) -> Mapping[str, Any] | None:
    """The first example of a data set with a length, with all its columns; None: unknown."""
    dataset = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
    if isinstance(dataset, datasets.DatasetDict):
        dataset = next(iter(dataset.values()), None)
    if isinstance(dataset, IterableDataset) or not has_length(dataset) or not len(dataset):
        return None
    with same_randomness():
        example: Any = dataset[0]  # type: ignore[index]
    return example if isinstance(example, Mapping) else None


def _models(teacher: Any, name: str = "") -> Iterator[tuple[str, ModelTeacher]]:
    """The models that a teacher consists of, with their names in an ensemble."""
    if isinstance(teacher, ModelTeacher):
        yield name, teacher
    for own, member in (getattr(teacher, "teachers", None) or {}).items():
        yield from _models(member, own)


def _differs(member: ModelTeacher, processor: Any) -> bool:
    """True if both processors are known, of one kind, and give different inputs."""
    theirs = member.processor
    kind = _kind(theirs)
    ours = None if kind is None else _part(processor, kind)
    return ours is not None and _kind(ours) == kind and differ(ours, theirs)


def _part(processor: Any, kind: str) -> Any:
    """The tokenizer, image processor or feature extractor of a processor, or the processor."""
    return getattr(processor, PARTS[kind], processor)


def _kind(processor: Any) -> str | None:
    try:
        return processor_kind(processor)
    except ValueError:
        return None


def _warn_of_values(member: ModelTeacher, processor: Any) -> None:
    if _kind(member.processor) == "text":
        return  # refused when the tokens are compared
    warnings.warn(
        f"The {type(member.processor).__name__} of {member.task_model.who} has other settings than "
        "the student's, and the data have no raw column for it to read: both models read the "
        "student's values. Keep the raw column in the data and name it: ModelTeacher(model, "
        "processor, inputs='image'), or give both models one processor.",
        stacklevel=4,
    )
