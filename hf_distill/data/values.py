"""Raw examples: texts, images, sounds, rows of numbers, and their modality."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import fromarray


def picture(value: Any) -> Image.Image:
    """Image as PIL; float arrays in [0, 1] are rounded to 256 grey levels."""
    if isinstance(value, Image.Image):
        return value if value.mode in ("L", "RGB") else value.convert("RGB")
    array = np.asarray(value)
    if array.dtype.kind == "f":
        array = np.rint(np.clip(array, 0.0, 1.0) * 255).astype(np.uint8)
    return fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def modality_of(value: Any) -> str:
    """Modality of one example: ``text``, ``image``, ``audio`` or ``tabular``; else a ValueError."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping) and {"array", "sampling_rate"} <= set(value):
        return "audio"
    if isinstance(value, Image.Image) or (isinstance(value, np.ndarray) and value.ndim in (2, 3)):
        return "image"
    if isinstance(value, (np.ndarray, list, tuple)) and np.asarray(value).ndim == 1:
        return "tabular"
    raise ValueError(
        "Expected examples that are texts, pictures (PIL or arrays), sounds ({'array', "
        f"'sampling_rate'}}) or rows of numbers, got {type(value).__name__}."
    )


def check_values(values: Sequence[Any], modality: str) -> None:
    """Raise a ValueError if an example does not have the modality of the model."""
    for value in values:
        if modality_of(value) != modality:
            raise ValueError(
                f"Expected examples for a model of {modality}, got {modality_of(value)} "
                f"({type(value).__name__}). Name the right column."
            )


def length_of(value: Any) -> int:
    """Characters of a text or samples of a sound; otherwise 0."""
    if isinstance(value, str):
        return len(value)
    return len(value["array"]) if isinstance(value, Mapping) else 0
