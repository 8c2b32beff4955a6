"""Random views that both models share, and mixtures without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from objective_table import MODELS
from tiny_models import CASES
from tiny_trainers import trainer
from torch import Tensor

from hf_distill import ForwardKL, HardLabels, ModelTeacher, Views
from hf_distill.data.views import RandomView, drop_tokens, flip, mixup, noise, plain_key, shift

CNN = MODELS["cnn"]


def picture() -> dict[str, Any]:
    return {"pixel_values": torch.arange(32.0).view(1, 4, 8), "labels": 1}


def test_flip_and_shift_move_the_picture() -> None:
    """A view of another size, or of wrapped-around pixels, is another task."""
    pixels = picture()["pixel_values"]
    assert torch.equal(Views([picture()], flip(1.0))[0]["pixel_values"], pixels.flip(-1))
    assert torch.equal(Views([picture()], flip(0.0))[0]["pixel_values"], pixels)
    torch.manual_seed(3)
    moved = Views([picture()], shift(2))
    for _ in range(10):
        view = moved[0]["pixel_values"]
        assert view.shape == pixels.shape
        assert set(view.flatten().tolist()) <= set(pixels.flatten().tolist())
        steps = view[:, :, 1:] - view[:, :, :-1]
        assert set(steps.flatten().tolist()) <= {0.0, 1.0}  # neighbours stay neighbours
    assert moved[0]["labels"] == 1


def test_views_differ_and_leave_the_data_alone() -> None:
    rows = [picture()]
    views = Views(rows, noise(0.5))
    assert not torch.equal(views[0]["pixel_values"], views[0]["pixel_values"])
    assert torch.equal(rows[0]["pixel_values"], picture()["pixel_values"])


@pytest.mark.parametrize(
    ("label", "expected"), [(1, -100), (torch.tensor([0.0, 1.0]), torch.nan)], ids=["class", "many"]
)
def test_mixtures_have_no_label(label: Any, expected: float) -> None:
    """Half a shirt and half a shoe labelled as a shirt is a wrong label."""
    rows = [{**picture(), "labels": label}, {"pixel_values": torch.zeros(1, 4, 8), "labels": label}]
    found = Views(rows, mixup())[0]
    ratio = found["pixel_values"].flatten()[1:] / picture()["pixel_values"].flatten()[1:]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    filled = torch.as_tensor(found["labels"]).float()
    torch.testing.assert_close(filled, torch.full_like(filled, expected), equal_nan=True)


def test_tokens_to_keep_are_kept() -> None:
    rows = [{"input_ids": [1, 5, 6, 7, 2]}]
    found = Views(rows, drop_tokens(9, chance=1.0, keep=(1, 2)))[0]
    assert found["input_ids"] == [1, 9, 9, 9, 2]


def test_shifts_repeat_the_border() -> None:
    """Against numpy's padding: a view that is off by one is a view that nobody recorded."""
    data = Views([picture()], shift(3))
    pixels = picture()["pixel_values"]
    padded = np.pad(pixels.numpy(), ((0, 0), (3, 3), (3, 3)), mode="edge")
    for top in range(7):
        for left in range(7):
            found = shift(3).apply(picture(), {"top": top, "left": left}, data)["pixel_values"]
            assert np.array_equal(found.numpy(), padded[:, top : top + 4, left : left + 8])


def test_chances_and_deviations_are_those_given() -> None:
    """Within 5 standard errors: a chance that is off makes other training data, and no error."""
    torch.manual_seed(0)
    data = Views([picture()], flip())
    flips = [flip(0.3).draw(picture(), data)["flip"] for _ in range(2000)]
    assert abs(np.mean(flips) - 0.3) < 5 * (0.3 * 0.7 / 2000) ** 0.5
    blank = {"pixel_values": torch.zeros(1, 100, 100)}
    noisy = noise(0.5)(blank, data)["pixel_values"].numpy()
    assert abs(noisy.mean()) < 5 * 0.5 / 100
    assert abs(noisy.std() - 0.5) < 5 * 0.5 / 141
    ids = drop_tokens(9, chance=0.2)({"input_ids": [5] * 5000}, data)["input_ids"]
    assert abs(ids.count(9) / 5000 - 0.2) < 5 * (0.2 * 0.8 / 5000) ** 0.5


@pytest.mark.parametrize("view", [flip(), shift(2), noise(0.5), drop_tokens(9, 0.5)], ids=repr)
def test_a_view_is_what_was_drawn_applied(view: RandomView) -> None:
    """Two ways of making a view that differ: what is recorded is not what live training sees."""
    example = {**picture(), "input_ids": list(range(20))}
    data = Views([example], view)
    torch.manual_seed(5)
    once = [data[0] for _ in range(4)]
    torch.manual_seed(5)
    drawn = [view.draw(example, data) for _ in range(4)]
    for parameters, live in zip(drawn, once, strict=True):
        torch.manual_seed(99)  # nothing is random here
        again = view.apply(example, parameters, data)
        assert plain_key(again) == plain_key(live)
        assert type(again["input_ids"]) is list


