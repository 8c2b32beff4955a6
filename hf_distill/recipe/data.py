"""The examples of a recipe: loaded, checked, shortened and made into model inputs."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset
from transformers import (
    AutoImageProcessor,
    DataCollatorWithPadding,
    EvalPrediction,
    default_data_collator,
)

from hf_distill.metrics import load as load_metric
from hf_distill.recipe import sources
from hf_distill.recipe.casting import RecipeError, unknown
from hf_distill.recipe.schema import Data, Recipe
from hf_distill.tasks import TASKS, Task

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.1
"""The share of the training split that serves for validation where there is no such split."""


@dataclass(frozen=True)
class RecipeTask:
    """How one kind of examples becomes batches.

    Attributes:
        task: The row of `hf_distill.tasks.TASKS`.
        tag: The Hub's name of the task.
        processor: The auto class of the tokenizer or image processor.
        columns: The input columns, by the recipe's keys for them.
        prepare: ``(examples, settings, processor) -> examples`` with the models' inputs.
        collator: Makes the collator of a processor.
        metric: A metric of `hf_distill.metrics` on the most likely class.
    """

    task: Task
    tag: str
    processor: str
    columns: tuple[str, ...]
    prepare: Callable[[Dataset, Data, Any], Dataset]
    collator: Callable[[Any], Callable[[list[Any]], dict[str, Any]]]
    metric: str = "accuracy"


def _tokenized(dataset: Dataset, data: Data, tokenizer: Any) -> Dataset:
    length = data.max_length or tokenizer.model_max_length
    if length > 1_000_000:
        raise RecipeError(
            "`data.max_length` is missing: this tokenizer does not say how long a text may be. "
            "Give the number of tokens at which texts are cut."
        )

    def tokenize(batch: Mapping[str, list[str]]) -> Mapping[str, Any]:
        pair = batch[data.text_pair_column] if data.text_pair_column else None
        tokens: Mapping[str, Any] = tokenizer(
            batch[data.text_column], pair, truncation=True, max_length=length, padding=False
        )
        return tokens

    others = [name for name in dataset.column_names if name != "labels"]
    return dataset.map(tokenize, batched=True, remove_columns=others, desc="Tokenizing")


def _pictured(dataset: Dataset, data: Data, processor: Any) -> Dataset:
    def process(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        pictures = [picture.convert("RGB") for picture in batch[data.image_column]]
        values = processor(pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(values), "labels": batch["labels"]}

    # On the fly: pixels of a large data set would fill the disk.
    return dataset.with_transform(process)


RECIPE_TASKS: dict[str, RecipeTask] = {
    "text_classification": RecipeTask(
        TASKS["sequence_classification"],
        "text-classification",
        "AutoTokenizer",
        ("text_column", "text_pair_column"),
        _tokenized,
        DataCollatorWithPadding,
    ),
    "image_classification": RecipeTask(
        TASKS["image_classification"],
        "image-classification",
        "AutoImageProcessor",
        ("image_column",),
        _pictured,
        lambda processor: default_data_collator,
    ),
}
"""Task of a recipe -> how its examples become batches. Add a row for another one."""


def recipe_task(recipe: Recipe) -> RecipeTask:
    """The row of the table.

    Raises:
        RecipeError: there is none.
    """
    if recipe.task not in RECIPE_TASKS:
        raise RecipeError(f"`task`: {unknown(recipe.task, RECIPE_TASKS)}")
    return RECIPE_TASKS[recipe.task]


@dataclass(frozen=True)
class Examples:
    """The three splits of a recipe.

    Attributes:
        raw: The splits as they are loaded, with a column ``labels``.
        labels: The names of the classes.
        facts: What the source says about itself: hub_id, license, description.
    """

    raw: DatasetDict
    labels: list[str]
    facts: dict[str, Any]

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(self.raw[name]) for name in SPLITS}


def load_examples(recipe: Recipe) -> Examples:
    """Load, check and shorten the data of a recipe.

    Raises:
        RecipeError: what the recipe names is not there, or is of no use for its task.
    """
    data = recipe.data
    loaded, facts = _load(data, recipe)
    columns = [getattr(data, key) for key in recipe_task(recipe).columns]
    columns = [name for name in columns if name is not None]
    found = _splits(loaded, data)
    for name, dataset in found.items():
        for column in (*columns, data.label_column):
            if column not in dataset.column_names:
                raise RecipeError(
                    f"`data`: split {name!r} of {data.source} has no column {column!r}, but "
                    f"{dataset.column_names}. Name the columns with "
                    f"{', '.join(f'`data.{key}`' for key in recipe_task(recipe).columns)} and "
                    "`data.label_column`."
                )
        found[name] = dataset.select_columns([*columns, data.label_column])
    found, labels = _classes(found, data)
    if "validation" not in found:
        parts = found["train"].train_test_split(
            HELD_OUT, seed=0, stratify_by_column=data.label_column
        )
        found["train"], found["validation"] = parts["train"], parts["test"]
    limits = {"train": data.max_train_examples}
    for name in SPLITS:
        found[name] = _shortened(found[name], limits.get(name, data.max_eval_examples))
        found[name] = _labelled(found[name], name, data)
    facts = facts or {"hub_id": data.source}
    return Examples(found, labels, facts)


def _load(data: Data, recipe: Recipe) -> tuple[DatasetDict, dict[str, Any]]:
    folder = recipe.file.parent
    if sources.is_function(data.source):
        for key in ("config", "revision"):
            if getattr(data, key) is not None:
                raise RecipeError(
                    f"`data.{key}` is for data sets of the Hub; {data.source} is a function, which "
                    "takes `data.arguments`."
                )
        loaded = sources.call(data.source, folder, data.arguments, "data.source")
        facts = sources.facts(data.source, folder, "data.source")
    else:
        if data.arguments:
            raise RecipeError("`data.arguments` are for a source written file.py:function.")
        try:
            loaded = load_dataset(data.source, data.config, revision=data.revision)
        except (OSError, ValueError, RuntimeError) as error:
            raise RecipeError(f"`data.source`: {data.source} cannot be loaded: {error}") from error
        facts = {}
    if not isinstance(loaded, DatasetDict):
        raise RecipeError(
            f"`data.source`: expected {data.source} to give a datasets.DatasetDict (one data set "
            f"per split), got {type(loaded).__name__}."
        )
    return loaded, facts


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


def _classes(found: DatasetDict, data: Data) -> tuple[DatasetDict, list[str]]:
    """Give every split one and the same `ClassLabel` column."""
    column = data.label_column
    feature = found["train"].features[column]
    if isinstance(feature, ClassLabel):
        return found, list(feature.names)
    if not isinstance(feature, Value) or not (
        feature.dtype.startswith(("int", "uint")) or feature.dtype in ("string", "bool")
    ):
        raise RecipeError(
            f"`data.label_column`: expected one class per example in {column!r} (a ClassLabel, a "
            f"whole number or a name), got {feature}. Recipes for regression and for several "
            "labels per example do not exist yet; use DistillationTrainer in a script."
        )
    values = sorted({value for dataset in found.values() for value in dataset.unique(column)})
    if feature.dtype.startswith(("int", "uint")) and values != list(range(len(values))):
        if values[0] < 0:
            raise RecipeError(_unlabelled(column, data))
        raise RecipeError(
            f"`data.label_column`: expected the classes 0 to {len(values) - 1} in {column!r}, got "
            f"{values[:10]}. Number them without gaps, or give names."
        )
    names = [str(value) for value in values]
    label = ClassLabel(names=names)
    encoded = found.map(
        lambda batch: {column: [names.index(str(value)) for value in batch[column]]}, batched=True
    )
    return encoded.cast_column(column, label), names


def _unlabelled(column: str, data: Data) -> str:
    return (
        f"`data.label_column`: {column!r} of {data.source} holds examples without a label. "
        "Name labelled splits (data.test_split: validation, where the test labels are withheld)."
    )


def _labelled(dataset: Dataset, split: str, data: Data) -> Dataset:
    values = dataset[data.label_column][:]
    if any(value is None or value < 0 for value in values):
        raise RecipeError(f"split {split!r}: {_unlabelled(data.label_column, data)}")
    if data.label_column == "labels":
        return dataset
    return dataset.rename_column(data.label_column, "labels")


def _shortened(dataset: Dataset, limit: int | None) -> Dataset:
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.shuffle(seed=0).select(range(limit))  # the same examples for every seed


def prepared(examples: Examples, recipe: Recipe, processor: Any) -> dict[str, Dataset]:
    """The splits as the trainers take them."""
    task = recipe_task(recipe)
    return {name: task.prepare(examples.raw[name], recipe.data, processor) for name in SPLITS}


def fingerprints(splits: Mapping[str, Dataset], processor: Any) -> dict[str, str]:
    """A hash of the content of each split as the models see it."""
    found = {}
    for name, dataset in splits.items():
        digest = hashlib.sha256()
        rows = dataset.with_format("arrow")
        for table in rows.iter(batch_size=1000):
            digest.update(repr(table.to_pydict()).encode())
        if dataset.format["type"] == "custom":  # made on the fly: the processor is part of it
            digest.update(json.dumps(processor.to_dict(), sort_keys=True, default=str).encode())
        found[name] = digest.hexdigest()
    return found


def load_processor(recipe: Recipe, model: str | None) -> Any:
    """The tokenizer or image processor that the recipe names; by default the teacher's.

    Raises:
        RecipeError: there is none.
    """
    wanted, kind = recipe.data.processor, recipe_task(recipe).processor
    auto: Any = getattr(transformers, kind)
    if isinstance(wanted, dict):
        return _configured(wanted, kind)
    if wanted is None and model is None:
        raise RecipeError(
            f"`data.processor` is missing: a new teacher brings no {kind.removeprefix('Auto')}. "
            "Give a folder or Hub id that has one"
            + (", or its settings." if kind == "AutoImageProcessor" else ".")
        )
    name = model if wanted is None else sources.locate(wanted, recipe.file.parent, "data.processor")
    try:
        return auto.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise RecipeError(
            f"`data.processor`: {kind} cannot be loaded from {name}: {error}"
        ) from error


def _configured(settings: Mapping[str, Any], kind: str) -> Any:
    """An image processor from settings, as preprocessor_config.json holds them."""
    if kind != "AutoImageProcessor" or "image_processor_type" not in settings:
        raise RecipeError(
            "`data.processor`: expected a folder or Hub id, or, for pictures, settings with "
            f"`image_processor_type` (ViTImageProcessor, say), got {dict(settings)}."
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "preprocessor_config.json"
        path.write_text(json.dumps(dict(settings)), encoding="utf-8")
        try:
            processor: Any = AutoImageProcessor.from_pretrained(folder)
        except (OSError, ValueError, ImportError, TypeError) as error:
            raise RecipeError(f"`data.processor`: {error}") from error
    known = {*processor.valid_kwargs.__annotations__, "image_processor_type"}
    for key in settings:
        if key not in known:
            raise unknown(key, known, "data.processor.")
    return processor


def compute_metrics(task: RecipeTask) -> Callable[[EvalPrediction], dict[str, float]]:
    """The metric of a task on the most likely class."""
    metric = load_metric(task.metric)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        classes = np.argmax(torch.as_tensor(prediction.predictions).numpy(), axis=-1)
        result: dict[str, float] = metric.compute(
            predictions=classes, references=prediction.label_ids
        )
        return result

    return compute
