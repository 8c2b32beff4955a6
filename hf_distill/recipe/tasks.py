"""Tasks of recipes: model inputs, collator and metric."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import (
    AutoImageProcessor,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    default_data_collator,
)
from transformers.utils import has_file

from hf_distill.data.language import LanguageCollator
from hf_distill.data.perturbed_pairs import PREFIX, PairedCollator
from hf_distill.evaluation.metrics.functional import calibration_error, calibration_sums
from hf_distill.models.tasks import TASKS, Task
from hf_distill.recipe import language, resolve
from hf_distill.recipe.errors import RecipeError, refusing, unknown
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.sections import Data, NoiseSection
from hf_distill.robustness.perturbations import perturb

IDS = f"{PREFIX}input_ids"
"""Column with the tokens of the perturbed versions of a text."""
FILES = {
    "AutoTokenizer": ("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    "AutoImageProcessor": ("preprocessor_config.json", "processor_config.json"),
}
"""Auto class -> the files of which a model's folder holds one, if it has such a processor."""
Encode = Callable[[list[str]], Sequence[list[int]]]
Compute = Callable[[EvalPrediction], dict[str, float]]


@dataclass(frozen=True)
class RandomVersionCollator:
    """A collator that takes one version of each example, drawn as dropout is, for ``collate``."""

    collate: Callable[[list[Any]], Mapping[str, Any]]
    hidden: frozenset[str] = frozenset()
    """Columns that are not the student's."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [{k: v for k, v in example.items() if k not in self.hidden} for example in examples]
        for row in rows:
            if versions := row.get(IDS):
                row[IDS] = versions[int(torch.randint(len(versions), ()))]
        return PairedCollator(self.collate)(rows)


@dataclass(frozen=True)
class RecipeTask:
    """Preparation of batches for one kind of examples.

    Attributes:
        task: The row of `hf_distill.models.tasks.TASKS`.
        processor: The auto class of the tokenizer or image processor.
        columns: The recipe's keys of the input columns.
        prepare: ``(examples, settings, processor, columns) -> examples`` with the models' inputs
            and these further columns of the examples.
        collate: ``processor -> collator`` of examples without perturbed versions.
        metric: The figure that decides.
        noisy: Adds perturbed versions of the raw examples; None: there are none for this kind.
        labelled: True if examples have one class each.
        check: ``(model, who, settings, processor)``: refuses a model that does not fit the data.
        prompt: ``(raw example, settings)``: the prompt of an example, for models that write text.
    """

    task: Task
    processor: str
    columns: tuple[str, ...]
    prepare: Callable[[Dataset, Data, Any, Collection[str]], Dataset]
    collate: Callable[[Any], Callable[[list[Any]], dict[str, Any]]]
    metric: str = "accuracy"
    noisy: Callable[[Dataset, Dataset, Data, Any, int], Dataset] | None = None
    labelled: bool = True
    check: Callable[[PreTrainedModel, str, Data, Any], None] | None = None
    prompt: Callable[[Mapping[str, Any], Data], Any] | None = None

    def collator(self, processor: Any, hidden: Collection[str] = ()) -> RandomVersionCollator:
        """The collator of all batches, with one version of each example, without the columns that
        only a teacher reads."""
        return RandomVersionCollator(self.collate(processor), frozenset(hidden))


def _tokenized(dataset: Dataset, data: Data, tokenizer: Any, keep: Collection[str] = ()) -> Dataset:
    length = language.length_of(data, tokenizer)

    def tokenize(batch: Mapping[str, list[str]]) -> Mapping[str, Any]:
        pair = batch[data.text_pair_column] if data.text_pair_column else None
        tokens: Mapping[str, Any] = tokenizer(
            batch[data.text_column], pair, truncation=True, max_length=length, padding=False
        )
        return tokens

    others = [name for name in dataset.column_names if name != "labels" and name not in keep]
    return dataset.map(tokenize, batched=True, remove_columns=others, desc="Tokenizing")


def with_noise(
    dataset: Dataset, texts: Sequence[str], encode: Encode, noise: NoiseSection, versions: int
) -> Dataset:
    """Add a column with the tokens of several perturbed versions of each text: each version is
    under one of the perturbations, at one severity."""
    made = [encode(_version(texts, noise, number)) for number in range(versions)]
    return dataset.add_column(IDS, [list(each) for each in zip(*made, strict=True)])


def _version(texts: Sequence[str], noise: NoiseSection, number: int) -> list[str]:
    kinds = [(name, severity) for name in noise.perturbations for severity in noise.severities]
    drawn = np.random.default_rng([noise.seed, number]).integers(len(kinds), size=len(texts))
    found = list(texts)
    for kind, (name, severity) in enumerate(kinds):
        own = np.flatnonzero(drawn == kind).tolist()
        changed = perturb([texts[i] for i in own], name, severity, seed=noise.seed + number)
        for index, text in zip(own, changed, strict=True):
            found[index] = text
    return found


def _misspelt(dataset: Dataset, raw: Dataset, data: Data, tokenizer: Any, versions: int) -> Dataset:
    """Tokenised examples with perturbed versions of their texts."""
    length = language.length_of(data, tokenizer)

    def encode(texts: list[str]) -> Any:
        return tokenizer(texts, truncation=True, max_length=length)["input_ids"]

    assert data.noisy is not None
    return with_noise(dataset, raw[data.text_column][:], encode, data.noisy, versions)


def _pictured(dataset: Dataset, data: Data, processor: Any, keep: Collection[str] = ()) -> Dataset:
    def process(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        pictures = [picture.convert("RGB") for picture in batch[data.image_column]]
        values = processor(pictures, return_tensors="pt")["pixel_values"]
        more = {name: batch[name] for name in keep}
        return {"pixel_values": list(values), "labels": batch["labels"], **more}

    # On the fly: pixels of a large data set would fill the disk.
    return dataset.with_transform(process)


RECIPE_TASKS: dict[str, RecipeTask] = {
    "text_classification": RecipeTask(
        TASKS["sequence_classification"],
        "AutoTokenizer",
        ("text_column", "text_pair_column"),
        _tokenized,
        DataCollatorWithPadding,
        noisy=_misspelt,
    ),
    "image_classification": RecipeTask(
        TASKS["image_classification"],
        "AutoImageProcessor",
        ("image_column",),
        _pictured,
        lambda processor: default_data_collator,
    ),
    "causal_lm": RecipeTask(
        TASKS["causal_lm"],
        "AutoTokenizer",
        (),
        language.tokenized,
        LanguageCollator,
        metric="perplexity",
        labelled=False,
        check=language.check_fit,
        prompt=language.prompt_of,
    ),
}
"""Task of a recipe -> how its examples become batches. Add a row for another one."""


def recipe_task(recipe: Recipe) -> RecipeTask:
    """The row of the table, or a `RecipeError`."""
    if recipe.task not in RECIPE_TASKS:
        raise RecipeError(f"`task`: {unknown(recipe.task, RECIPE_TASKS)}")
    return RECIPE_TASKS[recipe.task]


def load_processor(recipe: Recipe, model: str | None, commit: str | None = None) -> Any:
    """The tokenizer or image processor that the recipe names, or that of the teacher ``model``.

    Raises:
        RecipeError: there is none.
    """
    wanted, kind = recipe.data.processor, recipe_task(recipe).processor
    if wanted is None and model is None:
        raise RecipeError(
            f"`data.processor` is missing: a new teacher brings no {kind.removeprefix('Auto')}. "
            "Give a folder or Hub id that has one"
            + (", or its settings." if kind == "AutoImageProcessor" else ".")
        )
    if wanted is not None:
        return named_processor(recipe, wanted, "data.processor")
    return _read_processor(kind, str(model), commit, "data.processor")


def named_processor(recipe: Recipe, wanted: str | dict[str, Any], key: str) -> Any:
    """The tokenizer or image processor under a key of a recipe: a folder, Hub id, or settings.

    Raises:
        RecipeError: there is none.
    """
    kind = recipe_task(recipe).processor
    if isinstance(wanted, dict):
        return _configured(wanted, kind, key)
    return _read_processor(kind, resolve.locate(wanted, recipe.file.parent, key), None, key)


def own_processor(recipe: Recipe, model: str, commit: str | None = None) -> Any:
    """The tokenizer or image processor beside a model's weights; None: there is none."""
    kind = recipe_task(recipe).processor
    with contextlib.suppress(OSError):
        if any(has_file(model, name, revision=commit or "main") for name in FILES[kind]):
            return _read_processor(kind, model, commit, "data.processor")
    return None


