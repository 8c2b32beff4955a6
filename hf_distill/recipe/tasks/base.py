"""The row of the table of recipe tasks, and what its functions are given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel

from hf_distill.data.perturbed_pairs import PREFIX, PairedCollator
from hf_distill.models.tasks import Task
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.labels import CLASS, NONE, Labels

IDS = f"{PREFIX}input_ids"
"""Column with the tokens of the perturbed versions of a text."""
Collate = Callable[[list[Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class RandomVersionCollator:
    """A collator that takes one version of each example, drawn as dropout is, for ``collate``."""

    collate: Collate
    hidden: frozenset[str] = frozenset()
    """Columns that are not the student's."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [{k: v for k, v in example.items() if k not in self.hidden} for example in examples]
        for row in rows:
            if versions := row.get(IDS):
                row[IDS] = versions[int(torch.randint(len(versions), ()))]
        return PairedCollator(self.collate)(rows)


@dataclass(frozen=True)
class Split:
    """One split of a recipe, for the functions that measure a model on it.

    Attributes:
        raw: The loaded examples.
        rows: The prepared examples, as the trainer takes them.
        labels: Kind and names of the labels.
        data: The section of the recipe.
        processor: The tokenizer, image processor or feature extractor.
    """

    raw: Dataset
    rows: Dataset
    labels: Labels
    data: Data
    processor: Any


def logits_of(prediction: EvalPrediction) -> Any:
    """The first output of a model: its logits, or what `RecipeTask.reduce` made of them."""
    predictions: Any = prediction.predictions
    return predictions[0] if isinstance(predictions, tuple) else predictions


def first_output(prediction: EvalPrediction, split: Split) -> tuple[Any, Any]:
    """Logits, or values, and labels of a model with one row per example."""
    predictions = logits_of(prediction)
    if split.labels.width == 1 and predictions.ndim == 2 and predictions.shape[1] == 1:
        predictions = predictions[:, 0]
    return predictions, prediction.label_ids


@dataclass(frozen=True)
class RecipeTask:
    """Preparation of batches for one kind of examples, and their metrics.

    Attributes:
        task: The row of `hf_distill.models.tasks.TASKS`.
        processor: The auto class of the tokenizer, image processor, feature extractor or processor.
        columns: The recipe's keys of the input columns.
        prepare: ``(examples, settings, processor, columns) -> examples`` with the models' inputs
            and these further columns of the examples.
        collate: ``processor -> collator`` of examples without perturbed versions.
        metrics: Kind of labels (`hf_distill.recipe.labels`) -> names of its metrics; the first
            decides. These are the kinds that the task can use, in the order in which they are
            tried. A metric that is not in `METRICS` is one of the trainer's own figures.
        narrowed: ``(labels, these metrics)``: the metrics by default, if class names decide.
        outputs: ``(predictions of the trainer, split) -> predictions, references`` in the form of
            the metrics; ragged ones are padded with -100, as `Trainer` gathers them.
        reduce: ``(logits, labels) -> predictions`` of a batch, before they are gathered.
        generate: ``(model, split, arguments) -> predictions, references``: in place of ``outputs``
            for models whose predictions are generated; ``watch`` is measured during training then.
        watch: The figure of the trainer by which checkpoints are compared; default: the metric that
            decides.
        without: Figures of the trainer that have no meaning for the task.
        hidden: Prepared columns that ``outputs`` reads and no model.
        drawn: ``(prepared split, its name, settings, processor)``: the split with what is random in
            its examples, drawn once or at each reading.
        objective: Rows of the default objective; None: by the scalars of ``training``.
        models: A class with ``from_pretrained`` and ``from_config``; default: the auto class.
        tag: The pipeline tag of the Hub; default: that of the trainer's task.
        library: The library whose folder the student is.
        noisy: Adds perturbed versions of the raw examples; None: there are none for this kind.
        check: ``(model, who, settings, processor)``: refuses a model that does not fit the data.
        inspect: ``(splits by name, names of the metrics)``: sentences about the data for the output
            and the card; a `RecipeError` for data for which a metric has no value.
        configure: ``(model, settings, processor)``: sets what is saved with a model, before its
            training.
        prompt: ``(raw example, settings)``: the prompt of an example, for models that write text.
        reads_raw: True if a teacher may read the raw examples with a processor of its own.
    """

    task: Task
    processor: str
    columns: tuple[str, ...]
    prepare: Callable[[Dataset, Data, Any, Collection[str]], Dataset]
    collate: Callable[[Any], Collate]
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {CLASS: ("accuracy",)})
    narrowed: Callable[[Labels, tuple[str, ...]], tuple[str, ...]] | None = None
    outputs: Callable[[EvalPrediction, Split], tuple[Any, Any]] = first_output
    reduce: Callable[[Any, Any], Any] | None = None
    generate: Callable[[PreTrainedModel, Split, Any], tuple[Any, Any]] | None = None
    watch: str | None = None
    without: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    drawn: Callable[[Dataset, str, Data, Any], Dataset] | None = None
    objective: list[dict[str, Any]] | None = None
    models: Any = None
    tag: str | None = None
    library: str = "transformers"
    noisy: Callable[[Dataset, Dataset, Data, Any, int], Dataset] | None = None
    check: Callable[[PreTrainedModel, str, Data, Any], None] | None = None
    inspect: Callable[[Mapping[str, Split], Sequence[str]], list[str]] | None = None
    configure: Callable[[PreTrainedModel, Data, Any], None] | None = None
    prompt: Callable[[Mapping[str, Any], Data], Any] | None = None
    reads_raw: bool = True

    @property
    def labelled(self) -> bool:
        """True if examples have a column of labels beside their inputs."""
        return NONE not in self.metrics

    @property
    def loads(self) -> Any:
        """The class that loads its models."""
        return self.models or getattr(transformers, self.task.auto_class)

    def collator(self, processor: Any, hidden: Collection[str] = ()) -> RandomVersionCollator:
        """The collator of all batches, with one version of each example, without the columns that
        only a teacher or a metric reads."""
        return RandomVersionCollator(self.collate(processor), frozenset({*hidden, *self.hidden}))
