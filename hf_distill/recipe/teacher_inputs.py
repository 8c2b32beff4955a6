"""Inputs of a recipe's teacher that are not the student's: its own processor, columns, a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Audio, Dataset
from transformers import PreTrainedModel

from hf_distill.models.raw_inputs import AUDIO, IMAGE, TEXT, differ, value_kind
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.examples import RecipeExamples, fingerprints, prepared
from hf_distill.recipe.language import length_of
from hf_distill.recipe.models import Models
from hf_distill.recipe.processors import TYPES, load_processor, named_processor, own_processor
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.tasks import recipe_task
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.privileged import MESSAGES, PROMPT, Template, fields_of

READS = {"AutoTokenizer": TEXT, "AutoFeatureExtractor": AUDIO}
"""Auto class of a processor -> the raw values that it reads, if they are not images."""


@dataclass(frozen=True)
class TeacherInputs:
    """Inputs of the teacher besides the student's, or in their place.

    Attributes:
        columns: Raw columns that are kept in the student's data.
        prints: A hash of what is read, by split.
        processor: The teacher's tokenizer or image processor; None: the teacher is no model.
        inputs: The columns that the processor reads.
        max_length: Tokens after which its texts are cut.
        splits: The examples as the teacher's model reads them by itself; empty: as the student.
        prompt: Template of a longer prompt.
    """

    columns: tuple[str, ...]
    prints: Mapping[str, str]
    processor: Any = None
    inputs: tuple[str, ...] = ()
    max_length: int | None = None
    splits: Mapping[str, Dataset] = field(default_factory=dict)
    prompt: Template | None = None

    def teacher(self, model: PreTrainedModel) -> ModelTeacher:
        """A model that reads them."""
        if self.prompt is not None:
            return ModelTeacher(model, self.processor, prompt=self.prompt)
        options: dict[str, Any] = {"inputs": self.inputs, "max_length": self.max_length}
        return ModelTeacher(model, self.processor, **options)


def processors(recipe: Recipe, models: Models) -> tuple[Any, Any]:
    """The processor of the data, and that of the teacher, None where it has none of its own.

    Raises:
        RecipeError: there is none for the data.
    """
    section, theirs = recipe.teacher, None
    place = (models.paths.get("teacher"), models.commits.get("teacher"))
    other = (models.paths.get("student"), models.commits.get("student"))
    raw = recipe_task(recipe).reads_raw
    for key in ("processor", "inputs"):
        if getattr(section, key) is not None and not raw:
            raise RecipeError(
                f"`teacher.{key}` is for tasks with one row of outputs per example, got "
                f"{recipe.task}: positions of two tokenizers do not match. Leave it out."
            )
    if section.processor is not None:
        theirs = named_processor(recipe, section.processor, "teacher.processor")
    elif raw and section.model is not None:
        theirs = own_processor(recipe, str(place[0]), place[1])
    if raw and recipe.data.processor is None and other[0] is not None:
        ours = own_processor(recipe, other[0], other[1])
        if ours is not None and (theirs is None or differ(ours, theirs)):
            return ours, theirs
    return load_processor(recipe, *(place if section.is_model else other)), theirs


def teacher_inputs(
    recipe: Recipe, examples: RecipeExamples, processor: Any, theirs: Any
) -> TeacherInputs | None:
    """The inputs of the teacher; None: it reads those of the student.

    Args:
        recipe: The recipe.
        examples: Its raw examples.
        processor: The processor of the data.
        theirs: The teacher's own processor, if it has one.

    Raises:
        RecipeError: columns or classes that do not fit.
    """
    section = recipe.teacher
    if section.columns is not None:
        section.columns.check(examples.names)
        names = tuple(section.columns.names)
        return TeacherInputs(names, _prints(examples, names))
    if section.prompt is not None:
        texts = isinstance(section.prompt, str)
        held = examples.raw["train"].column_names
        asked = () if texts else (MESSAGES if MESSAGES in held else PROMPT,)
        names = tuple(dict.fromkeys((*fields_of(section.prompt), *asked)))
        prints = _prints(examples, names)
        return TeacherInputs(names, prints, processor, prompt=section.prompt)
    if not _reads_raw(recipe, processor, theirs):
        return None
    own = processor if theirs is None else theirs
    task = recipe_task(recipe)
    first = [getattr(recipe.data, key) for key in task.columns]
    names = tuple(section.raw_columns or (name for name in first if name is not None))
    _check_kind(recipe, examples, names)
    keys: dict[str, Any] = dict.fromkeys(task.columns)
    keys |= zip(task.columns, names, strict=False)
    data = dataclasses.replace(recipe.data, **keys)
    splits = prepared(examples, dataclasses.replace(recipe, data=data), own)
    limit = length_of(data, own) if task.processor == "AutoTokenizer" else None
    return TeacherInputs(names, fingerprints(splits, own), own, names, limit, splits)


def _reads_raw(recipe: Recipe, processor: Any, theirs: Any) -> bool:
    """True if the teacher reads the raw examples.

    A pre-trained model of images or sounds may be trained here on the values of another processor,
    if the recipe names one.
    """
    section, task = recipe.teacher, recipe_task(recipe)
    if section.inputs is not None or section.processor is not None:
        return True
    values = task.processor in TYPES
    if values and recipe.data.processor is not None and not section.fine_tuned:
        return False
    return theirs is not None and differ(processor, theirs)


def _prints(examples: RecipeExamples, columns: Sequence[str]) -> dict[str, str]:
    raw = {name: data.select_columns(list(columns)) for name, data in examples.raw.items()}
    return fingerprints(raw, None)


def _check_kind(recipe: Recipe, examples: RecipeExamples, columns: Sequence[str]) -> None:
    wanted = READS.get(recipe_task(recipe).processor, IMAGE)
    for name in columns:
        value = examples.raw["train"][0][name]
        sound = isinstance(examples.raw["train"].features[name], Audio)
        if (AUDIO if sound else value_kind(value)) != wanted:
            raise RecipeError(
                f"`teacher.inputs`: expected a column of {wanted}s, got {name!r} with a "
                f"{type(value).__name__}. Name another one."
            )
