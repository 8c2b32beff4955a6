"""Filters for image perturbations: numpy only, images ``(H, W, C)`` in float64."""

from __future__ import annotations

import functools

import numpy as np

Array = np.ndarray


def gaussian_blur(picture: Array, sigma: float) -> Array:
    """Convolve with a Gaussian of sigma pixels, cut off at 4 sigma; the border is repeated."""
    rows, columns = (_blur_matrix(size, sigma) for size in picture.shape[:2])
    blurred = np.tensordot(rows, picture, (1, 0))
    return np.tensordot(columns, blurred, (1, 1)).swapaxes(0, 1)


@functools.lru_cache(maxsize=16)
def _blur_matrix(size: int, sigma: float) -> Array:
    """Blur along a line as a matrix ``(size, size)``."""
    radius = int(4 * sigma + 0.5)
    steps = np.arange(-radius, radius + 1)
    taps = np.exp(-0.5 * (steps / sigma) ** 2)
    pixels = np.arange(size)[:, None]
    matrix = np.zeros((size, size))
    np.add.at(matrix, (pixels, (pixels + steps).clip(0, size - 1)), taps / taps.sum())
    return matrix


def disc(radius: float, grid: int = 8) -> Array:
    """The share of each pixel that a disc of this radius (in pixels) covers; sum 1."""
    reach = int(radius + 0.5)
    points = (np.arange((2 * reach + 1) * grid) + 0.5) / grid - reach - 0.5
    inside = (points[:, None] ** 2 + points**2 <= radius**2).astype(np.float64)
    share = inside.reshape(2 * reach + 1, grid, 2 * reach + 1, grid).mean((1, 3))
    return share / share.sum()


def convolve(picture: Array, kernel: Array) -> Array:
    """Convolve with a symmetric kernel ``(2r + 1, 2r + 1)``; the border is a mirror."""
    radius = len(kernel) // 2
    padded = np.pad(picture, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    size = padded.shape[:2]
    spectrum = np.fft.rfft2(padded, axes=(0, 1))
    spectrum *= np.fft.rfft2(kernel, size)[..., None]
    return np.fft.irfft2(spectrum, size, axes=(0, 1))[2 * radius :, 2 * radius :]


def sample(picture: Array, rows: Array, columns: Array) -> Array:
    """The picture read at these places ``(h, w)``, between pixels bilinearly; border repeated."""
    height, width = picture.shape[:2]
    rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
    top, left = rows.astype(np.intp), columns.astype(np.intp)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    upper = picture[top, left] * (1 - across) + picture[top, right] * across
    lower = picture[bottom, left] * (1 - across) + picture[bottom, right] * across
    return upper * (1 - down) + lower * down


def sample_lines(picture: Array, rows: Array, columns: Array) -> Array:
    """Like `sample`, at every row ``(h,)`` and column ``(w,)``."""
    for axis, places in ((0, rows), (1, columns)):
        last = picture.shape[axis] - 1
        places = places.clip(0, last)
        first = places.astype(np.intp)
        share = np.expand_dims(places - first, (1, 2) if axis == 0 else (0, 2))
        after = np.minimum(first + 1, last)
        picture = picture.take(first, axis) * (1 - share) + picture.take(after, axis) * share
    return picture


def middle(picture: Array) -> tuple[float, float]:
    """Row and column of the middle."""
    return (picture.shape[0] - 1) / 2, (picture.shape[1] - 1) / 2


def motion_blur(picture: Array, radius: float, sigma: float, angle: float) -> Array:
    """The mean of copies moved along a line, weighted by half a Gaussian; the border is repeated.

    Copy i of 2 radius + 1 is moved by i pixels at `angle` (degrees), to whole pixels, and weighs
    exp(-i^2 / (2 sigma^2)).
    """
    steps = np.arange(2 * int(radius + 0.5) + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    down = np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(np.intp)
    across = np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(np.intp)
    height, width = picture.shape[:2]
    reach = len(steps)
    padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    total = np.zeros_like(picture)
    for weight, y, x in zip(weights, down + reach, across + reach, strict=True):
        total += weight * padded[y : y + height, x : x + width]
    return total


def plasma(side: int, decay: float, rng: np.random.Generator) -> Array:
    """A cloud ``(side, side)`` in [0, 1] by the diamond-square method, on a torus.

    Each round halves the step: the middle of every square, then of every edge, becomes the mean of
    its four neighbours plus uniform noise, whose width falls by decay^2 from round to round. The
    side is a power of two, the decay 1.4 (rough) to 3 (smooth).

    Reference: Fournier, Fussell and Carpenter, 1982, "Computer rendering of stochastic models".
    """
    cloud = np.zeros((side, side))
    step, width = side, 1.0
    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        mean = (corners + np.roll(corners, -1, 0)) / 2
        mean = (mean + np.roll(mean, -1, 1)) / 2
        middles = mean + rng.uniform(-width, width, corners.shape)
        cloud[half::step, half::step] = middles
        for axis in (0, 1):  # edges along the columns, then along the rows
            ends = corners + np.roll(corners, -1, 1 - axis)
            sides = middles + np.roll(middles, 1, axis)
            edges = (ends + sides) / 4 + rng.uniform(-width, width, corners.shape)
            cloud[(slice(None, None, step), slice(half, None, step))[:: 1 - 2 * axis]] = edges
        step, width = half, width / decay**2
    cloud -= cloud.min()
    return cloud / max(cloud.max(), np.finfo(float).tiny)
