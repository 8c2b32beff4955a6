"""Perturbations of pictures: ImageNet-C's definitions and constants, at any size, in numpy.

Each function takes ``(picture, constant, generator)``, the constant c being that of the severity in
`CONSTANTS` and the picture ``(H, W, C)`` in float64 from 0 to 1 with 1 or 3 channels; other kinds
are converted by `on_pictures`.

ImageNet-C's constants are for pictures whose shorter side is `REFERENCE_SIZE` = 224 pixels, and at
that size they are used as published. At another size a length in pixels c becomes

    c s + floor max(0, 1 - s),  s = shorter side / 224,

so that a picture and its enlargement are blurred alike, and a small picture is blurred at all: at
32 x 32 the sigma of the Gaussian blur is that of CIFAR-10-C to 0.12 pixels. Shares of the picture
(pixelate, zoom, translate) and changes of values are ImageNet-C's at every size.

At 224 pixels contrast, brightness, saturation, JPEG and Gaussian blur equal the functions of
`imagecorruptions-imaug` 1.1.5, and pixelation up to its rounding to whole numbers. Motion blur (for
the same angle) and the elastic transform follow that package, not the paper's first code. Do not
compare with published ImageNet-C results, whose pictures were once more compressed.

References: Hendrycks and Dietterich, 2019, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", arXiv:1903.12261; Michaelis et al., 2019, "Benchmarking Robustness
in Object Detection", arXiv:1907.07484 (the package).
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from hf_distill.robustness.perturbations import filters
from hf_distill.robustness.perturbations.base import Perturbation
from hf_distill.robustness.perturbations.pictures import (
    Picture,
    PictureFunction,
    as_bytes,
    on_pictures,
)

Pair = tuple[float, float]

REFERENCE_SIZE = 224
"""The shorter side, in pixels, at which the constants are those of the paper."""

CONSTANTS: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # deviation
    "shot_noise": (60, 25, 12, 5, 3),  # photons at value 1
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),  # share of the values
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),  # deviation at value 1
    "gaussian_blur": (1, 2, 3, 4, 6),  # sigma
    "defocus_blur": (3, 4, 6, 8, 10),  # radius
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),  # radius, sigma
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "fog": ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),  # thickness, decay
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added to V of HSV
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # factor
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),  # factor and addend of S
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),  # share of the sides
    "jpeg_compression": (25, 18, 15, 10, 7),  # quality
    "elastic_transform": (12.5, 16.25, 21.25, 25.0, 30.0),  # strength
    "translate": (0.02, 0.05, 0.1, 0.15, 0.2),  # share of the shorter side
    "rotate": (5, 10, 15, 20, 30),  # degrees
}
"""Constants at severities 1 to 5: ImageNet-C's, except elastic transform (the package's), translate
and rotate (ours)."""

FLOORS: dict[str, float] = {
    "gaussian_blur": 0.3,
    "defocus_blur": 0.5,
    "motion_blur_radius": 5,
    "motion_blur_sigma": 0.7,
    "elastic_transform": 1.0,
}
"""Lengths in pixels that a picture's blur tends to as the picture gets smaller."""


def in_pixels(length: float, picture: Picture, floor: float) -> float:
    """A length of the paper at this picture's size: c s + floor max(0, 1 - s)."""
    scale = min(picture.shape[:2]) / REFERENCE_SIZE
    return length * scale + floor * max(0.0, 1 - scale)


# ---- noise -----------------------------------------------------------------------------------


