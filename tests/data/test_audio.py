"""Decoding of sounds, against the standard library's wave module and sines of known frequency."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_distill.data.audio import read_audio

pytest.importorskip("soundfile")


def wav(samples: np.ndarray, rate: int) -> bytes:
    """A 16-bit file of int16 samples ``(T, channels)``, written by the standard library."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def sine(rate: int, hertz: float = 440.0, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


STEREO = np.random.default_rng(0).integers(-30_000, 30_000, (200, 2))
MEAN = STEREO.mean(axis=1) / 2**15


@pytest.mark.parametrize("form", ["path", "bytes", "struct", "struct of a path", "array", "alone"])
def test_every_form_has_the_mean_of_the_channels(tmp_path: Path, form: str) -> None:
    """A channel that is dropped, or integers that are not scaled, are other sounds."""
    content = wav(STEREO, 8000)
    path = tmp_path / "sound.wav"
    path.write_bytes(content)
    samples = STEREO.T.astype(np.int16)
    values: dict[str, Any] = {
        "path": str(path),
        "bytes": content,
        "struct": {"bytes": content, "path": "elsewhere.wav"},
        "struct of a path": {"bytes": None, "path": str(path)},
        "array": {"array": samples, "sampling_rate": 8000},
        "alone": samples,
    }
    found = read_audio(values[form], 8000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, MEAN, atol=1e-6)


@pytest.mark.parametrize("rates", [(44_100, 16_000), (8000, 16_000), (16_000, 8000)])
def test_another_rate_has_the_same_sound(rates: tuple[int, int]) -> None:
    """A sound that is only relabelled plays at another pitch, and no error is raised."""
    old, new = rates
    found = read_audio({"array": sine(old), "sampling_rate": old}, new)
    expected = sine(new)
    assert len(found) == len(expected)
    inner = slice(len(found) // 10, -len(found) // 10)  # filters ring at the ends
    np.testing.assert_allclose(found[inner], expected[inner], atol=2e-3)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (wav(np.zeros((0, 1)), 8000), "got one of 0 s"),
        ({"array": np.zeros(0, np.float32), "sampling_rate": 8000}, "got one of 0 s"),
        (b"no sound at all", "soundfile reads, got 15 bytes"),
        ("nowhere.wav", "got nowhere.wav"),
        ({"bytes": None, "path": None}, "Expected a sound: a path"),
        (3.5, "got float"),
        (np.zeros((100, 2), np.float32), r"\(channels, T\), got \(100, 2\)"),
    ],
)
def test_what_is_no_sound_is_refused(value: Any, told: str) -> None:
    """An unreadable file becomes silence with a label."""
    with pytest.raises(ValueError, match=told):
        read_audio(value, 8000)
