"""ImageNet-C's own functions by the optional package, and ours against them at 224 x 224."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from hf_distill.robustness.perturbations import PERTURBATIONS, SEVERITIES, filters, perturb

NAMES = [n for n in PERTURBATIONS if n.startswith("imagenet_c_")]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return load_sample_image("china.jpg")[100:324, 200:424].copy()


@pytest.fixture
def package() -> Any:
    return pytest.importorskip("imagecorruptions.corruptions", exc_type=ImportError)


def test_the_fifteen() -> None:
    """mCE is the mean over the paper's 15, in its groups of 3, 4, 4 and 4."""
    families = [PERTURBATIONS[n].family for n in NAMES]
    counts = {family: families.count(family) for family in families}
    assert counts == {"noise": 3, "blur": 4, "weather": 4, "digital": 4}


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "No module named imagecorruptions": on PyPI that is the name of another, broken package."""
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("imagecorruptions"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "imagecorruptions", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'hf_distill\[corruptions\]'"):
        perturb([np.zeros((40, 40, 3))], "imagenet_c_snow", 1, 0)


@pytest.mark.parametrize("shape", [(28, 28, 3), (40, 40), (40, 40, 1)])
def test_small_and_grey_pictures_are_refused(shape: tuple[int, ...]) -> None:
    """The package fails on them from inside OpenCV, one function after another."""
    with pytest.raises(ValueError, match="colour picture of at least 32 x 32"):
        perturb([np.zeros(shape)], "imagenet_c_fog", 1, 0)


@pytest.mark.parametrize(
    "name",
    # numba compiles glass blur for 10 seconds
    [pytest.param(n, marks=[pytest.mark.slow] if "glass" in n else []) for n in NAMES],
)
def test_they_repeat(name: str, photo: np.ndarray, package: Any) -> None:
    """Impulse noise and glass blur draw seeds of their own: models saw different pictures."""
    pictures = [photo[:64, :80], photo[100:150, 100:140] / 255, Image.fromarray(photo[:50, :50])]
    before = np.random.get_state()[1].tolist()
    found = perturb(pictures, name, 3, seed=1)
    again = perturb(pictures[::-1], name, 3, seed=1)[::-1]
    assert np.random.get_state()[1].tolist() == before
    for picture, a, b in zip(pictures, found, again, strict=True):
        assert type(a) is type(picture)
        assert np.array_equal(a, b)
        assert np.asarray(a).shape == np.asarray(picture).shape
        assert not np.array_equal(a, picture)
    assert found[1].max() <= 1
    if name.endswith(("impulse_noise", "glass_blur", "snow")):
        assert not np.array_equal(found[0], perturb(pictures, name, 3, seed=2)[0])


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("contrast", 1e-9),
        ("brightness", 1e-9),
        ("saturate", 1e-9),
        ("gaussian_blur", 1e-9),
        ("jpeg_compression", 1e-9),
        ("pixelate", 1.001),  # the package rounds to whole numbers
        ("defocus_blur", 11),  # our disc has a smooth edge (mean difference below 2)
    ],
)
def test_ours_are_those(name: str, largest: float, photo: np.ndarray, package: Any) -> None:
    """Under ImageNet-C's names, at its size, stand its functions. In units of 1/255."""
    for severity in SEVERITIES:
        expected = getattr(package, name)(Image.fromarray(photo), severity)
        found = perturb([photo / 255], name, severity, 0)[0] * 255
        far = np.abs(found - np.asarray(expected, float))
        assert far.max() <= largest
        assert far.mean() < 2


@pytest.mark.parametrize("angle", [-45.0, -20.3, 0.0, 13.0, 44.0])
def test_motion_blur_is_that(angle: float, photo: np.ndarray, package: Any) -> None:
    """For one angle the pictures are the same."""
    expected = package._motion_blur(photo.astype(float), 15, 8, angle)
    found = filters.motion_blur(photo / 255, 15, 8, angle) * 255
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("gaussian_noise", 0.01),
        ("shot_noise", 0.01),
        ("impulse_noise", 0.02),
        ("speckle_noise", 0.01),
        ("elastic_transform", 0.03),
        ("fog", 0.2),
    ],
)
def test_random_ones_are_as_strong(
    name: str, within: float, photo: np.ndarray, package: Any
) -> None:
    """What is drawn differs, so the mean distance from the picture is compared."""
    for severity in (1, 5):
        state = np.random.get_state()
        np.random.seed(0)
        try:
            theirs = [
                np.asarray(getattr(package, name)(Image.fromarray(photo), severity), float)
                for _ in range(4)
            ]
        finally:
            np.random.set_state(state)
        ours = [perturb([photo / 255], name, severity, seed)[0] * 255 for seed in range(4)]
        mean = [np.mean([np.sqrt(np.mean((f - photo) ** 2)) for f in x]) for x in (theirs, ours)]
        assert mean[1] == pytest.approx(mean[0], rel=within)
