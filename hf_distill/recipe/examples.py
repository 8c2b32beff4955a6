"""Examples of a recipe: loading, checks, subsets, and the hash of the model inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from hf_distill.recipe import language, resolve, sources
from hf_distill.recipe.checked_data import check_used, checked, inputs_of, size_of
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError, refusing
from hf_distill.recipe.findings import Findings
from hf_distill.recipe.labels import CLASS, NONE, Labels, labelled, read_labels
from hf_distill.recipe.row_hashes import contents
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.tasks import recipe_task
from hf_distill.recipe.unlabelled import MIXED, mixture, without_labels
from hf_distill.teachers.privileged import fields_of
from hf_distill.utils.suggest import did_you_mean

SPLITS = ("train", "validation", "test")
OF_TEACHER = "train (teacher)"
"""Training split of the teacher, if it differs from the student's."""
HELD_OUT = 0.1
"""Share of the training split used for validation if there is no validation split."""


@dataclass(frozen=True)
class RecipeExamples:
    """The three splits of a recipe, and perhaps `OF_TEACHER`.

    Attributes:
        raw: Loaded splits; labelled ones have a column ``labels``.
        labels: Kind of the labels, and the names of the classes, if there are any.
        facts: Metadata of the source: hub_id, license, description.
        findings: What was left out, set aside or warned of.
    """

    raw: DatasetDict
    labels: Labels
    facts: dict[str, Any]
    findings: Findings = field(default_factory=Findings)

    @property
    def names(self) -> list[str]:
        """The names of the classes."""
        return self.labels.names

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(dataset) for name, dataset in self.raw.items()}

    @property
    def lines(self) -> list[str]:
        """Findings, and the size of every split with the counts of its classes, for the start."""
        counted = self.names if self.labels.kind == CLASS else []
        sizes = [size_of(str(name), rows, counted) for name, rows in self.raw.items()]
        return [*self.findings.lines, *sizes]


def load_examples(recipe: Recipe) -> RecipeExamples:
    """Load, check and shorten the data of a recipe.

    Raises:
        RecipeError: what the recipe names is not there, or is of no use for its task.
    """
    data = recipe.data
    loaded, facts = load_source(data, recipe.file.parent)
    loaded, data, findings = checked(loaded, recipe)
    task, found, labels = recipe_task(recipe), _splits(loaded, data), Labels()
    if task.labelled:
        found, labels = read_labels(_selected(found, recipe), data, list(task.metrics))
    elif task.columns:
        found = _selected(found, recipe)
    else:
        own = teacher_columns(recipe)
        for name, dataset in found.items():
            kept = language.columns_of(dataset, name, data)
            _check_columns(dataset, name, own, recipe)
            found[name] = dataset.select_columns([*kept, *(c for c in own if c not in kept)])
    if "validation" not in found:
        by = data.label_column if labels.kind == CLASS else None
        parts = found["train"].train_test_split(HELD_OUT, seed=0, stratify_by_column=by)
        found["train"], found["validation"] = parts["train"], parts["test"]
    limits = (data.max_train_examples, data.max_eval_examples, data.max_test_examples)
    more = recipe.teacher.max_train_examples
    if more is not None:
        found[OF_TEACHER] = _shortened(found["train"], more)
    others = None if data.unlabelled is None else _unlabelled(found["train"], recipe)
    for name, limit in zip(SPLITS, limits, strict=True):
        found[name] = _shortened(found[name], limit)
    found = check_used(found, recipe, OF_TEACHER if more else "train", findings)
    if labels.kind != NONE:
        for name in found:
            found[name] = labelled(found[name], name.partition(" ")[0], labels, data)
    if others is not None and data.unlabelled is not None:
        others = without_labels(others, labels, data)
        found[MIXED] = mixture(found["train"], others, labels.kind, data.unlabelled.share)
    return RecipeExamples(found, labels, facts or {"hub_id": data.source}, findings)


