"""The few parts of torchvision that the official scripts import, for machines without it.

Random transforms draw from torch's generator, as torchvision's do, so that two runs of one seed see
the same pictures. The pictures differ slightly from torchvision's (PIL resizes them); both runs
that are compared see these.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Sequence
from enum import Enum
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F


class InterpolationMode(Enum):
    """How pixels between pixels are made up."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class ImageReadMode(Enum):
    """The colours that `read_image` gives."""

    RGB = "RGB"


def read_image(path: str, mode: ImageReadMode = ImageReadMode.RGB) -> Tensor:
    """A picture file as bytes, ``(channels, height, width)``."""
    return torch.from_numpy(np.array(Image.open(path).convert(mode.value))).movedim(-1, 0)


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]):
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Lambda:
    """A function as a transform."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function

    def __call__(self, image: Any) -> Any:
        return self.function(image)


class RandomResizedCrop:
    """A random part of a PIL picture, at a given size."""

    def __init__(
        self,
        size: int | Sequence[int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    ):
        self.size, self.scale, self.ratio = _both(size), scale, ratio
        self.filter = getattr(Image.Resampling, interpolation.name)

    def __call__(self, image: Image.Image) -> Image.Image:
        share = float(torch.empty(()).uniform_(*self.scale))
        bounds = [math.log(side) for side in self.ratio]
        ratio = math.exp(float(torch.empty(()).uniform_(*bounds)))
        area = share * image.width * image.height
        width = min(image.width, max(1, round(math.sqrt(area * ratio))))
        height = min(image.height, max(1, round(math.sqrt(area / ratio))))
        left = int(torch.randint(image.width - width + 1, ()))
        top = int(torch.randint(image.height - height + 1, ()))
        box = (left, top, left + width, top + height)
        return image.resize(self.size[::-1], self.filter, box=box)


class RandomHorizontalFlip:
    """A PIL picture, or its mirror image."""

    def __init__(self, p: float = 0.5):
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        flipped = float(torch.rand(())) < self.p
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else image


class ToTensor:
    """A PIL picture as numbers between 0 and 1, ``(channels, height, width)``."""

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255


class Resize(nn.Module):
    """A PIL picture or a tensor with its shorter side (or both sides) at a given length."""

    def __init__(
        self,
        size: int | Sequence[int],
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    ):
        super().__init__()
        self.size, self.interpolation = size, interpolation

    def forward(self, image: Any) -> Any:
        height, width = image.shape[-2:] if isinstance(image, Tensor) else image.size[::-1]
        if isinstance(self.size, int) or len(self.size) == 1:
            short = self.size if isinstance(self.size, int) else self.size[0]
            factor = short / min(height, width)
            target = (round(height * factor), round(width * factor))
        else:
            target = _both(self.size)
        if not isinstance(image, Tensor):
            return image.resize(target[::-1], getattr(Image.Resampling, self.interpolation.name))
        larger = F.interpolate(image[None].float(), target, mode=self.interpolation.value)[0]
        return larger if image.is_floating_point() else larger.round().clamp(0, 255).byte()


class CenterCrop(nn.Module):
    """The middle of a PIL picture or of a tensor."""

    def __init__(self, size: int | Sequence[int]):
        super().__init__()
        self.size = _both(size)

    def forward(self, image: Any) -> Any:
        height, width = image.shape[-2:] if isinstance(image, Tensor) else image.size[::-1]
        top, left = (height - self.size[0]) // 2, (width - self.size[1]) // 2
        bottom, right = top + self.size[0], left + self.size[1]
        if isinstance(image, Tensor):
            return image[..., top:bottom, left:right]
        return image.crop((left, top, right, bottom))


class ConvertImageDtype(nn.Module):
    """Bytes as numbers between 0 and 1."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        return image.to(self.dtype) / 255


class Normalize(nn.Module):
    """Channels less their mean, divided by their standard deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.mean, self.std = (torch.tensor(x).view(-1, 1, 1) for x in (mean, std))

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


def _both(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def install() -> None:
    """Let ``import torchvision`` find this."""
    contents: dict[str, tuple[Any, ...]] = {
        "torchvision": (),
        "torchvision.io": (ImageReadMode, read_image),
        "torchvision.transforms": (
            CenterCrop,
            Compose,
            ConvertImageDtype,
            Lambda,
            Normalize,
            RandomHorizontalFlip,
            RandomResizedCrop,
            Resize,
            ToTensor,
        ),
        "torchvision.transforms.functional": (InterpolationMode,),
    }
    for name, members in contents.items():
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for member in members:
            setattr(module, member.__name__, member)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
