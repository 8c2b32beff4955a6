"""Random views that both models share, and mixtures without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from objective_table import MODELS
from small import trainer
from torch import Tensor
from zoo import CASES

from hf_distill import ForwardKL, HardLabels, ModelTeacher, Views
from hf_distill.views import drop_tokens, flip, mixup, noise, shift

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
    ],
)
def test_bad_views(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
