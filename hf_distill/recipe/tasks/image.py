"""Classification of images."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from datasets import Dataset
from transformers import default_data_collator

from hf_distill.models.tasks import TASKS
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.tasks.base import RecipeTask


def pictured(dataset: Dataset, data: Data, processor: Any, keep: Collection[str] = ()) -> Dataset:
    """Pixels and labels, made when an example is read: those of a large set would fill the disk."""

    def process(batch: dict[str, list[Any]]) -> dict[str, Any]:
        pictures = [picture.convert("RGB") for picture in batch[data.image_column]]
        values = processor(pictures, return_tensors="pt")["pixel_values"]
        more = {name: batch[name] for name in keep}
        return {"pixel_values": list(values), "labels": batch["labels"], **more}

    return dataset.with_transform(process)


IMAGE_CLASSIFICATION = RecipeTask(
    TASKS["image_classification"],
    "AutoImageProcessor",
    ("image_column",),
    pictured,
    lambda processor: default_data_collator,
)
