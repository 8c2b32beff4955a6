"""Sounds of a data set as samples: decoded by soundfile, mono, at one sampling rate."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def read_audio(value: Any, sampling_rate: int) -> np.ndarray:
    """Samples of one sound at a sampling rate, the mean of its channels.

    Args:
        value: One of: a path; the bytes of a file; ``{"bytes", "path"}``, as an undecoded
            `datasets.Audio` column holds it; ``{"array", "sampling_rate"}`` with samples ``(T,)``
            or ``(channels, T)``; samples of that shape alone, already at ``sampling_rate``.
            Integer samples are divided by the full scale of their type.
        sampling_rate: Wanted samples per second.

    Returns:
        ``(T,)`` float32, resampled by `scipy.signal.resample_poly`.

    Raises:
        ValueError: a sound that cannot be read, or that has no samples.
    """
    mono, rate = _mono(value, sampling_rate)
    if rate != sampling_rate:
        mono = _resampled(mono, rate, sampling_rate)
    return np.ascontiguousarray(mono, dtype=np.float32)


def read_sound(value: Any, sampling_rate: int, seconds: float | None = None) -> dict[str, Any]:
    """One sound at its own sampling rate: ``array`` ``(T,)`` float32, and ``sampling_rate``.

    Args:
        value: As in `read_audio`.
        sampling_rate: The rate of samples that come without one.
        seconds: Length after which the sound is cut; None: it stays whole.

    Raises:
        ValueError: a sound that cannot be read, or that has no samples.
    """
    mono, rate = _mono(value, sampling_rate)
    length = len(mono) if seconds is None else max(1, round(seconds * rate))
    return {"array": np.ascontiguousarray(mono[:length], np.float32), "sampling_rate": rate}


def _mono(value: Any, sampling_rate: int) -> tuple[np.ndarray, int]:
    """The mean ``(T,)`` of a sound's channels, and its rate."""
    samples, rate = _decoded(value, sampling_rate)
    if not samples.size:
        raise ValueError(
            "Expected a sound of at least one sample, got one of 0 s. Leave the example out."
        )
    return (samples.mean(axis=0) if samples.ndim == 2 else samples), rate


def _decoded(value: Any, sampling_rate: int) -> tuple[np.ndarray, int]:
    """Samples ``(T,)`` or ``(channels, T)``, and their rate."""
    if isinstance(value, (str, Path, bytes, bytearray)):
        return _file_of(value)
    if isinstance(value, np.ndarray):
        return _floats(value), sampling_rate
    if isinstance(value, Mapping):
        if value.get("array") is not None:
            return _floats(np.asarray(value["array"])), int(value["sampling_rate"])
        content = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if content is not None:
            return _file_of(content)
    elif hasattr(value, "get_all_samples"):  # the decoder object of datasets with torchcodec
        return _floats(np.asarray(value["array"])), int(value["sampling_rate"])
    raise ValueError(
        "Expected a sound: a path, the bytes of a file, {'bytes', 'path'} or {'array', "
        f"'sampling_rate'}}, got {type(value).__name__}."
    )


def _file_of(content: str | Path | bytes | bytearray) -> tuple[np.ndarray, int]:
    opened: str | io.BytesIO
    try:
        import soundfile
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise ImportError(
            "Reading sounds needs soundfile: pip install 'hf_distill[recipes]'."
        ) from error
    if isinstance(content, (str, Path)):
        opened, what = str(content), str(content)
    else:
        opened, what = io.BytesIO(bytes(content)), f"{len(content)} bytes"
    try:
        samples, rate = soundfile.read(opened, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        reason = getattr(error, "error_string", str(error))
        raise ValueError(f"Expected a sound that soundfile reads, got {what}: {reason}") from error
    return samples.T, int(rate)


def _floats(samples: np.ndarray) -> np.ndarray:
    """Samples as float32 within [-1, 1] if they are integers, ``(T,)`` or ``(channels, T)``."""
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[0] > samples.shape[1]):
        raise ValueError(
            f"Expected samples of shape (T,) or (channels, T), got {samples.shape}. Transpose "
            "samples whose last dimension are channels."
        )
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    if samples.dtype.kind != "f":
        raise ValueError(f"Expected samples that are numbers, got {samples.dtype}.")
    return samples.astype(np.float32, copy=False)


def _resampled(samples: np.ndarray, old: int, new: int) -> np.ndarray:
    from scipy.signal import resample_poly

    common = math.gcd(old, new)
    resampled: np.ndarray = resample_poly(samples, new // common, old // common)
    return resampled