def _read_processor(kind: str, name: str, commit: str | None, key: str) -> Any:
    with resolve.unread_weights(f"`{key}`: {kind} cannot be loaded from {name}"):
        return getattr(transformers, kind).from_pretrained(name, revision=commit or "main")


def _configured(settings: Mapping[str, Any], kind: str, key: str) -> Any:
    """An image processor from settings, as preprocessor_config.json holds them."""
    if kind != "AutoImageProcessor" or "image_processor_type" not in settings:
        raise RecipeError(
            f"`{key}`: expected a folder or Hub id, or, for pictures, settings with "
            f"`image_processor_type` (ViTImageProcessor, say), got {dict(settings)}."
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "preprocessor_config.json"
        path.write_text(json.dumps(dict(settings)), encoding="utf-8")
        with refusing(f"`{key}`"):
            processor: Any = AutoImageProcessor.from_pretrained(folder)
    known = {*processor.valid_kwargs.__annotations__, "image_processor_type"}
    for name in settings:
        if name not in known:
            raise unknown(name, known, f"{key}.")
    return processor


def compute_metrics(task: RecipeTask, of_teacher: bool = False) -> Compute | None:
    """The accuracy over labelled examples; of a teacher also mean negative log-likelihood and
    calibration error, which the trainer measures of students. None: the trainer measures all."""
    if not task.labelled:
        return None

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits = torch.as_tensor(prediction.predictions)
        labels = np.asarray(prediction.label_ids)
        right = np.argmax(logits.numpy(), axis=-1) == labels
        found = {"accuracy": float(right[labels != -100].mean())}
        if of_teacher:
            logits, classes = logits.double(), torch.as_tensor(labels)
            sums = calibration_sums(logits, classes, torch.ones_like(classes, dtype=torch.bool))
            found["nll"] = float(torch.nn.functional.cross_entropy(logits, classes))
            found["ece"] = float(calibration_error(sums))
        return found

    return compute
