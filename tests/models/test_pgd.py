"""Balls, projected ascent in them, and the spaces of models' inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import CASES, collate
from torch import Tensor

from hf_distill.models.input_space import EMBEDDINGS, InputSpace, embedded, input_space
from hf_distill.models.pgd import NormBall, check_budget, projected_ascent
from hf_distill.models.signals import Needs
from hf_distill.models.task_model import TaskModel

tf: Any = transformers
NORMS = ("linf", "l2")


def length(moved: Tensor, norm: str) -> np.ndarray:
    """By numpy, one row per example."""
    rows = moved.flatten(1).double().numpy()
    return np.linalg.norm(rows, np.inf if norm == "linf" else 2, axis=1)


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- balls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_nearest_point(norm: str) -> None:
    """A projection that is off leaves the budget, or does not use it up."""
    center, x = torch.zeros(64, 5, dtype=torch.float64), torch.randn(64, 5, dtype=torch.float64)
    found = NormBall(center, 0.5, norm).project(x)
    inside = length(x, norm) <= 0.5
    assert inside.any() or norm == "l2"
    assert torch.equal(found[torch.tensor(inside)], x[torch.tensor(inside)])
    assert length(found, norm) == pytest.approx(np.minimum(length(x, norm), 0.5))
    others = 0.5 * torch.nn.functional.normalize(torch.randn(2000, 5, dtype=torch.float64))
    for point, near in zip(x[:8], found[:8], strict=True):  # no point of the ball is nearer
        assert (others - point).norm(dim=-1).min() >= (near - point).norm() - 1e-12


def test_units_and_bounds_of_each_channel() -> None:
    """A radius in normalised units is a quarter of the true one for a deviation of 1/4."""
    scale = torch.tensor([4.0, 2.0]).view(2, 1)
    center = torch.tensor([[[0.0, 3.9], [0.0, 0.0]]])
    ball = NormBall(center, 0.1, scale=scale, low=-1.0, high=4.0)
    assert ball.project(center + 10) == pytest.approx(
        torch.tensor([[[0.4, 4.0], [0.2, 0.2]]]), abs=1e-6
    )
    assert ball.distances(center + 0.2).item() == pytest.approx(0.1)


@pytest.mark.parametrize("norm", NORMS)
def test_starts_fill_the_ball_and_nothing_else(norm: str) -> None:
    """Starts beyond the radius break the budget; starts near the center are no random starts."""
    ball = NormBall(torch.full((500, 3), 7.0), 0.5, norm)
    far = length(ball.start(generator()) - 7.0, norm)
    assert far.max() <= 0.5 + 1e-6
    assert far.max() > 0.49
    # linf: the largest of three uniforms has mean 3/4; l2: the radius is uniform
    assert far.mean() == pytest.approx(0.375 if norm == "linf" else 0.25, abs=0.02)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("each", [1, 2])
def test_starts_do_not_depend_on_padding(norm: str, each: int) -> None:
    """An attack on the same text would differ with the length of the others in its batch."""
    text = torch.randn(1, 4, 8)
    padded = torch.cat([text, torch.zeros(1, 3, 8)], dim=1)
    mask = (torch.arange(7) < 4).view(1, 7, 1)
    plain = NormBall(text, 0.5, norm, each=each, mask=mask[:, :4]).start(generator())
    longer = NormBall(padded, 0.5, norm, each=each, mask=mask).start(generator())
    left = NormBall(padded.roll(3, 1), 0.5, norm, each=each, mask=mask.roll(3, 1)).start(
        generator()
    )
    assert not torch.equal(plain, text)
    assert torch.equal(longer, torch.cat([plain, padded[:, 4:]], dim=1))
    assert torch.equal(left, longer.roll(3, 1))


def test_starts_leave_the_global_random_state() -> None:
    """Attacking a model between two epochs would change the training after it."""
    before = torch.get_rng_state()
    NormBall(torch.zeros(2, 3), 1.0).start(generator())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_steps_have_their_size_whatever_the_gradient(norm: str, size: float) -> None:
    """Squares of small gradients underflow: a saturated model would look robust in l2."""
    gradient = size * torch.tensor([[3.0, -4.0]])
    moved = NormBall(torch.zeros(1, 2), 1.0, norm).step(torch.zeros(1, 2), gradient, 0.5)
    expected = [[0.5, -0.5]] if norm == "linf" else [[0.3, -0.4]]
    assert moved == pytest.approx(torch.tensor(expected), abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_steps_stay_finite(norm: str, value: float) -> None:
    """One gradient that is no number would poison the input for all steps that follow."""
    gradient = torch.tensor([[value, 0.0]])
    moved = NormBall(torch.ones(1, 2), 1.0, norm).step(torch.ones(1, 2), gradient, 0.5)
    assert moved.isfinite().all()
    assert NormBall(torch.ones(1, 2), 1.0, norm).distances(moved) <= 1 + 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_masked_parts_never_move(norm: str) -> None:
    """Padding that is perturbed changes texts that no user can write."""
    mask = torch.tensor([[[1], [0]]]).bool()
    ball = NormBall(torch.ones(1, 2, 3), 0.5, norm, mask=mask, each=2)
    x = ball.step(ball.start(generator()), torch.randn(1, 2, 3), 0.3)
    assert torch.equal(x[:, 1], torch.ones(1, 3))
    assert not torch.equal(x[:, 0], torch.ones(1, 3))


@pytest.mark.parametrize("norm", NORMS)
def test_rows_are_the_balls_of_these_examples(norm: str) -> None:
    """A batch that shrinks would go on with another example's bounds."""
    center = torch.randn(4, 3, 5)
    scale, mask = torch.rand(4, 3, 1) + 0.5, torch.rand(4, 3, 1) > 0.3
    ball = NormBall(center, 0.2, norm, scale, center - 0.1, 9.0, mask, each=2)
    x, rows = center + torch.randn(4, 3, 5), torch.tensor([2, 0])
    assert torch.equal(ball.rows(rows).project(x[rows]), ball.project(x)[rows])


