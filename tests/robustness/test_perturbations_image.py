"""Picture perturbations against ImageNet-C's constants, by scipy, matplotlib, PIL and loops."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage, stats
from sklearn.datasets import load_sample_image

from hf_distill.robustness.perturbations import PERTURBATIONS, SEVERITIES, filters, perturb
from hf_distill.robustness.perturbations.image import in_pixels

OWN = [
    p.name
    for p in PERTURBATIONS.values()
    if p.modality == "image" and not p.name.startswith("imagenet_c_")
]
# hendrycks/robustness, ImageNet-C/imagenet_c/imagenet_c/corruptions.py at 20caed9
GAUSSIAN_NOISE = [0.08, 0.12, 0.18, 0.26, 0.38]
SHOT_NOISE = [60, 25, 12, 5, 3]
IMPULSE_NOISE = [0.03, 0.06, 0.09, 0.17, 0.27]
SPECKLE_NOISE = [0.15, 0.2, 0.35, 0.45, 0.6]
GAUSSIAN_BLUR = [1, 2, 3, 4, 6]
DEFOCUS_BLUR = [3, 4, 6, 8, 10]
MOTION_BLUR = [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)]
ZOOM_BLUR = [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)]
FOG = [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)]
BRIGHTNESS = [0.1, 0.2, 0.3, 0.4, 0.5]
CONTRAST = [0.4, 0.3, 0.2, 0.1, 0.05]
SATURATE = [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)]
PIXELATE = [0.6, 0.5, 0.4, 0.3, 0.25]
JPEG = [25, 18, 15, 10, 7]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A photograph, ``(224, 224, 3)`` in uint8."""
    return load_sample_image("china.jpg")[100:324, 200:424].copy()


def grey(size: int = 224, value: float = 0.5) -> np.ndarray:
    return np.full((size, size), value)


def levels(constants: list[Any]) -> Any:
    return pytest.mark.parametrize(("severity", "c"), list(enumerate(constants, 1)))


def run(name: str, picture: Any, severity: int, seed: int = 0) -> Any:
    return perturb([picture], name, severity, seed)[0]


# ---- noise: on an even grey, from the distribution --------------------------------------------


@levels(GAUSSIAN_NOISE)
def test_gaussian_noise(severity: int, c: float) -> None:
    """Half of all values are within .6745 deviations: clipping does not move that."""
    found = np.median(np.abs(run("gaussian_noise", grey(), severity) - 0.5))
    assert found == pytest.approx(stats.norm.ppf(0.75) * c, rel=0.02)


@levels(SPECKLE_NOISE)
def test_speckle_noise(severity: int, c: float) -> None:
    """Noise of one size everywhere would be Gaussian noise under another name."""
    for value in (0.5, 0.2):
        found = np.median(np.abs(run("speckle_noise", grey(value=value), severity) - value))
        assert found == pytest.approx(stats.norm.ppf(0.75) * c * value, rel=0.02)