def _unlabelled(train: Dataset, recipe: Recipe) -> Dataset:
    """Examples without labels, with the columns that the task and the teacher read."""
    data, section, task = recipe.data, recipe.data.unlabelled, recipe_task(recipe)
    assert section is not None
    if not task.labelled:
        raise RecipeError(
            f"`data.unlabelled`: the examples of {recipe.task} have no column of labels. Add them "
            "to the training split of `data.source`."
        )
    if section.source is None:
        limit = data.max_train_examples or len(train)
        rows, what = _shuffled(train).select(list(range(limit, len(train)))), "train"
    else:
        origin: Any = {"config": section.config, "revision": section.revision}
        own = replace(data, source=section.source, arguments=section.arguments, **origin)
        loaded, _ = load_source(own, recipe.file.parent)
        if section.split not in loaded:
            raise RecipeError(
                f"`data.unlabelled.split`: {section.source} has no split {section.split!r}, but "
                f"{sorted(loaded)}."
            )
        rows, what = loaded[section.split], section.source
    columns = list(dict.fromkeys([*inputs_of(recipe), *teacher_columns(recipe)]))
    for column in columns:
        if column not in rows.column_names:
            raise RecipeError(
                f"`data.unlabelled`: {what} has no column {column!r}, but {rows.column_names}. "
                "It needs the input columns of `data`."
            )
    rows = _shortened(rows.select_columns(columns), section.max_examples)
    if not len(rows):
        raise RecipeError(
            "`data.unlabelled`: expected examples without labels, got none. Without `source` they "
            "are the training examples beyond `data.max_train_examples`."
        )
    return rows


def _selected(found: DatasetDict, recipe: Recipe) -> DatasetDict:
    """The columns that the task reads, and the label."""
    data, task, selected = recipe.data, recipe_task(recipe), DatasetDict()
    keys = [*task.columns, *(["label_column"] if task.labelled else [])]
    columns = [name for key in keys if (name := getattr(data, key)) is not None]
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        own = [f"`data.{key}`" for key in keys if getattr(data, key) == twice]
        raise RecipeError(f"`data`: expected different columns, got {twice!r} for {_listed(own)}.")
    more = teacher_columns(recipe)
    groups = None if recipe.robustness is None else recipe.robustness.groups
    for name, dataset in found.items():
        known, kept = dataset.column_names, list(columns)
        for column in columns:
            if column not in known:
                raise RecipeError(
                    f"`data`: split {name!r} of {data.source} has no column {column!r}, but "
                    f"{known}. Name the columns with "
                    f"{_listed([f'`data.{key}`' for key in keys])}."
                )
        _check_columns(dataset, name, more, recipe)
        kept += [column for column in more if column not in kept]
        if name == "test" and groups is not None and groups not in kept:
            if groups not in known:
                raise RecipeError(
                    f"`robustness.groups`: split {name!r} of {data.source} has no column "
                    f"{groups!r}, but {known}."
                )
            kept.append(groups)
        selected[name] = dataset.select_columns(kept)
    return selected


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def teacher_columns(recipe: Recipe) -> dict[str, str]:
    """The columns that the recipe names for its teacher, with their keys."""
    section, found = recipe.teacher, dict[str, str]()
    if section.columns is not None:
        found |= dict.fromkeys(section.columns.names, "teacher.columns")
    found |= dict.fromkeys(section.raw_columns, "teacher.inputs")
    if section.prompt is not None:
        with refusing("`teacher.prompt`", KeyError, ValueError):
            found |= dict.fromkeys(fields_of(section.prompt), "teacher.prompt")
    return found


def _check_columns(dataset: Dataset, split: str, named: Mapping[str, str], recipe: Recipe) -> None:
    known = dataset.column_names
    for column, key in named.items():
        if column not in known:
            raise RecipeError(
                f"`{key}`: split {split!r} of {recipe.data.source} has no column {column!r}, but "
                f"{known}.{did_you_mean(column, known)}"
            )
        if column == recipe.data.label_column and recipe_task(recipe).labelled:
            raise RecipeError(
                f"`{key}`: expected a column of the teacher, got {column!r}, which holds the "
                "labels (`data.label_column`). Name another one."
            )


