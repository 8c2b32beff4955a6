"""What holds for every perturbation: repeatable, each value for itself, of the same kind."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_distill.robustness.perturbations import (
    CORE,
    PERTURBATIONS,
    SEVERITIES,
    Perturbation,
    perturb,
    perturbation,
)
from hf_distill.robustness.perturbations.base import generator_for

OWN = [p for p in PERTURBATIONS.values() if not p.name.startswith("imagenet_c_")]
FIXED = {
    "gaussian_blur", "defocus_blur", "zoom_blur", "brightness", "contrast", "saturate", "pixelate",
    "jpeg_compression", "clipping", "band_pass",
}  # fmt: skip
"""Those that draw nothing."""
SENTENCES = (
    "The movie isn't really the worst that I have seen, but their acting was Definitely terrible.",
    "We did not believe the government's argument; however, it is an Interesting beginning!",
    "A beautiful film about friends, which I would recommend to everyone. You will not forget it.",
)


def values(p: Perturbation) -> list[Any]:
    """A few different values that the perturbation changes."""
    rng = np.random.default_rng(7)
    if p.modality == "text":
        return [" ".join(SENTENCES[i:] + SENTENCES[:i]) for i in range(3)]
    if p.modality == "image":
        smooth = rng.random((4, 6, 6, 3)).repeat(5, 1).repeat(5, 2)
        return list((0.8 * smooth + 0.2 * rng.random(smooth.shape)).astype(np.float32))
    if p.modality == "audio":
        sounds = rng.normal(size=(3, 4000)).cumsum(1) / 100
        return [{"array": s.astype(np.float32), "sampling_rate": 8000, "path": "x"} for s in sounds]
    if p.name == "interaction_drop":
        return [list(range(start, start + 60)) for start in range(3)]
    return list(rng.normal(size=(3, 60)).astype(np.float32))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and np.array_equal(a, b)


@pytest.mark.parametrize("p", OWN, ids=lambda p: p.name)
def test_repeats_alone_and_in_any_order(p: Perturbation) -> None:
    """Models of another batch size or order would be compared on other inputs."""
    given = values(p)
    for severity in (1, 4):
        together = perturb(given, p.name, severity, seed=3)
        backwards = perturb(given[::-1], p.name, severity, seed=3)[::-1]
        alone = [perturb([value], p.name, severity, seed=3)[0] for value in given]
        for a, b, c in zip(together, backwards, alone, strict=True):
            assert same(a, b)
            assert same(a, c)
    other_seed = perturb(given, p.name, 4, seed=4)
    differs = [not same(a, b) for a, b in zip(together, other_seed, strict=True)]
    assert any(differs) == (p.name not in FIXED)


@pytest.mark.parametrize("p", OWN, ids=lambda p: p.name)
def test_leaves_the_input_and_the_global_random_state(p: Perturbation) -> None:
    """The clean column would be measured on noisy inputs; training after a report would change."""
    given, untouched = values(p), values(p)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    perturb(given, p.name, 5, seed=0)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    assert all(same(a, b) for a, b in zip(given, untouched, strict=True))


@pytest.mark.parametrize("p", OWN, ids=lambda p: p.name)
def test_every_severity_changes_something(p: Perturbation) -> None:
    """A severity that does nothing is reported as robustness."""
    for severity in SEVERITIES:
        given = values(p)
        found = perturb(given, p.name, severity, seed=1)
        assert len(found) == len(given)
        assert not all(same(a, b) for a, b in zip(given, found, strict=True)), severity


def test_the_generator_is_the_same_on_every_machine() -> None:
    """With Python's own hash, which changes from process to process, no report could be repeated.

    The first 64 bits of PCG64, whose stream numpy keeps, seeded by xxhash's value.
    """
    raw = generator_for("abc", "fog", 2, 7).bit_generator.random_raw()
    assert raw == 2725367759896513722
    for other in (
        ("abd", "fog", 2, 7),
        ("abc", "fox", 2, 7),
        ("abc", "fog", 3, 7),
        ("abc", "fog", 2, 8),
    ):
        assert generator_for(*other).bit_generator.random_raw() != raw


def test_content_is_what_counts() -> None:
    """A sound's path differs between machines; a picture and its array are the same picture."""
    sound = {"array": np.ones(8, np.float32), "sampling_rate": 16000}
    raw = generator_for(sound, "gain", 1, 0).bit_generator.random_raw()
    moved = {**sound, "path": "/elsewhere.wav", "bytes": b"..."}
    assert generator_for(moved, "gain", 1, 0).bit_generator.random_raw() == raw
    slower = {**sound, "sampling_rate": 8000}
    assert generator_for(slower, "gain", 1, 0).bit_generator.random_raw() != raw
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    a, b = perturb([Image.fromarray(pixels), pixels], "gaussian_noise", 3, seed=0)
    assert np.array_equal(np.asarray(a), b)
    transposed = np.ascontiguousarray(pixels.transpose(1, 0, 2)).transpose(1, 0, 2)
    assert np.array_equal(perturb([transposed], "gaussian_noise", 3, seed=0)[0], b)
    with pytest.raises(ValueError, match="Expected a text, a picture"):
        generator_for(object(), "gain", 1, 0)


