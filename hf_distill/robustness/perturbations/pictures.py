"""Conversion of images of every kind to ``(H, W, C)`` floats and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_distill.robustness.perturbations.base import at

Picture = np.ndarray
PictureFunction = Callable[[Picture, Any, np.random.Generator], Picture]


def as_bytes(picture: Picture) -> Picture:
    """Values in [0, 1] to the nearest of 0 to 255; one channel without its axis, as PIL wants."""
    picture = np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
    return picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture


def on_pictures(
    function: PictureFunction, constants: Sequence[Any]
) -> Callable[[Any, int, np.random.Generator], Any]:
    """Adapter for every kind of image: clips to [0, 1] and returns the input's kind."""

    @functools.wraps(function)
    def apply(value: Any, severity: int, rng: np.random.Generator) -> Any:
        array = values_of(value, function.__name__)
        picture = array if array.ndim == 3 else array[..., None]
        found = function(picture, at(severity, constants), rng)
        found = found.clip(0, 1).reshape(array.shape)
        if not isinstance(value, np.ndarray):
            from PIL import Image

            return Image.fromarray(as_bytes(found))
        if value.dtype == np.uint8:
            return np.rint(found * 255).astype(np.uint8)
        return found.astype(value.dtype)

    return apply


def values_of(value: Any, name: str) -> Picture:
    """Values of an image in float64 from 0 to 1, ``(H, W)`` or ``(H, W, C)``.

    Raises:
        ValueError: not a picture, another layout, other values.
    """
    if isinstance(value, np.ndarray):
        array = value
    elif getattr(value, "mode", None) in ("L", "RGB"):
        array = np.asarray(value)
    else:
        what = f"a PIL image of mode {value.mode}" if hasattr(value, "getbands") else type(value)
        raise ValueError(
            f"Expected a numpy array or a PIL image of mode L or RGB for {name!r}, got {what}. "
            "Give a tensor's `.numpy()`, another PIL image's `.convert(\"RGB\")`."
        )
    channels = array.shape[2:] or (1,)
    if array.size == 0 or array.ndim not in (2, 3) or channels[0] not in (1, 3):
        raise ValueError(
            f"Expected a picture (H, W) or (H, W, C) with 1 or 3 channels for {name!r}, got the "
            f"shape {array.shape}. Channels come last: use `.transpose(1, 2, 0)`."
        )
    if array.dtype == np.uint8:
        return array / 255
    if array.dtype.kind != "f" or not (array.min() >= -1e-6 and array.max() <= 1 + 1e-6):
        raise ValueError(
            f"Expected uint8 or floats in [0, 1] for {name!r}, got {array.dtype} from "
            f"{array.min()} to {array.max()}. Perturb a picture before its processor normalises it."
        )
    return array.astype(np.float64).clip(0, 1)
