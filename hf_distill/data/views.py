"""Augmented views shared by teacher and student: "patient and consistent" (arXiv 2106.05237).

A view is made when an example of the training data is read, before collation, so that both models
see the same one and no label is needed. (Targets of the original image, or of another crop, fail
according to Beyer et al.) For a teacher whose outputs are cached, see `recorded_views`.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

Example = dict[str, Any]
View = Callable[[Example, "Views"], Example]
"""Function of an example and its data set that returns a view."""
Parameters = dict[str, Any]  # random values of one view, as plain JSON values
PIXELS = "pixel_values"
LABELS = frozenset({"label", "labels"})


class Views(Dataset[Example]):
    """A data set that returns a new random view of an example at each reading.

    Args:
        data: Examples by index, with a length and tensors ``pixel_values`` ``(C, h, w)`` or
            ``input_ids``.
        *views: Applied to an example in turn: `flip`, `shift`, `noise`, `mixup`, `drop_tokens`, a
            `RandomView` or a function.
    """

    def __init__(self, data: Any, *views: View):
        if not views or not hasattr(data, "__len__"):
            raise ValueError(
                f"Expected data with a length and at least one view, got {type(data).__name__} and "
                f"{len(views)} view(s). For a stream use its own `map`."
            )
        self.data, self.views = data, views
        self._places: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Example:
        example = dict(self.data[index])
        for view in self.views:
            example = view(example, self)
        return example

    def content_keys(self) -> list[str]:
        """Content keys of all original examples, sorted; the first call reads all of them."""
        return sorted(self._index())

    def find(self, key: str) -> Example:
        """The original example with this content key; ValueError: there is none."""
        place = self._index().get(key)
        if place is None:
            raise ValueError(
                f"Expected an example with the content key {key} among these {len(self.data)}, "
                "found none: a recorded mixture names it as its other image. Use the data that "
                "the views were recorded with, or record them again with this data."
            )
        return dict(self.data[place])

    def _index(self) -> dict[str, int]:
        if self._places is None:
            self._places = {plain_key(self.data[i]): i for i in range(len(self.data))}
        return self._places


def plain_key(example: Mapping[str, Any]) -> str:
    """Hash of an example's content, independent of its position: xxh3-128 in hexadecimal.

    All its numbers, lists, arrays and tensors are included, by column name, shape and value, except
    the columns ``label`` and ``labels``. Integers are read as int64 and the rest as float32, so
    that a list and a tensor of the same values have the same key. Texts are not included.

    Raises:
        ValueError: the example has no numbers.
    """
    digest, found = xxhash.xxh3_128(), False
    for path, array in _arrays({k: v for k, v in example.items() if k not in LABELS}, ""):
        kind = "<f4" if array.dtype.kind == "f" and array.size else "<i8"
        digest.update(f"{path}:{kind}{array.shape}\n".encode())
        digest.update(array.astype(kind).tobytes())
        found = True
    if not found:
        raise ValueError(
            f"Expected an example with numbers, arrays or tensors, got the keys {sorted(example)}. "
            "Put the processor or tokenizer below the views."
        )
    return digest.hexdigest()


def _arrays(value: Any, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of numbers within a value, in the order of names."""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    elif isinstance(value, Mapping):
        parts = sorted(value.items())
    elif isinstance(value, list | tuple):
        parts = list(enumerate(value))
        with contextlib.suppress(ValueError, TypeError):  # ragged, or not for numpy to read
            value = np.asarray([np.asarray(part) for part in value])
    if isinstance(value, np.ndarray | np.generic | int | float):
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            parts = ()
            yield path, array
    for name, part in parts:
        yield from _arrays(part, f"{path}/{name}")


class RandomView:
    """A view in two steps: draw random values, then apply them, now or later.

    A custom one is a frozen dataclass (its repr shows its settings) with these two methods.
    """

    limits: ClassVar[dict[str, tuple[str, float]]] = {}  # setting -> its name, largest value

    def __post_init__(self) -> None:
        for name, (what, high) in self.limits.items():
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"Expected {what} from 0 to {high:g}, got {getattr(self, name)}.")

    def draw(self, example: Example, data: Views) -> Parameters:
        """Draw values from torch's global generator, as plain JSON."""
        raise NotImplementedError

    def apply(self, example: Example, parameters: Parameters, data: Views) -> Example:
        """The view with these parameters; nothing is random here."""
        raise NotImplementedError

    def __call__(self, example: Example, data: Views) -> Example:
        return self.apply(example, self.draw(example, data), data)


def _pixels(example: Mapping[str, Any]) -> Tensor:
    pixels = example.get(PIXELS)
    if pixels is None or torch.as_tensor(pixels).dim() != 3:
        raise ValueError(
            f"Expected `{PIXELS}` (C, h, w) in an example, got the keys {sorted(example)}. Put "
            "the processor's transform below the views."
        )
    return torch.as_tensor(pixels)