def test_a_decoder_of_datasets_is_a_sound() -> None:
    """`datasets` 4 gives an object that decodes when read: its address would be the seed."""

    class Decoder:
        def get_all_samples(self) -> None: ...

        def __getitem__(self, key: str) -> Any:
            return {"array": np.linspace(-1, 1, 50), "sampling_rate": 100}[key]

    found = perturb([Decoder()], "white_noise", 3, seed=0)[0]
    plain = {"array": np.linspace(-1, 1, 50), "sampling_rate": 100}
    assert same(found, perturb([plain], "white_noise", 3, seed=0)[0])


def test_core_sets() -> None:
    """A report would fail on its own default, or run another modality's perturbations."""
    assert set(CORE) == {p.modality for p in PERTURBATIONS.values()}
    for modality, names in CORE.items():
        assert 2 <= len(names) <= 8
        assert len(set(names)) == len(names)
        for name in names:
            assert perturbation(name, modality) is PERTURBATIONS[name]
            assert not name.startswith("imagenet_c_")
    assert all(p.name == name for name, p in PERTURBATIONS.items())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: perturbation("keybord_typo"), "Did you mean 'keyboard_typos'"),
        (lambda: perturbation("gaussian"), "Did you mean 'gaussian_"),
        (lambda: perturbation("xyzzy", "audio"), "Choose from: white_noise"),
        (lambda: perturbation("fog", "text"), "which is for image"),
        (lambda: perturbation("fog", "video"), "Expected a modality out of text, image"),
        (lambda: perturb(["a"], "upper_case", 0, 0), "severity from 1 to 5, got 0"),
        (lambda: perturb(["a"], "upper_case", 6, 0), "severity from 1 to 5, got 6"),
        (lambda: perturb("a text", "upper_case", 1, 0), "Expected a list of values, got one str"),
        (lambda: perturb([5], "upper_case", 1, 0), r"Expected a text \(str\) for 'upper_case'"),
        (lambda: perturb(["a"], "fog", 1, 0), "Expected a numpy array or a PIL image"),
        (lambda: perturb(["a"], "gain", 1, 0), "Audio"),
        (lambda: perturb(["a"], "feature_noise", 1, 0), "Expected a 1-D array"),
    ],
)
def test_errors_say_what_to_do(call: Any, says: str) -> None:
    """A wrong name or kind of value ends in a traceback from inside numpy, or in wrong noise."""
    with pytest.raises(ValueError, match=says):
        call()


def test_a_perturbation_of_ones_own() -> None:
    """The seeding would depend on the table of ours."""
    own = Perturbation("own", "tabular", lambda v, s, rng: v + s * rng.normal(size=len(v)), "noise")
    rows = [np.zeros(3), np.ones(3)]
    assert same(perturb(rows, own, 2, 0)[1], perturb(rows[1:], own, 2, 0)[0])
