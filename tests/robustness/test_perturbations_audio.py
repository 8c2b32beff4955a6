"""Perturbations of sounds and tables: ratios, bands, rooms and shares measured on the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import signal

from hf_distill.robustness.perturbations import PERTURBATIONS, SEVERITIES, perturb

AUDIO = [p.name for p in PERTURBATIONS.values() if p.modality == "audio"]
RATE = 16000


def tones(*frequencies: float, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return 0.3 * np.sum([np.sin(2 * np.pi * f * time + f) for f in frequencies], 0)


def run(name: str, sound: np.ndarray, severity: int, seed: int = 0) -> np.ndarray:
    return perturb([{"array": sound, "sampling_rate": RATE}], name, severity, seed)[0]["array"]


def levels(constants: list[Any]) -> Any:
    return pytest.mark.parametrize(("severity", "c"), list(enumerate(constants, 1)))


def decibels(sound: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(sound**2) / np.sum(other**2)))


@levels([30, 20, 10, 5, 0])
@pytest.mark.parametrize("name", ["white_noise", "pink_noise"])
def test_the_ratio_is_the_one_asked_for(name: str, severity: int, c: float) -> None:
    """Amplitudes in place of powers would double every ratio in decibels."""
    for sound in (tones(440), 50 * tones(100, 3000, seconds=0.1)):
        noise = run(name, sound, severity) - sound
        assert decibels(sound, noise) == pytest.approx(c, abs=1e-9)


@pytest.mark.parametrize(("name", "slope"), [("white_noise", 0), ("pink_noise", -1)])
def test_the_colour_of_the_noise(name: str, slope: float) -> None:
    """By scipy's Welch estimate: power falls as f^slope; brown or blue noise masks other bands."""
    sound = tones(440, seconds=8)
    noise = run(name, sound, 5) - sound
    frequency, power = signal.welch(noise, RATE, nperseg=1024)
    used = slice(4, -2)
    found = np.polyfit(np.log(frequency[used]), np.log(power[used]), 1)[0]
    assert found == pytest.approx(slope, abs=0.05)
    kurtosis = np.mean((noise / noise.std()) ** 4)
    assert kurtosis == pytest.approx(3, abs=0.3)  # Gaussian


@levels([3, 6, 10, 15, 20])
def test_gain(severity: int, c: float) -> None:
    """Louder only, a model that fails on soft speech passes."""
    sound = tones(440)
    found = {round(decibels(run("gain", sound, severity, seed), sound), 6) for seed in range(20)}
    assert found == {-c, c}


@levels([0.01, 0.05, 0.1, 0.2, 0.4])
def test_clipping(severity: int, c: float) -> None:
    """The share of samples at the limit, whatever the level; all others stay as they are."""
    sound = np.random.default_rng(0).normal(size=5000)
    for scale in (1, 100):
        found = run("clipping", scale * sound, severity)
        at_limit = np.abs(found) >= np.abs(found).max() * (1 - 1e-12)
        assert at_limit.mean() == pytest.approx(c, abs=2 / 5000)
        assert np.array_equal(found[~at_limit], scale * sound[~at_limit])


@levels([(80, 7000), (150, 5500), (300, 3400), (400, 2500), (500, 2000)])
def test_band_pass(severity: int, c: tuple[float, float]) -> None:
    """Tones just inside the band pass unchanged, those just outside are gone."""
    low, high = c
    inside, outside = tones(low + 5, high - 5), tones(low - 5, high + 5)
    np.testing.assert_allclose(run("band_pass", inside + outside, severity), inside, atol=1e-9)
    below = {"array": np.ones(40), "sampling_rate": 100}  # a rate under which nothing passes
    assert np.abs(perturb([below], "band_pass", severity, 0)[0]["array"]).max() < 1e-12


@levels([(0.1, 10), (0.2, 6), (0.4, 3), (0.8, 0), (1.2, -3)])
def test_reverberation(severity: int, c: tuple[float, float]) -> None:
    """A click shows the room: the echo's energy and, by Schroeder's integral, its decay."""
    seconds, ratio = c
    click = np.zeros(int(2 * RATE))
    click[100] = 1
    room = run("reverberation", click, severity)
    assert np.abs(room[:100]).max() < 1e-12
    assert decibels(room[100:101], room[101:]) == pytest.approx(ratio, abs=0.01)
    assert np.sum(room**2) == pytest.approx(1)
    energy = np.cumsum(room[:100:-1] ** 2)[::-1]
    level = 10 * np.log10(energy[energy > 0] / energy[0])
    used = (level < -5) & (level > -35)
    slope = np.polyfit(np.flatnonzero(used) / RATE, level[used], 1)[0]
    assert -60 / slope == pytest.approx(seconds, rel=0.1)


@levels([0.01, 0.02, 0.05, 0.1, 0.2])
def test_time_shift(severity: int, c: float) -> None:
    """What leaves at one end must not come in at the other: sounds do not wrap around."""
    sound = np.random.default_rng(0).normal(size=1000)
    steps, silence = round(c * 1000), np.zeros(round(c * 1000))
    later, earlier = np.r_[silence, sound[:-steps]], np.r_[sound[steps:], silence]
    found = [run("time_shift", sound, severity, seed) for seed in range(20)]
    assert all(np.array_equal(f, later) or np.array_equal(f, earlier) for f in found)
    assert len({f[0] for f in found}) == 2