def load_source(data: Data, folder: Path) -> tuple[DatasetDict, dict[str, Any]]:
    """Splits of a source, and its metadata; ``folder`` is that of the recipe.

    Raises:
        RecipeError: it cannot be loaded.
    """
    if isinstance(data.source, str) and resolve.is_function(data.source):
        if data.config is not None or data.revision is not None:
            key = "revision" if data.config is None else "config"
            raise RecipeError(
                f"`data.{key}` is for data sets of the Hub; {data.source} is a function, which "
                "takes `data.arguments`."
            )
        loaded = resolve.call(data.source, folder, data.arguments, "data.source")
        facts = resolve.facts(data.source, folder, "data.source")
    elif data.arguments:
        raise RecipeError("`data.arguments` are for a source written file.py:function.")
    elif not isinstance(data.source, str) or sources.is_local(data.source, folder):
        if data.config is not None or data.revision is not None:
            key = "revision" if data.config is None else "config"
            raise RecipeError(f"`data.{key}` is for data sets of the Hub, not for local files.")
        loaded = sources.load_files(data, folder)
        facts = {"hub_id": None, "name": sources.title_of(data.source)}
    else:
        with refusing(f"`data.source`: {data.source} cannot be loaded"):
            loaded = load_dataset(data.source, data.config, revision=data.revision)
        facts = {}
    if not isinstance(loaded, DatasetDict):
        raise RecipeError(
            f"`data.source`: expected {data.source} to give a datasets.DatasetDict (one data set "
            f"per split), got {type(loaded).__name__}."
        )
    return sources.undecoded(loaded), facts


def split_of(
    source: str, split: str, config: str | None = None, revision: str | None = None
) -> Dataset:
    """One split of a source outside of a recipe; paths are relative to the working directory.

    Raises:
        RecipeError: no such source or split.
    """
    loaded, _ = load_source(Data(source, config, revision), Path())
    if split not in loaded:
        raise RecipeError(
            f"{source} has no split {split!r}, but {', '.join(map(repr, sorted(loaded)))}."
        )
    return loaded[split]


def _splits(loaded: DatasetDict, data: Data) -> DatasetDict:
    found = DatasetDict()
    for name in SPLITS:
        wanted = getattr(data, f"{name}_split")
        if wanted is None:
            continue
        if wanted not in loaded:
            extra = (
                f" `data.validation_split: null` sets {HELD_OUT:.0%} of the training split aside."
                if name == "validation"
                else ""
            )
            raise RecipeError(
                f"`data.{name}_split`: {data.source} has no split {wanted!r}, but "
                f"{sorted(loaded)}.{extra}"
            )
        if len(loaded[wanted]) == 0:
            raise RecipeError(f"`data.{name}_split`: split {wanted!r} of {data.source} is empty.")
        found[name] = loaded[wanted]
    return found


def _shortened(dataset: Dataset, limit: int | None) -> Dataset:
    if limit is None or limit >= len(dataset):
        return dataset
    return _shuffled(dataset).select(range(limit))


def _shuffled(dataset: Dataset) -> Dataset:
    return dataset.shuffle(seed=0)  # the same examples for every seed


def prepared(
    examples: RecipeExamples, recipe: Recipe, processor: Any, keep: Collection[str] = ()
) -> dict[str, Dataset]:
    """The splits as the trainers take them; a `RecipeError` for noise of other than texts.

    Of the columns that only the teacher reads those in ``keep`` stay.
    """
    task, noise = recipe_task(recipe), recipe.data.noisy
    inputs = {getattr(recipe.data, key) for key in task.columns}
    others = {*teacher_columns(recipe)} - inputs - set(keep)
    raw, found = examples.raw, dict[str, Dataset]()
    for name, data in raw.items():
        own = [column for column in data.column_names if task.reads_raw and column in others]
        found[name] = task.prepare(data.remove_columns(own), recipe.data, processor, keep)
        if task.drawn is not None:
            found[name] = task.drawn(found[name], name, recipe.data, processor)
    if noise is not None:
        if task.noisy is None or recipe.data.text_pair_column is not None:
            raise RecipeError("`data.noisy` is for single texts. For pictures use `by: gaussian`.")
        with refusing("`data.noisy`", ValueError):
            for name in found.keys() - {"test"}:
                count = 1 if name == "validation" else noise.versions
                found[name] = task.noisy(found[name], raw[name], recipe.data, processor, count)
    return found


def fingerprints(splits: Mapping[str, Dataset], processor: Any) -> dict[str, str]:
    """A hash of the content of each split as the models see it."""
    found = {}
    for name, dataset in splits.items():
        digest = hashlib.sha256()
        for table in dataset.with_format("arrow").iter(batch_size=1000):
            digest.update(repr(contents(table.to_pydict(), keep_bytes=True)).encode())
        made = dataset.format["type"] == "custom"  # on the fly: the processor is part of it
        if made and hasattr(processor, "to_dict"):
            digest.update(json.dumps(processor.to_dict(), sort_keys=True, default=str).encode())
        found[name] = digest.hexdigest()
    return found
