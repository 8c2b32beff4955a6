"""Augmented views that teacher and student share: "patient and consistent" (arXiv 2106.05237).

The view is made where the example is read, before there is a batch, so that both models see the
same one: the teacher's target belongs to the view, and no label is needed. (Targets of the plain
picture, or of another crop, are what Beyer et al. find to fail.) Wrap the training data alone:

    trainer = DistillationTrainer(..., train_dataset=Views(train, flip(), shift(4), mixup()),
                                  objective=ForwardKL())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

Example = dict[str, Any]
View = Callable[[Example, "Views"], Example]
"""Takes an example and the data that it comes from, gives a view of it."""
PICTURES = "pixel_values"


class Views(Dataset[Example]):
    """A data set whose examples are another random view each time they are read.

    Args:
        data: Examples by index, with tensors ``pixel_values`` ``(C, h, w)`` or ``input_ids``.
        *views: What is done to an example, in turn: `flip`, `shift`, `noise`, `mixup`,
            `drop_tokens`, or a function of one's own.

    Raises:
        ValueError: no views, or data without a length.
    """

    def __init__(self, data: Any, *views: View):
        if not views or not hasattr(data, "__len__"):
            raise ValueError(
                f"Expected data with a length and at least one view, got {type(data).__name__} and "
                f"{len(views)} view(s). For a stream use its own `map`."
            )
        self.data, self.views = data, views

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Example:
        example = dict(self.data[index])
        for view in self.views:
            example = view(example, self)
        return example


def _pixels(example: Mapping[str, Any]) -> Tensor:
    pixels = example.get(PICTURES)
    if pixels is None or torch.as_tensor(pixels).dim() != 3:
        raise ValueError(
            f"Expected `{PICTURES}` (C, h, w) in an example, got the keys {sorted(example)}. Put "
            "the processor's transform below the views."
        )
    return torch.as_tensor(pixels)


def flip(chance: float = 0.5) -> View:
    """Mirror a picture, left to right."""

    def view(example: Example, data: Views) -> Example:
        pixels = _pixels(example)
        return {**example, PICTURES: pixels.flip(-1) if torch.rand(()) < chance else pixels}

    return view


def shift(pixels: int = 4) -> View:
    """Move a picture by up to so many pixels each way; what it uncovers repeats the border."""

    def view(example: Example, data: Views) -> Example:
        picture = _pixels(example)
        height, width = picture.shape[-2:]
        padded = F.pad(picture[None], (pixels,) * 4, mode="replicate")[0]
        top, left = torch.randint(2 * pixels + 1, (2,)).tolist()
        return {**example, PICTURES: padded[:, top : top + height, left : left + width]}

    return view


def noise(deviation: float = 0.1) -> View:
    """Add Gaussian noise, in the units of the processed picture."""

    def view(example: Example, data: Views) -> Example:
        pixels = _pixels(example)
        return {**example, PICTURES: pixels + deviation * torch.randn_like(pixels)}

    return view


def mixup(labels: tuple[str, ...] = ("labels",)) -> View:
    """Mix a picture with another one, any share of it: function matching.

    The mixture has no label: it is marked as unlabelled (-100), and only the teacher teaches it.
    """

    def view(example: Example, data: Views) -> Example:
        other = _pixels(data.data[int(torch.randint(len(data), ()))])
        share = torch.rand(())
        mixed = {**example, PICTURES: share * _pixels(example) + (1 - share) * other}
        for key in labels:
            if key in mixed:
                label = torch.as_tensor(mixed[key])
                mixed[key] = torch.full_like(
                    label, float("nan") if label.is_floating_point() else -100
                )
        return mixed

    return view


def drop_tokens(mask_token: int, chance: float = 0.1, keep: tuple[int, ...] = ()) -> View:
    """Replace some of a text's tokens by the mask token, never those to keep (special tokens)."""

    def view(example: Example, data: Views) -> Example:
        ids = torch.as_tensor(example["input_ids"])
        dropped = torch.rand(ids.shape) < chance
        for token in (*keep, mask_token):
            dropped &= ids != token
        masked = ids.masked_fill(dropped, mask_token)
        is_list = isinstance(example["input_ids"], list)
        return {**example, "input_ids": masked.tolist() if is_list else masked}

    return view
