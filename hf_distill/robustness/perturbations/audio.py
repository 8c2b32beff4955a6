"""Perturbations of sound: noise at a given ratio, level, clipping, band, room and time.

Each takes ``(samples (T,), sampling rate in Hz, severity, generator)``. Samples are not cut off at
+-1, except by `clipping`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from hf_distill.robustness.perturbations.base import Perturbation, at

Sound = np.ndarray
SoundFunction = Callable[[Sound, float, int, np.random.Generator], Sound]

SNR_DB = (30.0, 20.0, 10.0, 5.0, 0.0)
"""Signal to noise in decibels, 10 log10(mean x^2 / mean n^2)."""
GAIN_DB = (3.0, 6.0, 10.0, 15.0, 20.0)
"""Gain in decibels, louder or softer."""
CLIPPED = (0.01, 0.05, 0.1, 0.2, 0.4)
"""Share of the samples that are at the limit."""
BAND_HZ = ((80, 7000), (150, 5500), (300, 3400), (400, 2500), (500, 2000))
"""Lowest and highest frequency that passes; (300, 3400) is the telephone's."""
REVERBERATION = ((0.1, 10.0), (0.2, 6.0), (0.4, 3.0), (0.8, 0.0), (1.2, -3.0))
"""Seconds until the echo is 60 dB down (RT60), and direct to reverberant energy in decibels."""
SHIFT = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Share of the length."""


def _power(sound: Sound) -> float:
    return float(np.mean(sound**2))


def _at_ratio(sound: Sound, noise: Sound, decibels: float) -> Sound:
    """The noise added so that the ratio is exact for this very noise; silence stays silent."""
    scale = _power(sound) / max(_power(noise), np.finfo(float).tiny) / 10 ** (decibels / 10)
    return sound + np.sqrt(scale) * noise


def white_noise(sound: Sound, rate: float, severity: int, rng: np.random.Generator) -> Sound:
    """Gaussian noise with the same power at all frequencies, at `SNR_DB`."""
    return _at_ratio(sound, rng.standard_normal(len(sound)), at(severity, SNR_DB))


def pink_noise(sound: Sound, rate: float, severity: int, rng: np.random.Generator) -> Sound:
    """Gaussian noise with power 1/f (equal per octave) and no mean, at `SNR_DB`."""
    spectrum = np.fft.rfft(rng.standard_normal(len(sound)))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    return _at_ratio(sound, np.fft.irfft(spectrum, len(sound)), at(severity, SNR_DB))


def gain(sound: Sound, rate: float, severity: int, rng: np.random.Generator) -> Sound:
    """Louder or softer by `GAIN_DB`, with equal chance. A normalising processor undoes it."""
    return sound * 10 ** (rng.choice([-1, 1]) * at(severity, GAIN_DB) / 20)


def clipping(sound: Sound, rate: float, severity: int, rng: np.random.Generator) -> Sound:
    """Cut off at the level that a share `CLIPPED` of the samples exceeds."""
    limit = np.quantile(np.abs(sound), 1 - at(severity, CLIPPED))
    return sound.clip(-limit, limit)


def band_pass(sound: Sound, rate: float, severity: int, rng: np.random.Generator) -> Sound:
    """Only the frequencies in `BAND_HZ` kept, by an ideal filter."""
    low, high = at(severity, BAND_HZ)
    spectrum = np.fft.rfft(sound)
    frequency = np.fft.rfftfreq(len(sound), 1 / rate)
    spectrum[(frequency < low) | (frequency > high)] = 0
    return np.fft.irfft(spectrum, len(sound))


def reverberation(sound: Sound, rate: float, severity: int, rng: np.random.Generator) -> Sound:
    """Convolved with a synthetic room: the direct sound, then noise that dies away exponentially.

    Reference: Moorer, 1979, "About this reverberation business".
    """
    seconds, decibels = at(severity, REVERBERATION)
    time = np.arange(1, max(int(seconds * rate), 1) + 1) / rate
    echo = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    echo *= 10 ** (-decibels / 20) / np.sqrt(np.sum(echo**2))
    room = np.concatenate([[1.0], echo])
    size = len(sound) + len(room) - 1
    wet = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(room, size), size)[: len(sound)]
    return wet * np.sqrt(_power(sound) / max(_power(wet), np.finfo(float).tiny))


def time_shift(sound: Sound, rate: float, severity: int, rng: np.random.Generator) -> Sound:
    """Shift by a share `SHIFT` of the length, earlier or later; the gap is filled with silence."""
    steps = int(np.rint(at(severity, SHIFT) * len(sound)))
    moved = np.zeros_like(sound)
    if rng.random() < 0.5:
        moved[steps:] = sound[: len(sound) - steps]
    else:
        moved[: len(sound) - steps] = sound[steps:]
    return moved


def _on_sound(function: SoundFunction) -> Callable[[Any, int, np.random.Generator], Any]:
    """Adapter from arrays to checked audio dicts."""

    @functools.wraps(function)
    def apply(value: Any, severity: int, rng: np.random.Generator) -> Any:
        try:
            array, rate = np.asarray(value["array"]), float(value["sampling_rate"])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f'Expected {{"array": ..., "sampling_rate": ...}} for {function.__name__!r}, got '
                f"{type(value).__name__}. Give the row of an `Audio` column of `datasets`."
            ) from error
        if array.ndim != 1 or not array.size or array.dtype.kind != "f" or rate <= 0:
            raise ValueError(
                f"Expected a sound (T,) of floats and a sampling rate above 0 for "
                f"{function.__name__!r}, got {array.dtype} {array.shape} at {rate:g} Hz. Mix "
                "channels down, and divide whole numbers by their largest value."
            )
        if not np.isfinite(array).all():
            raise ValueError(f"Expected finite samples for {function.__name__!r}, got NaN or inf.")
        found = function(array.astype(np.float64), rate, severity, rng)
        return {**dict(value), "array": found.astype(array.dtype)}

    return apply


AUDIO: tuple[Perturbation, ...] = tuple(
    Perturbation(function.__name__, "audio", _on_sound(function), family)
    for family, functions in {
        "noise": (white_noise, pink_noise),
        "level": (gain, clipping),
        "channel": (band_pass, reverberation),
        "time": (time_shift,),
    }.items()
    for function in functions
)
