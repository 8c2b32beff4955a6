"""Classification of sounds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Audio, Dataset
from transformers import default_data_collator

from hf_distill.data.audio import read_sound
from hf_distill.models.raw_inputs import processed_sounds
from hf_distill.models.tasks import TASKS
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.labels import CLASS, MULTI_LABEL
from hf_distill.recipe.tasks.base import RecipeTask

LABELS = "labels"
Labelled = Callable[[Mapping[str, list[Any]]], list[Any]]


def extractor_of(processor: Any) -> Any:
    """The part of a processor that reads sounds."""
    return getattr(processor, "feature_extractor", processor)


def with_features(
    dataset: Dataset, data: Data, processor: Any, keep: Collection[str], labels: Labelled
) -> Dataset:
    """Features of the sounds and labels, made when an example is read.

    Each sound is decoded, cut after ``data.max_seconds``, and resampled to the rate of the feature
    extractor. Of the columns in ``keep`` sounds are decoded and cut alike.

    Raises:
        RecipeError: a length that is no positive number.
    """
    if data.max_seconds is not None and not data.max_seconds > 0:
        raise RecipeError(
            f"`data.max_seconds`: expected a positive number of seconds, got {data.max_seconds}."
        )
    extractor = extractor_of(processor)
    rate = int(extractor.sampling_rate)
    media = {name for name in keep if isinstance(dataset.features[name], Audio)}

    def decoded(values: Sequence[Any]) -> list[dict[str, Any]]:
        return [read_sound(value, rate, data.max_seconds) for value in values]

    def process(batch: dict[str, list[Any]]) -> dict[str, Any]:
        sounds = decoded(batch[data.audio_column])
        each = [processed_sounds(extractor, [sound], resample=True) for sound in sounds]
        found = {name: [features[name][0] for features in each] for name in each[0]}
        more = {name: decoded(batch[name]) if name in media else batch[name] for name in keep}
        more |= {data.audio_column: sounds} if data.audio_column in keep else {}
        return {**found, LABELS: labels(batch), **more}

    return dataset.with_transform(process)


@dataclass(frozen=True)
class SoundCollator:
    """Batches of features padded by the feature extractor, beside the labels."""

    processor: Any

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        extractor = extractor_of(self.processor)
        names = {*extractor.model_input_names, "attention_mask"}
        features = [{k: v for k, v in row.items() if k in names} for row in rows]
        others = [{k: v for k, v in row.items() if k not in names} for row in rows]
        batch = extractor.pad(features, padding=True, return_tensors="pt")
        return {**default_data_collator(others), **batch}


def classified(dataset: Dataset, data: Data, processor: Any, keep: Collection[str] = ()) -> Dataset:
    """Features of the sounds, and their classes."""
    return with_features(dataset, data, processor, keep, lambda batch: batch[LABELS])


AUDIO_CLASSIFICATION = RecipeTask(
    TASKS["audio_classification"],
    "AutoFeatureExtractor",
    ("audio_column",),
    classified,
    SoundCollator,
    metrics={CLASS: ("accuracy",), MULTI_LABEL: ("micro_f1_labels", "macro_f1_labels")},
)
