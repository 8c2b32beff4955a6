"""All 15 corruptions of ImageNet-C by the package `imagecorruptions-imaug` (imported as
`imagecorruptions`), for comparison with other people's numbers.

They take colour pictures of at least 32 x 32 pixels. The package draws from numpy's global
generator, which is seeded for the call and put back afterwards: do not use them in several threads.
Its impulse noise and glass blur would draw a seed of their own and never repeat: they are given
one.

Reference: Hendrycks and Dietterich, 2019, arXiv:1903.12261; Michaelis et al., 2019, "Benchmarking
Robustness in Object Detection", arXiv:1907.07484 (the package, for any size).
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hf_distill.robustness.perturbations.base import SEVERITIES, Perturbation
from hf_distill.robustness.perturbations.pictures import as_bytes, on_pictures

FAMILIES: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""The paper's four groups: mCE is the mean over these 15."""

SEEDED_BY_ARGUMENT = ("impulse_noise", "glass_blur")
SMALLEST = 32


@contextlib.contextmanager
def _global_numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator within the block and restore it afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _corrupt(name: str, picture: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    if min(picture.shape[:2]) < SMALLEST or picture.shape[-1] != 3:
        raise ValueError(
            f"Expected a colour picture of at least {SMALLEST} x {SMALLEST} pixels for "
            f"'imagenet_c_{name}', got the shape {picture.shape}. Use {name!r} of hf_distill, "
            "which takes any picture, where there is one."
        )
    try:
        from imagecorruptions import corrupt
    except ImportError as error:
        raise ImportError(
            f"'imagenet_c_{name}' needs the package imagecorruptions-imaug: "
            "pip install 'hf_distill[corruptions]'."
        ) from error
    seed = int(rng.integers(2**32, dtype=np.uint64))
    given: dict[str, Any] = {"seed": seed} if name in SEEDED_BY_ARGUMENT else {}
    with _global_numpy_seed(seed), contextlib.redirect_stdout(io.StringIO()):  # it prints
        found = corrupt(as_bytes(picture), severity=severity, corruption_name=name, **given)
    return found / 255


def _named(name: str) -> Callable[[Any, int, np.random.Generator], Any]:
    function = functools.partial(_corrupt, name)
    function.__name__ = f"imagenet_c_{name}"  # type: ignore[attr-defined]
    return on_pictures(function, SEVERITIES)


IMAGENET_C: tuple[Perturbation, ...] = tuple(
    Perturbation(f"imagenet_c_{name}", "image", _named(name), family)
    for family, names in FAMILIES.items()
    for name in names
)