@pytest.mark.parametrize("name", AUDIO)
def test_a_sound_keeps_its_kind(name: str) -> None:
    """Another length or type breaks the batch; silence and a single sample must not give NaN."""
    for sound in (tones(440, seconds=0.05), np.zeros(100), np.ones(1), np.zeros(2)):
        for kind in (np.float32, np.float64):
            given = {"array": sound.astype(kind), "sampling_rate": RATE, "path": "a.wav"}
            for severity in (1, 5):
                found = perturb([given], name, severity, 0)[0]
                assert {**found, "array": 0} == {**given, "array": 0}
                assert (found["array"].shape, found["array"].dtype) == (sound.shape, kind)
                assert np.isfinite(found["array"]).all()


@pytest.mark.parametrize("name", AUDIO)
def test_a_higher_severity_is_farther_away(name: str) -> None:
    """A curve of accuracy over severity would go up and down for no reason of the model."""
    rng = np.random.default_rng(0)
    walk = rng.normal(size=8000).cumsum()
    sound = (walk - walk.mean()) / walk.std() + 0.3 * rng.normal(size=8000)
    given = {"array": sound, "sampling_rate": RATE}
    apply = PERTURBATIONS[name].apply
    means = [
        np.mean(
            [
                np.std(apply(given, severity, np.random.default_rng(seed))["array"] - sound)
                for seed in range(10)  # the same directions at each severity
            ]
        )
        for severity in SEVERITIES
    ]
    assert all(np.diff(means) > 0), means


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros(4), "Audio"),
        ({"array": np.zeros(4)}, "sampling_rate"),
        ({"array": np.zeros((2, 4)), "sampling_rate": 1}, "Mix channels down"),
        ({"array": np.zeros(4, np.int16), "sampling_rate": 1}, "divide whole numbers"),
        ({"array": np.zeros(0), "sampling_rate": 1}, "Expected a sound"),
        ({"array": np.zeros(4), "sampling_rate": 0}, "rate above 0"),
        ({"array": np.array([np.nan]), "sampling_rate": 1}, "got NaN"),
    ],
)
def test_other_sounds_are_refused(value: Any, says: str) -> None:
    """16-bit samples read as floats would bury the noise."""
    with pytest.raises(ValueError, match=says):
        perturb([value], "white_noise", 1, 0)


# ---- tables -------------------------------------------------------------------------------------


@levels([0.1, 0.2, 0.4, 0.7, 1.0])
def test_feature_noise(severity: int, c: float) -> None:
    """Variance in place of deviation would be another axis of the report."""
    noise = perturb([np.full(20000, 3.0)], "feature_noise", severity, 0)[0] - 3
    assert noise.std() == pytest.approx(c, rel=0.03)
    assert abs(noise.mean()) < 5 * c / 20000**0.5


@levels([0.05, 0.1, 0.2, 0.35, 0.5])
def test_missing_values_and_dropped_interactions(severity: int, c: float) -> None:
    """The share that is lost, the rest in its order and unchanged."""
    row = np.random.default_rng(0).normal(size=101)
    found = perturb([row], "missing_values", severity, 0)[0]
    assert abs(np.sum(found == 0) - 101 * c) < 1
    assert np.array_equal(found[found != 0], row[found != 0])
    items = list(range(500, 601))
    for given in (items, tuple(items), np.array(items), [f"item{i}" for i in items]):
        found = perturb([given], "interaction_drop", severity, 0)[0]
        assert type(found) is type(given)
        assert abs(len(found) - 101 * (1 - c)) < 1
        rest = iter(given)
        assert all(item in rest for item in found)


def test_tables_keep_their_kind() -> None:
    """A user without interactions, or a list that becomes an array, breaks the model's input."""
    for name in ("feature_noise", "missing_values"):
        for row in ([0.5, 1.5], (0.5, 1.5), np.ones(2, np.float32), np.ones(0)):
            found = perturb([row], name, 5, 0)[0]
            assert type(found) is type(row)
            assert len(found) == len(row)
            assert np.asarray(found).dtype == np.asarray(row).dtype
    assert perturb([[7], []], "interaction_drop", 5, 0) == [[7], []]
    assert all(len(perturb([[7, 8]], "interaction_drop", 5, s)[0]) == 1 for s in range(9))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("feature_noise", np.zeros((2, 2)), "one row at a time"),
        ("feature_noise", np.zeros(2, np.int64), "standardised units"),
        ("missing_values", np.array([np.nan]), "Fill missing values"),
        ("interaction_drop", np.zeros(3), "For features use 'missing_values'"),
        ("interaction_drop", "1 2 3", "Expected a list"),
    ],
)
def test_other_tables_are_refused(name: str, value: Any, says: str) -> None:
    """Noise of one deviation on raw units is nothing, or everything."""
    with pytest.raises(ValueError, match=says):
        perturb([value], name, 1, 0)