def gaussian_noise(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """x + c n, n from N(0, 1), for each value."""
    return picture + rng.normal(scale=c, size=picture.shape)


def shot_noise(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """Poisson(c x) / c: shot noise with c photons at full brightness."""
    return rng.poisson(picture * c) / c


def impulse_noise(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """A share c of the values set to 0 or 1, with equal chance."""
    hit = rng.random(picture.shape) < c
    return np.where(hit, rng.random(picture.shape) < 0.5, picture)


def speckle_noise(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """x + c x n, n from N(0, 1): noise that grows with the value."""
    return picture + picture * rng.normal(scale=c, size=picture.shape)


# ---- blur ------------------------------------------------------------------------------------


def gaussian_blur(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """Convolved with a Gaussian of sigma c."""
    return filters.gaussian_blur(picture, in_pixels(c, picture, FLOORS["gaussian_blur"]))


def defocus_blur(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """Convolved with a disc of radius c, with an edge smoothed by the share of each pixel that it
    covers (ImageNet-C blurs a disc of whole pixels, with weights whose sum is up to 1.013)."""
    radius = in_pixels(c, picture, FLOORS["defocus_blur"])
    return filters.convolve(picture, filters.disc(radius))


def motion_blur(picture: Picture, constants: Pair, rng: np.random.Generator) -> Picture:
    """Smeared along a line at an angle from -45 to 45 degrees."""
    radius, sigma = constants
    return filters.motion_blur(
        picture,
        in_pixels(radius, picture, FLOORS["motion_blur_radius"]),
        in_pixels(sigma, picture, FLOORS["motion_blur_sigma"]),
        angle=rng.uniform(-45, 45),
    )


def zoom_blur(picture: Picture, constants: Pair, rng: np.random.Generator) -> Picture:
    """The mean of the picture and of it enlarged by 1, 1 + step ... about its middle."""
    stop, step = constants
    factors = np.arange(1, stop, step)
    total = picture.copy()
    for factor in factors:
        places = [
            (np.arange(size) - half) / factor + half
            for size, half in zip(picture.shape, filters.middle(picture), strict=False)
        ]
        total += filters.sample_lines(picture, *places)
    return total / (len(factors) + 1)


# ---- weather, values -------------------------------------------------------------------------


def fog(picture: Picture, constants: Pair, rng: np.random.Generator) -> Picture:
    """(x + c plasma) max(x) / (max(x) + c)."""
    c, decay = constants
    height, width = picture.shape[:2]
    side = 1 << max(max(height, width) - 1, 1).bit_length()
    cloud = filters.plasma(side, decay, rng)[:height, :width, None]
    return (picture + c * cloud) * picture.max() / (picture.max() + c)


def brightness(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """V + c in HSV, where V is the largest channel: all channels times min(V + c, 1) / V."""
    value = picture.max(-1, keepdims=True)
    brighter = np.minimum(value + c, 1)
    return np.where(value > 0, picture * brighter / np.where(value > 0, value, 1), brighter)


def contrast(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """c (x - mean) + mean, with the mean of each channel."""
    mean = picture.mean((0, 1), keepdims=True)
    return (picture - mean) * c + mean


def saturate(picture: Picture, constants: Pair, rng: np.random.Generator) -> Picture:
    """c S + d in HSV, where S = 1 - min / max over the channels; 1 and 2 fade, 3 to 5 glare.

    As in ImageNet-C, a grey pixel is given a hue of 0 and so turns red where d > 0.
    """
    if picture.shape[-1] != 3:
        raise ValueError(
            f"Expected a picture with 3 channels for 'saturate', got {picture.shape[-1]}. "
            "A grey picture has no saturation: leave this perturbation out."
        )
    factor, addend = constants
    value = picture.max(-1, keepdims=True)
    spread = value - picture.min(-1, keepdims=True)  # S V
    wanted = value * np.minimum(spread / np.where(value > 0, value, 1) * factor + addend, 1)
    hue = np.where(spread > 0, (value - picture) / np.where(spread > 0, spread, 1), (0, 1, 1))
    return value - hue * wanted


# ---- digital, geometry -----------------------------------------------------------------------


def pixelate(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """Reduced to a share c of its sides (mean of boxes) and enlarged again (nearest pixel)."""
    from PIL import Image

    height, width = picture.shape[:2]
    small = max(int(width * c), 1), max(int(height * c), 1)
    channels = [
        Image.fromarray(channel.astype(np.float32))
        .resize(small, Image.Resampling.BOX)
        .resize((width, height), Image.Resampling.NEAREST)
        for channel in np.moveaxis(picture, -1, 0)
    ]
    return np.stack([np.asarray(channel, np.float64) for channel in channels], -1)


def jpeg_compression(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """Written as a JPEG of quality c and read again."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(as_bytes(picture)).save(file, "JPEG", quality=c)
    with Image.open(file) as image:
        return np.asarray(image, np.float64).reshape(picture.shape) / 255


def elastic_transform(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """Each pixel read from a place moved by c times noise, uniform in +-0.005 H, that is blurred by
    a Gaussian of 0.01 of the shorter side (1 pixel at least)."""
    height, width = picture.shape[:2]
    sigma = max(0.01 * min(height, width), FLOORS["elastic_transform"])
    noise = rng.uniform(-0.005 * height, 0.005 * height, (height, width, 2))
    rows, columns = np.moveaxis(c * filters.gaussian_blur(noise, sigma), -1, 0)
    return filters.sample(
        picture, np.arange(height)[:, None] + rows, np.arange(width)[None] + columns
    )


def translate(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """Moved by a share c of the shorter side, in any direction; the border is repeated."""
    distance = c * min(picture.shape[:2])
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = map(np.arange, picture.shape[:2])
    return filters.sample_lines(
        picture, rows + distance * np.sin(angle), columns + distance * np.cos(angle)
    )


def rotate(picture: Picture, c: float, rng: np.random.Generator) -> Picture:
    """Turned by c degrees about its middle, to either side; the border is repeated."""
    angle = np.deg2rad(c) * rng.choice([-1, 1])
    middle_row, middle_column = filters.middle(picture)
    rows = np.arange(picture.shape[0])[:, None] - middle_row
    columns = np.arange(picture.shape[1])[None] - middle_column
    sine, cosine = np.sin(angle), np.cos(angle)
    return filters.sample(
        picture,
        cosine * rows - sine * columns + middle_row,
        sine * rows + cosine * columns + middle_column,
    )


_FAMILIES: dict[str, tuple[PictureFunction, ...]] = {
    "noise": (gaussian_noise, shot_noise, impulse_noise, speckle_noise),
    "blur": (gaussian_blur, defocus_blur, motion_blur, zoom_blur),
    "weather": (fog, brightness),
    "digital": (contrast, saturate, pixelate, jpeg_compression, elastic_transform),
    "geometry": (translate, rotate),
}
IMAGE = tuple(
    Perturbation(f.__name__, "image", on_pictures(f, CONSTANTS[f.__name__]), family)
    for family, functions in _FAMILIES.items()
    for f in functions
)