class Counted(list):
    """Counts how often an example is read."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        return super().__getitem__(index)


def test_live_mixtures_read_two_examples() -> None:
    """An index by content reads all data: in every worker, before its first batch."""
    rows = Counted(picture() for _ in range(50))
    assert Views(rows, mixup())[3]["labels"] == -100
    assert rows.reads == 2


def test_any_function_is_a_view() -> None:
    rows = [picture()]
    views = Views(rows, lambda example, data: {**example, "from": len(data)}, flip(1.0))
    assert views[0]["from"] == 1
    assert torch.equal(views[0]["pixel_values"], picture()["pixel_values"].flip(-1))


PIXELS = torch.linspace(-1, 1, 24).view(2, 3, 4)


@pytest.mark.parametrize(
    "same",
    [
        {"a": PIXELS, "b": [1, 2], "labels": 3},
        {"b": [1, 2], "a": PIXELS.tolist(), "label": 4},
        {"a": PIXELS.double().numpy(), "b": torch.tensor([1, 2], dtype=torch.int32)},
        {"a": list(PIXELS), "b": np.array([1, 2], dtype=np.uint8), "text": "no number"},
        {"a": PIXELS.transpose(1, 2).contiguous().transpose(1, 2), "b": (1, 2), "c": None},
    ],
)
def test_a_key_is_that_of_the_content(same: dict[str, Any]) -> None:
    """A key that changes with the format of a data set: its records are lost."""
    assert plain_key(same) == plain_key({"a": PIXELS, "b": torch.tensor([1, 2])})


def test_keys_of_other_contents_differ() -> None:
    """Two examples of one key: one is trained on the other's views and outputs."""
    others = [
        {"a": PIXELS},
        {"a": PIXELS.view(3, 2, 4)},
        {"a": PIXELS.flatten()},
        {"b": PIXELS},
        {"a": PIXELS.flip(0)},
        {"a": PIXELS + 1e-6},
        {"a": [1, 2, 3]},
        {"a": [1.0, 2.0, 3.0]},
        {"a": [1, 2], "b": [3]},
        {"a": [1], "b": [2, 3]},
        {"a": [[1, 2], [3]]},
        {"a": [[1], [2, 3]]},
        {"a": []},
        {"a": 0},
        {"a": {"b": 0}},
    ]
    assert len({plain_key(example) for example in others}) == len(others)
    ragged = {"a": [torch.tensor([1, 2]), torch.tensor([3])]}
    assert plain_key(ragged) == plain_key({"a": [[1, 2], [3]]})
    assert plain_key({"a": []}) == plain_key({"a": torch.zeros(0, dtype=torch.long)})


class Seeing(ModelTeacher):
    """Keeps the pictures that it was shown."""

    def __call__(self, batch: Any, needs: Any, items: Any) -> Any:
        self.seen: list[Tensor] = [*getattr(self, "seen", []), batch["pixel_values"].clone()]
        return super().__call__(batch, needs, items)


def test_teacher_and_student_see_the_same_view(tmp_path: Path) -> None:
    """A teacher that sees the plain picture teaches the student to see what is not there."""
    student, teacher = CNN.models(torch.float32)
    seen: list[Tensor] = []
    student.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"].clone()), with_kwargs=True
    )
    seeing = Seeing(teacher)
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=seeing,
        train_dataset=Views(CNN.data(8, torch.float32), flip(), shift(2), noise(0.1), mixup()),
        eval_dataset=CNN.data(4, torch.float32),
        objective=ForwardKL() + HardLabels(),
    )
    seen.clear()
    seeing.seen.clear()
    ours.train()
    assert len(seen) == len(seeing.seen) == 2
    assert all(torch.equal(a, b) for a, b in zip(seen, seeing.seen, strict=True))
    logs = [row for row in ours.state.log_history if "forward_kl" in row]
    assert all(row["hard_labels"] == 0 < row["forward_kl"] for row in logs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Views([picture()]), "at least one view, got list and 0"),
        (lambda: Views(iter([picture()]), flip()), "data with a length"),
        (lambda: Views(CASES["sequence_classification"].data(1), flip())[0], "`pixel_values`"),
        (lambda: flip(50), "chance of a flip from 0 to 1, got 50"),
        (lambda: shift(-1), "pixels to shift by"),
        (lambda: noise(-0.1), "deviation of the noise"),
        (lambda: drop_tokens(9, 10), "chance of a dropped token"),
        (
            lambda: Views([{"pixel_values": torch.zeros(1, 2, 2).byte()}], noise())[0],
            r"floating point to add noise to, got torch.uint8",
        ),
        (lambda: plain_key({"text": "a film", "labels": 1}), "numbers, arrays or tensors"),
        (lambda: Views([picture()], flip()).find("0" * 32), "found none: a recorded mixture"),
    ],
)
def test_bad_views(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