@levels(SHOT_NOISE)
def test_shot_noise(severity: int, c: float) -> None:
    """The share of each number of photons is Poisson's, up to a value of 1."""
    counts = run("shot_noise", grey(), severity) * c
    assert np.allclose(counts, np.rint(counts))
    for k in range(0, c, max(c // 5, 1)):
        expected = stats.poisson.pmf(k, c / 2)
        spread = (expected * (1 - expected) / counts.size) ** 0.5
        assert abs(np.mean(np.rint(counts) == k) - expected) < 5 * spread + 1e-9
    assert np.mean(np.rint(counts) == c) == pytest.approx(stats.poisson.sf(c - 1, c / 2), abs=0.01)


@levels(IMPULSE_NOISE)
def test_impulse_noise(severity: int, c: float) -> None:
    """A share of whole pixels, or half as many, is another noise than ImageNet-C's."""
    found = run("impulse_noise", np.full((128, 128, 3), 0.5), severity)
    spread = (c / 2 / found.size) ** 0.5
    assert abs(np.mean(found == 0) - c / 2) < 5 * spread
    assert abs(np.mean(found == 1) - c / 2) < 5 * spread
    assert np.mean((found != 0.5).all(-1)) < 2 * c**3 + 0.005  # each channel by itself


# ---- blur -------------------------------------------------------------------------------------


@levels(GAUSSIAN_BLUR)
def test_gaussian_blur(severity: int, c: float, photo: np.ndarray) -> None:
    """Against scipy: sigma or border off by little makes another severity."""
    expected = ndimage.gaussian_filter(photo / 255, (c, c, 0), mode="nearest", truncate=4)
    np.testing.assert_allclose(run("gaussian_blur", photo / 255, severity), expected, atol=1e-12)


@levels(DEFOCUS_BLUR)
def test_defocus_blur(severity: int, c: float) -> None:
    """A point becomes a disc of the paper's radius, evenly bright, with the same light."""
    point = np.zeros((224, 224))
    point[100, 90] = 1
    found = run("defocus_blur", point, severity)
    assert found.sum() == pytest.approx(1)
    rows, columns = np.mgrid[:224, :224]
    distance = np.hypot(rows - 100, columns - 90)
    np.testing.assert_allclose(found[distance < c - 0.8], 1 / (np.pi * c**2), rtol=0.01)
    assert found[distance > c + 0.8].max() < 1e-12


def test_defocus_blur_mirrors_the_border(photo: np.ndarray) -> None:
    """Against scipy: a border of zeros darkens the frame."""
    picture = photo[:40, :50, 0] / 255
    radius = in_pixels(8, picture, 0.5)
    expected = ndimage.convolve(picture, filters.disc(radius), mode="mirror")
    np.testing.assert_allclose(run("defocus_blur", picture, 4), expected, atol=1e-12)


@levels(MOTION_BLUR)
def test_motion_blur(severity: int, c: tuple[int, int], photo: np.ndarray) -> None:
    """A point becomes a line at one angle from -45 to 45 degrees, fading as half a Gaussian."""
    radius, sigma = c
    point = np.zeros((224, 224))
    point[100, 150] = 1
    weights = np.exp(-((np.arange(2 * radius + 1) / sigma) ** 2) / 2)
    angles = []
    for seed in range(6):
        found = run("motion_blur", point, severity, seed)
        rows, columns = np.nonzero(found)
        steps = np.rint(np.hypot(rows - 100, columns - 150)).astype(int)
        assert steps.max() in (2 * radius, 2 * radius + 1)
        far = (steps > 0) & (steps <= 2 * radius)
        assert found[100, 150] == pytest.approx(1 / weights.sum(), rel=1e-9)
        total = [found[rows[steps <= i], columns[steps <= i]].sum() for i in range(len(weights))]
        np.testing.assert_allclose(
            total, weights.cumsum() / weights.sum(), atol=1.5 * weights.max() / weights.sum()
        )
        last = np.flatnonzero(far & (steps == steps[far].max()))[0]
        angles.append(np.degrees(np.arctan2(rows[last] - 100, 150 - columns[last])))
    assert np.ptp(angles) > 15
    assert np.abs(angles).max() < 48


@levels(ZOOM_BLUR)
def test_zoom_blur(severity: int, c: tuple[float, float], photo: np.ndarray) -> None:
    """Against scipy's interpolation: a zoom off the middle also shifts the picture."""
    picture = photo[:60, :80, 1] / 255
    rows, columns = np.mgrid[:60, :80]
    layers = [picture]
    for factor in np.arange(1, *c):
        places = [(rows - 29.5) / factor + 29.5, (columns - 39.5) / factor + 39.5]
        layers.append(ndimage.map_coordinates(picture, places, order=1))
    np.testing.assert_allclose(run("zoom_blur", picture, severity), np.mean(layers, 0), atol=1e-9)


# ---- values -----------------------------------------------------------------------------------


@levels(BRIGHTNESS)
def test_brightness(severity: int, c: float, photo: np.ndarray) -> None:
    """Against matplotlib's HSV: added to each channel, the colours would fade."""
    photo = np.where(photo < 20, 0, photo)  # with some black
    hsv = rgb_to_hsv(photo / 255)
    hsv[..., 2] = (hsv[..., 2] + c).clip(0, 1)
    np.testing.assert_allclose(
        run("brightness", photo / 255, severity), hsv_to_rgb(hsv), atol=1e-12
    )
    assert run("brightness", grey(4, 0.3), severity) == pytest.approx(0.3 + c)


@levels(SATURATE)
def test_saturate(severity: int, c: tuple[float, float], photo: np.ndarray) -> None:
    """Against matplotlib's HSV, grey and black pixels included."""
    photo = photo.copy()
    photo[:5], photo[5:9] = 0, 99
    hsv = rgb_to_hsv(photo / 255)
    hsv[..., 1] = (hsv[..., 1] * c[0] + c[1]).clip(0, 1)
    np.testing.assert_allclose(run("saturate", photo / 255, severity), hsv_to_rgb(hsv), atol=1e-12)
    with pytest.raises(ValueError, match="3 channels for 'saturate', got 1"):
        run("saturate", grey(4), severity)


@levels(CONTRAST)
def test_contrast(severity: int, c: float, photo: np.ndarray) -> None:
    """Towards one mean of all channels, a coloured picture would also turn grey."""
    found = run("contrast", photo / 255, severity)
    np.testing.assert_allclose(found.mean((0, 1)), photo.mean((0, 1)) / 255)
    np.testing.assert_allclose(found.std((0, 1)), c * photo.std((0, 1)) / 255)


@levels(FOG)
def test_fog(severity: int, c: tuple[float, float]) -> None:
    """On an even grey x the fog runs from x^2/(x + c) to x exactly: thickness and normalisation."""
    thickness, _ = c
    found = run("fog", np.full((256, 256, 3), 0.5), severity)
    assert found.min() == pytest.approx(0.25 / (0.5 + thickness))
    assert found.max() == pytest.approx(0.5)
    assert np.ptp(found, axis=-1).max() == 0  # grey fog


@pytest.mark.parametrize("decay", [1.4, 3.0])
def test_plasma_is_diamond_square(decay: float) -> None:
    """Against loops over single points: a wrong neighbour makes stripes, not clouds."""
    side = 16
    rng = np.random.default_rng(5)
    cloud: dict[tuple[int, int], float] = {(0, 0): 0.0}
    step, width = side, 1.0
    while step > 1:
        half, count = step // 2, side // step
        draws = [rng.uniform(-width, width, (count, count)) for _ in range(3)]
        corners = range(0, side, step)
        for start, draw in (((half, half), 0), ((0, half), 1), ((half, 0), 2)):
            for i, top in enumerate(corners):
                for j, left in enumerate(corners):
                    row, column = top + start[0], left + start[1]
                    around = (
                        [(-half, -half), (-half, half), (half, -half), (half, half)]
                        if draw == 0
                        else [(-half, 0), (half, 0), (0, -half), (0, half)]
                    )
                    near = [cloud[(row + y) % side, (column + x) % side] for y, x in around]
                    cloud[row, column] = sum(near) / 4 + draws[draw][i, j]
        step, width = half, width / decay**2
    expected = np.array([[cloud[r, c] for c in range(side)] for r in range(side)])
    expected = (expected - expected.min()) / np.ptp(expected)
    found = filters.plasma(side, decay, np.random.default_rng(5))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@levels(FOG)
def test_fog_is_as_rough_as_its_decay(severity: int, c: tuple[float, float]) -> None:
    """Any other cloud is fog as well: only its roughness tells the severities 3 and 4 apart."""
    picture = np.linspace(0.1, 0.9, 30 * 20).reshape(30, 20)
    thickness, decay = c
    cloud = filters.plasma(32, decay, np.random.default_rng(1))[:30, :20]
    expected = (picture + thickness * cloud) * 0.9 / (0.9 + thickness)
    found = PERTURBATIONS["fog"].apply(picture, severity, np.random.default_rng(1))
    np.testing.assert_allclose(found, expected, atol=1e-12)


# ---- digital, geometry --------------------------------------------------------------------------


@levels(PIXELATE)
def test_pixelate(severity: int, c: float, photo: np.ndarray) -> None:
    """Against PIL on whole numbers, which rounds once."""
    small = Image.fromarray(photo).resize((int(224 * c),) * 2, Image.Resampling.BOX)
    expected = np.asarray(small.resize((224, 224), Image.Resampling.NEAREST)) / 255
    np.testing.assert_allclose(run("pixelate", photo / 255, severity), expected, atol=1.01 / 255)


@levels(JPEG)
def test_jpeg_compression(severity: int, c: int, photo: np.ndarray) -> None:
    """Against PIL, in colour and in grey."""
    for picture in (photo, photo[..., 1]):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=c)
        expected = np.asarray(Image.open(file))
        assert np.array_equal(run("jpeg_compression", picture, severity), expected)


@levels([250 * share for share in (0.05, 0.065, 0.085, 0.1, 0.12)])
def test_elastic_transform(severity: int, c: float) -> None:
    """The places' deviation, by scipy's smoothing of the same noise; ramps show the places."""
    ramp = np.linspace(0, 1, 224)[:, None].repeat(224, 1)
    moved = np.stack(
        [run("elastic_transform", ramp, severity), run("elastic_transform", ramp.T, severity)]
    )
    shift = (moved - np.stack([ramp, ramp.T]))[:, 12:-12, 12:-12] * 223
    noise = np.random.default_rng(1).uniform(-1.12, 1.12, (2, 224, 224))
    expected = c * ndimage.gaussian_filter(noise, (0, 2.24, 2.24), truncate=3)
    assert shift.std() == pytest.approx(expected.std(), rel=0.08)


@levels([0.02, 0.05, 0.1, 0.15, 0.2])
def test_translate(severity: int, c: float) -> None:
    """A spot moves by the share, in directions all around, and nothing comes in from outside."""
    spot = np.zeros((61, 81))
    spot[28:33, 38:43] = 1
    angles = []
    for seed in range(8):
        found = run("translate", spot, severity, seed)
        y, x = (np.array(ndimage.center_of_mass(found)) - (30, 40)) / (c * 61)
        assert np.hypot(y, x) == pytest.approx(1, abs=1e-6)
        assert found.sum() == pytest.approx(25)
        angles.append(np.arctan2(y, x))
    assert np.ptp(angles) > np.pi / 2


@levels([5, 10, 15, 20, 30])
def test_rotate(severity: int, c: float, photo: np.ndarray) -> None:
    """Against scipy's rotation, to either side."""
    picture = photo[:90, :120, 2] / 255
    either = [
        ndimage.rotate(picture, sign * c, reshape=False, order=1, mode="nearest")
        for sign in (-1, 1)
    ]
    seen = set()
    for seed in range(8):
        found = run("rotate", picture, severity, seed)
        far = [np.abs(found - e).max() for e in either]
        assert min(far) < 1e-9
        seen.add(int(np.argmin(far)))
    assert seen == {0, 1}


# ---- size, kind, strength ---------------------------------------------------------------------


def test_lengths_scale_with_the_picture() -> None:
    """A blur of 6 pixels leaves nothing of a 28 x 28 picture; scaled to .75 it would do little.

    CIFAR-10-C's sigmas for 32 x 32 (hendrycks/robustness, make_cifar_c.py): .4 .6 .7 .8 1.
    """
    small, plain, large = np.zeros((32, 40, 3)), np.zeros((224, 300, 3)), np.zeros((448, 448, 3))
    found = [in_pixels(c, small, 0.3) for c in GAUSSIAN_BLUR]
    np.testing.assert_allclose(found, [0.4, 0.6, 0.7, 0.8, 1], atol=0.12)
    assert [in_pixels(c, plain, 0.3) for c in GAUSSIAN_BLUR] == GAUSSIAN_BLUR
    assert [in_pixels(c, large, 0.3) for c in GAUSSIAN_BLUR] == [2, 4, 6, 8, 12]


@pytest.mark.parametrize("name", [n for n in OWN if n != "saturate"])
@pytest.mark.parametrize("size", [28, 224])
def test_a_higher_severity_is_farther_away(name: str, size: int, photo: np.ndarray) -> None:
    """A curve of accuracy over severity would go up and down for no reason of the model."""
    picture = photo if size == 224 else photo[40:208:6, 20:188:6, 1]
    picture = (picture / 255).astype(np.float32)
    means = []
    for severity in SEVERITIES:
        found = [
            PERTURBATIONS[name].apply(picture, severity, np.random.default_rng(seed))
            for seed in range(2 if size == 224 else 20)  # the same directions at each severity
        ]
        means.append(np.mean([np.sqrt(np.mean((f - picture) ** 2)) for f in found]))
    if name == "fog":  # 3 and 4 are equally thick
        means = [means[0], np.mean(means[1:4]), means[4]]
    assert all(np.diff(means) > 0), means
    assert means[0] > 0.01


@pytest.mark.parametrize("name", OWN)
def test_the_same_kind_comes_back(name: str, photo: np.ndarray) -> None:
    """A processor would read floats as bytes, or (1, 28, 28) as a picture of one row."""
    colour = photo[60:90, 50:78]
    pictures: list[Any] = [colour, (colour / 255).astype(np.float32), colour / 255]
    pictures += [(colour / 255).astype(np.float16), Image.fromarray(colour)]
    if name != "saturate":
        grey = colour[..., 0]
        pictures += [grey, grey[..., None] / 255, Image.fromarray(grey), np.zeros((1, 1))]
        pictures += [np.ones((3, 5)), colour[:2, :1] / 255]
    for severity in (1, 5):
        for picture, found in zip(pictures, perturb(pictures, name, severity, 0), strict=True):
            assert type(found) is type(picture)
            if isinstance(picture, Image.Image):
                assert (found.mode, found.size) == (picture.mode, picture.size)
                continue
            assert (found.shape, found.dtype) == (picture.shape, picture.dtype)
            assert found.max() <= (255 if found.dtype == np.uint8 else 1)
            assert found.min() >= 0


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (np.zeros((3, 28, 28)), "Channels come last"),
        (np.zeros((1, 28, 28)), "Channels come last"),
        (np.zeros((2, 8, 8, 3)), "Expected a picture"),
        (np.zeros((0, 8)), "Expected a picture"),
        (np.full((8, 8), 1.5), "before its processor normalises it"),
        (np.full((8, 8), -0.5), "before its processor normalises it"),
        (np.full((8, 8), np.nan), "before its processor normalises it"),
        (np.zeros((8, 8), np.int64), "Expected uint8 or floats"),
        (Image.new("RGBA", (8, 8)), "PIL image of mode RGBA"),
        (Image.new("1", (8, 8)), 'convert\\("RGB"\\)'),
    ],
)
def test_other_layouts_are_refused(picture: Any, says: str) -> None:
    """Noise on a normalised picture is clipped to [0, 1]: most of the picture would be gone."""
    with pytest.raises(ValueError, match=says):
        run("gaussian_noise", picture, 1)