@pytest.mark.parametrize("norm", NORMS)
def test_ascent_of_a_linear_function_reaches_its_maximum(norm: str) -> None:
    """Its maximum is known: ε times the dual norm of the gradient."""
    slope = torch.randn(1, 6, dtype=torch.float64)
    ball = NormBall(torch.zeros(1, 6, dtype=torch.float64), 0.3, norm)
    start = ball.start(generator())
    *_, last = projected_ascent(lambda x: slope, ball, steps=60, size=0.05, start=start)
    dual = slope.abs().sum() if norm == "linf" else slope.norm()
    assert (last * slope).sum().item() == pytest.approx(0.3 * dual.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, "l1"), "linf"),
        ((-0.1, "l2"), "at least 0"),
        ((float("nan"), "l2"), "at least 0"),
        ((2 / 255, "linf", 8 / 255), "swapped"),
    ],
)
def test_budgets_that_make_no_sense(arguments: Any, message: str) -> None:
    """Radius and step in each other's place train at a quarter of the radius (a published bug)."""
    with pytest.raises(ValueError, match=message):
        check_budget(*arguments)


# ---- spaces ----------------------------------------------------------------------------------


class Fake:
    """A processor with these attributes."""

    def __init__(self, **attributes: Any):
        self.__dict__.update(attributes)


def head(name: str) -> TaskModel:
    return TaskModel(CASES[name].models(torch.float32)[0])


def batch(name: str) -> dict[str, Tensor]:
    return collate(CASES[name].data(dtype=torch.float32))


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [9.0, 8.0, 7.0], "image_std": [50.0] * 3},
        {"do_rescale": False, "do_normalize": False},
    ],
)
def test_pictures_are_measured_in_grey_levels(settings: dict[str, Any]) -> None:
    """ε in the processor's units is another ε for each processor. Checked on black and white, as
    the processor itself gives them."""
    processor = tf.ViTImageProcessor(size={"height": 32, "width": 32}, **settings)
    pictures = [np.full((32, 32, 3), level, np.uint8) for level in (0, 255, 51)]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"].float()
    space = input_space(head("image_classification"), processor)
    levels = space.to_unit(pixels)
    expected = torch.tensor([0.0, 1.0, 0.2]).view(3, 1, 1, 1).expand_as(levels)
    assert levels == pytest.approx(expected, abs=1e-5)
    assert space.from_unit(levels) == pytest.approx(pixels, abs=1e-4)
    ball = space.ball({}, pixels, 8 / 255, "linf")
    moved = space.to_unit(ball.project(pixels + 1e6)) - levels
    assert moved[0] == pytest.approx(torch.full((3, 32, 32), 8 / 255), abs=1e-5)
    assert moved[1] == pytest.approx(torch.zeros(3, 32, 32), abs=1e-5)


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("offset", [True, False])
def test_offsets_of_a_processor_are_undone(do_normalize: bool, offset: bool) -> None:
    """EfficientNet's may rescale to -1 … 1 first, and divides by its deviation twice."""
    processor = tf.EfficientNetImageProcessor(
        size={"height": 32, "width": 32},
        rescale_factor=1 / 127.5,
        rescale_offset=offset,
        do_normalize=do_normalize,
    )
    pictures = [np.full((32, 32, 3), level, np.uint8) for level in (0, 255)]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"].float()
    space = input_space(head("image_classification"), processor)
    expected = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    assert space.to_unit(pixels) == pytest.approx(expected, abs=1e-5)


