"""Model inputs from raw examples, by a tokenizer, an image processor or a feature extractor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import numpy as np

from hf_distill.data.values import picture

TEXT, WORDS, IMAGE, AUDIO = "text", "words", "image", "audio"
UNLIMITED = 1_000_000
"""Limits above this number mean that a tokenizer has none."""


def processor_kind(processor: Any) -> str:
    """The raw examples that a processor reads: ``text``, ``image`` or ``audio``.

    Raises:
        ValueError: not a tokenizer, image processor or feature extractor.
    """
    if hasattr(processor, "get_vocab"):
        return TEXT
    if hasattr(processor, "sampling_rate"):
        return AUDIO
    if hasattr(processor, "image_mean") or hasattr(processor, "rescale_factor"):
        return IMAGE
    raise ValueError(
        "Expected a tokenizer, an image processor or a feature extractor, got a "
        f"{type(processor).__name__}. Of a processor of several kinds pass the part that reads "
        "the raw column: processor.tokenizer, .image_processor or .feature_extractor."
    )


def value_kind(value: Any) -> str | None:
    """``text``, ``words``, ``image`` or ``audio``, the kind of a raw example; None: another one."""
    if isinstance(value, str):
        return TEXT
    if isinstance(value, list | tuple) and value and all(isinstance(word, str) for word in value):
        return WORDS
    if isinstance(value, Mapping):
        return AUDIO if {"array", "sampling_rate"} <= set(value) else None
    array = isinstance(value, np.ndarray) and value.ndim in (2, 3)
    return IMAGE if array or hasattr(value, "getbands") else None


def token_limit(processor: Any, positions: int | None) -> int | None:
    """Tokens after which texts are cut: the tokenizer's limit or the model's, if known."""
    limits = (getattr(processor, "model_max_length", None), positions)
    known = [limit for limit in limits if limit is not None and 0 < limit < UNLIMITED]
    return min(known, default=None)


def processed_texts(
    processor: Any, columns: Sequence[Sequence[Any]], limit: int | None = None
) -> Mapping[str, Any]:
    """Tokens of texts, of pairs of texts (two columns), or of lists of words, padded ``(B, T)``; of
    a text and a list of texts (two columns) those of each pair ``(B, C, T)``.

    Raises:
        ValueError: lists of different lengths.
    """
    if len(columns) == 2 and [value_kind(column[0]) for column in columns] == [TEXT, WORDS]:
        return _pairs(processor, columns[0], columns[1], limit)
    options = {} if limit is None else {"truncation": True, "max_length": limit}
    if isinstance(columns[0][0], list | tuple):
        options["is_split_into_words"] = True
    values = [list(column) for column in columns]
    tokens: Mapping[str, Any] = processor(*values, padding=True, return_tensors="pt", **options)
    return tokens


def _pairs(
    processor: Any, texts: Sequence[str], lists: Sequence[Sequence[str]], limit: int | None
) -> Mapping[str, Any]:
    counts = sorted({len(each) for each in lists})
    if len(counts) > 1:
        raise ValueError(
            f"Expected one number of candidates for all texts of a batch, got {counts}. Keep as "
            "many of each (dataset.map)."
        )
    first = [text for text, each in zip(texts, lists, strict=True) for _ in each]
    second = [candidate for each in lists for candidate in each]
    found = processed_texts(processor, (first, second), limit)
    return {name: value.unflatten(0, (len(texts), -1)) for name, value in found.items()}


def processed_images(processor: Any, values: Sequence[Any], channels: int = 3) -> Mapping[str, Any]:
    """Pixels of images (PIL, or arrays: uint8, or floats in [0, 1])."""
    mode = "L" if channels == 1 else "RGB"
    pictures = [picture(value).convert(mode) for value in values]
    images: Mapping[str, Any] = processor(pictures, return_tensors="pt")
    return images


def processed_sounds(
    processor: Any, values: Sequence[Any], resample: bool = False
) -> Mapping[str, Any]:
    """Samples or features of sounds, mappings with ``array`` and ``sampling_rate``.

    Args:
        processor: A feature extractor.
        values: The sounds.
        resample: Convert them to the extractor's sampling rate by a polyphase filter.

    Raises:
        ValueError: several sampling rates, without ``resample``.
    """
    arrays = [np.asarray(value["array"], np.float32) for value in values]
    rates = [int(value["sampling_rate"]) for value in values]
    if resample:
        wanted = int(processor.sampling_rate)
        pairs = zip(arrays, rates, strict=True)
        arrays, rates = [resampled(array, rate, wanted) for array, rate in pairs], [wanted]
    if len(set(rates)) > 1:
        raise ValueError(f"Expected one sampling rate for all sounds, got {sorted(set(rates))}.")
    usual = inspect.signature(processor.__call__).parameters.get("padding")
    fixed = usual is not None and isinstance(usual.default, str)  # Whisper's: always 30 s
    padding = usual.default if usual is not None and fixed else True
    sounds: Mapping[str, Any] = processor(
        arrays, sampling_rate=rates[0], padding=padding, return_tensors="pt"
    )
    return sounds


def resampled(array: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A sound ``(samples,)`` at another sampling rate."""
    if rate == wanted:
        return array
    from scipy.signal import resample_poly  # slow to import

    common = gcd(rate, wanted)
    found: np.ndarray = resample_poly(array, wanted // common, rate // common).astype(np.float32)
    return found


def differ(first: Any, second: Any) -> bool:
    """True if two processors of one kind may give different inputs for an example."""
    if hasattr(first, "get_vocab") and hasattr(second, "get_vocab"):
        return dict(first.get_vocab()) != dict(second.get_vocab())
    return bool(_settings(first) != _settings(second))


def _settings(processor: Any) -> Any:
    """The settings of a processor that change its outputs."""
    found = processor.to_dict() if hasattr(processor, "to_dict") else {"": type(processor)}
    names = (*_NAMES, "_valid_processor_keys")
    return {name: value for name, value in found.items() if name not in names}


_NAMES = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map")