class _Seeded(RandomView):
    """A view that draws a seed only."""

    def draw(self, example: Example, data: Views) -> Parameters:
        return {"seed": int(torch.randint(2**32, ()))}


def _seeded(parameters: Parameters) -> torch.Generator:
    return torch.Generator().manual_seed(parameters["seed"])


@dataclass(frozen=True)
class flip(RandomView):  # noqa: N801 (a verb, as the other views)
    """Mirror an image, left to right."""

    limits: ClassVar = {"chance": ("the chance of a flip", 1)}
    chance: float = 0.5

    def draw(self, example: Example, data: Views) -> Parameters:
        return {"flip": bool(torch.rand(()) < self.chance)}

    def apply(self, example: Example, parameters: Parameters, data: Views) -> Example:
        pixels = _pixels(example)
        return {**example, PIXELS: pixels.flip(-1) if parameters["flip"] else pixels}


@dataclass(frozen=True)
class shift(RandomView):  # noqa: N801
    """Shift an image by up to this number of pixels each way, repeating the border."""

    limits: ClassVar = {"pixels": ("pixels to shift by", math.inf)}
    pixels: int = 4

    def draw(self, example: Example, data: Views) -> Parameters:
        top, left = torch.randint(2 * self.pixels + 1, (2,)).tolist()
        return {"top": top, "left": left}

    def apply(self, example: Example, parameters: Parameters, data: Views) -> Example:
        image = _pixels(example)
        padded = F.pad(image[None], (self.pixels,) * 4, mode="replicate")[0]
        (height, width), (top, left) = image.shape[-2:], (parameters["top"], parameters["left"])
        return {**example, PIXELS: padded[:, top : top + height, left : left + width]}


@dataclass(frozen=True)
class noise(_Seeded):  # noqa: N801
    """Add Gaussian noise, in the units of the processed image."""

    limits: ClassVar = {"deviation": ("the deviation of the noise", math.inf)}
    deviation: float = 0.1

    def apply(self, example: Example, parameters: Parameters, data: Views) -> Example:
        pixels = _pixels(example)
        if not pixels.is_floating_point():
            raise ValueError(
                f"Expected `{PIXELS}` in floating point to add noise to, got {pixels.dtype}. Put "
                "the processor's rescaling below the views."
            )
        normal = torch.randn(pixels.shape, generator=_seeded(parameters), dtype=pixels.dtype)
        return {**example, PIXELS: pixels + self.deviation * normal.to(pixels.device)}


@dataclass(frozen=True)
class mixup(RandomView):  # noqa: N801
    """Mix an image with another one, in any ratio: function matching.

    The mixture is marked as unlabelled (-100): its only target is the teacher. A recorded mixture
    names the other image by its content, not by its position in the data.
    """

    labels: tuple[str, ...] = ("labels",)

    def draw(self, example: Example, data: Views) -> Parameters:
        keys = data.content_keys()
        return {"other": keys[int(torch.randint(len(keys), ()))], "share": float(torch.rand(()))}

    def apply(self, example: Example, parameters: Parameters, data: Views) -> Example:
        return self._mixed(example, data.find(parameters["other"]), parameters["share"])

    def __call__(self, example: Example, data: Views) -> Example:
        """Choose the other image by position: without recording no content keys are needed."""
        other = data.data[int(torch.randint(len(data.data), ()))]
        return self._mixed(example, other, float(torch.rand(())))

    def _mixed(self, example: Example, other: Mapping[str, Any], share: float) -> Example:
        mixture = share * _pixels(example) + (1 - share) * _pixels(other)
        mixed = {**example, PIXELS: mixture}
        for key in self.labels:
            if key in mixed:
                label = torch.as_tensor(mixed[key])
                mixed[key] = torch.full_like(
                    label, float("nan") if label.is_floating_point() else -100
                )
        return mixed


@dataclass(frozen=True)
class drop_tokens(_Seeded):  # noqa: N801
    """Replace some tokens of a text by the mask token, except those to keep (special tokens)."""

    limits: ClassVar = {"chance": ("the chance of a dropped token", 1)}
    mask_token: int
    chance: float = 0.1
    keep: tuple[int, ...] = ()

    def apply(self, example: Example, parameters: Parameters, data: Views) -> Example:
        ids = torch.as_tensor(example["input_ids"])
        dropped = torch.rand(ids.shape, generator=_seeded(parameters)).to(ids.device) < self.chance
        for token in (*self.keep, self.mask_token):
            dropped &= ids != token
        masked = ids.masked_fill(dropped, self.mask_token)
        is_list = isinstance(example["input_ids"], list)
        return {**example, "input_ids": masked.tolist() if is_list else masked}