def test_inputs_rounded_beyond_their_bounds_stay() -> None:
    """A radius of 0 must be the identity, also for a white that is 1 + 1e-7."""
    space = InputSpace("pixel_values", (1.0,), (0.0,), (1.0,))
    center = torch.tensor([1 + 1e-6, -1e-6]).view(1, 1, 1, 2)
    ball = space.ball({}, center, 0.0, "linf")
    assert torch.equal(ball.project(center), center)
    assert ball.project(center + 1).max() == center.max()


def test_images_of_other_channels_are_refused() -> None:
    """Three means would turn a grey picture into three of them, silently."""
    space = InputSpace("pixel_values", (2.0,) * 3, (-1.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match=r"model's own processor"):
        space.ball({}, torch.zeros(2, 1, 8, 8), 0.1, "linf")


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        (InputSpace(EMBEDDINGS), "embeddings of one model"),
        (InputSpace("pixel_values"), "processor"),
        (InputSpace("input_values"), "no range"),
    ],
)
def test_what_models_do_not_share_is_not_transferred(space: InputSpace, reason: str) -> None:
    """Numbers that mean nothing to the other model would come out as its robustness."""
    with pytest.raises(ValueError, match=reason):
        space.to_unit(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("processor", "low"),
    [
        (Fake(do_normalize=False), (-1.0,)),
        (Fake(feature_extractor=Fake(do_normalize=False)), (-1.0,)),
        (Fake(do_normalize=True), None),
        (Fake(do_normalize=False, num_mel_bins=128), None),
        (None, None),
    ],
)
def test_bounds_of_sound(processor: Any, low: Any) -> None:
    """Samples lie between -1 and 1 only where nothing normalises them."""
    assert input_space(head("audio_classification"), processor).low == low


@pytest.mark.parametrize(
    ("shape", "mask"),
    [((2, 6), (2, 6)), ((2, 6, 4), (2, 6)), ((2, 4, 6), (2, 6)), ((2, 3, 6, 4), (2, 3, 6))],
)
def test_padding_of_sound_and_features_stays(shape: Any, mask: Any) -> None:
    """Silence appended to a clip is nothing that a user could change."""
    real = torch.ones(mask, dtype=torch.long)
    real[..., 4:] = 0
    center = torch.zeros(shape)
    ball = InputSpace("input_features").ball({"attention_mask": real}, center, 1.0, "linf")
    moved = ball.project(center + 1)
    time = shape.index(6)
    expected = (torch.arange(6) < 4).float().view(6, *[1] * (len(shape) - 1 - time))
    assert torch.equal(moved, expected.expand(shape))


def test_each_token_has_a_ball_in_units_of_its_own_length() -> None:
    """One ball for the text would depend on how long it is."""
    space, model, data = (
        InputSpace(EMBEDDINGS),
        head("sequence_classification"),
        batch("sequence_classification"),
    )
    model.model.get_input_embeddings().weight.data[0] = 0.0  # padding, as BERT has it
    center = space.point(model, data)
    moved = space.ball(data, center, 0.1, "l2").project(center + torch.randn_like(center)) - center
    real = data["attention_mask"].bool()
    share = moved.norm(dim=-1)[real] / center.norm(dim=-1)[real]
    assert share == pytest.approx(torch.full_like(share, 0.1), rel=1e-5)
    assert not moved[~real].any()


# ---- embeddings in place of tokens -----------------------------------------------------------


def logits(model: TaskModel, data: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.model(**model.inputs(data, Needs())).logits
    return found


def test_embeddings_are_read_in_place_of_tokens() -> None:
    """Where the model takes `inputs_embeds` itself, both ways must agree."""
    name = "sequence_classification"
    model, data, space = head(name), batch(name), InputSpace(EMBEDDINGS)
    x = space.point(model, data)
    x = x + torch.randn_like(x)
    with embedded(model, x):
        found = logits(model, data)
    assert found == pytest.approx(logits(model, space.replaced(data, x)), abs=1e-6)
    assert not torch.allclose(found, logits(model, data))
    assert len(model.model.get_input_embeddings()._forward_hooks) == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_decoders_read_their_last_token(side: str) -> None:
    """Without `input_ids` a decoder takes the last padding for the end of the text: the model that
    is attacked would be another one than the model that is used."""
    config = CASES["causal_lm"].config()
    config.pad_token_id = 0
    model = TaskModel(tf.LlamaForSequenceClassification(config).eval())
    data = batch("sequence_classification")
    if side == "left":
        data = {key: value.flip(-1) if value.dim() == 2 else value for key, value in data.items()}
    x = InputSpace(EMBEDDINGS).point(model, data)
    with embedded(model, x):
        found = logits(model, data)
    assert torch.equal(found, logits(model, data))


def test_models_that_do_not_read_their_embeddings_are_refused() -> None:
    """An attack on an input that is not read ends at the clean accuracy: perfectly robust."""
    model = head("sequence_classification")
    with (
        pytest.raises(ValueError, match="call its input embeddings"),
        embedded(model, torch.ones(1)),
    ):
        pass
