"""Perturbed inputs at five severities, for texts, pictures, sounds and tables.

    noisy = perturb(texts, "keyboard_typos", severity=3, seed=0)

Each value is perturbed by a separate generator, seeded by (seed, name, severity, the value's
content). So every model sees the same inputs, for every batch size and order, and the global
random state is neither read nor changed.

Values, by modality:
    text: a `str`.
    image: an array ``(H, W)`` or ``(H, W, C)``, 1 or 3 channels, of floats in [0, 1] or of uint8,
        or a PIL image in mode L or RGB. It is the picture *before* a processor normalises it.
    audio: a dict ``{"array": (T,) floats, "sampling_rate": Hz}``, as `datasets` gives it.
    tabular: a 1-D array of floats in standardised units (mean 0, deviation 1 per feature); for
        `interaction_drop` a list, tuple or array of item ids.

The same kind of value comes back, in the same shape and type.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hf_distill.robustness.perturbations.audio import AUDIO
from hf_distill.robustness.perturbations.base import (
    SEVERITIES,
    Perturbation,
    at,
    generator_for,
    plain,
)
from hf_distill.robustness.perturbations.extra import IMAGENET_C
from hf_distill.robustness.perturbations.image import IMAGE
from hf_distill.robustness.perturbations.tabular import TABULAR
from hf_distill.robustness.perturbations.text import TEXT
from hf_distill.utils.suggest import suggestion

__all__ = ["CORE", "PERTURBATIONS", "SEVERITIES", "Perturbation", "perturb", "perturbation"]

PERTURBATIONS: dict[str, Perturbation] = {
    p.name: p for p in (*TEXT, *IMAGE, *IMAGENET_C, *AUDIO, *TABULAR)
}
"""All of them by name. Those that start with `imagenet_c_` need `hf_distill[corruptions]`."""

CORE: dict[str, tuple[str, ...]] = {
    "text": (
        *("keyboard_typos", "character_swaps", "character_drops", "ocr_errors"),
        *("misspellings", "spacing", "random_case", "homoglyphs"),
    ),
    "image": (
        *("gaussian_noise", "shot_noise", "gaussian_blur", "motion_blur"),
        *("brightness", "contrast", "pixelate", "jpeg_compression"),
    ),
    "audio": (
        *("white_noise", "pink_noise", "gain", "clipping"),
        *("band_pass", "reverberation", "time_shift"),
    ),
    "tabular": ("feature_noise", "missing_values"),
}
"""The default set of a report. `interaction_drop` is for lists of item ids: name it for those."""


def perturbation(name: str, modality: str | None = None) -> Perturbation:
    """The perturbation of this name.

    Raises:
        ValueError: there is none, or it is for another modality than the one given.

    >>> perturbation("fog").family
    'weather'
    """
    if modality is not None and modality not in CORE:
        raise ValueError(f"Expected a modality out of {', '.join(CORE)}, got {modality!r}.")
    found = PERTURBATIONS.get(name)
    if found is None:
        known = [p.name for p in PERTURBATIONS.values() if modality in (None, p.modality)]
        hint = suggestion(name, known)
        raise ValueError(f"Expected the name of a perturbation, got {name!r}. {hint}")
    if modality not in (None, found.modality):
        raise ValueError(
            f"Expected a perturbation for {modality}, got {name!r}, which is for {found.modality}. "
            f"For {modality} there are: "
            f"{', '.join(p.name for p in PERTURBATIONS.values() if p.modality == modality)}."
        )
    return found


def perturb(values: Iterable[Any], name: str | Perturbation, severity: int, seed: int) -> list[Any]:
    """Perturb each value of one modality (see the module) at a severity from 1 to 5.

    The name is a key of `PERTURBATIONS`; a `Perturbation` of your own is possible too.

    Raises:
        ValueError: unknown name, a severity that is not 1 to 5, one text instead of a list of
            texts, or a value of another kind than the perturbation takes.

    >>> perturb(["Fine."], "upper_case", severity=5, seed=0)
    ['FINE.']
    """
    found = name if isinstance(name, Perturbation) else perturbation(name)
    at(severity, SEVERITIES)
    if isinstance(values, str | dict):
        raise ValueError(
            f"Expected a list of values, got one {type(values).__name__}. Wrap it: [value]."
        )
    return [
        found.apply(value, severity, generator_for(value, found.name, severity, seed))
        for value in map(plain, values)
    ]
