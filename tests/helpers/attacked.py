"""Small classifiers of digits to attack, trained in a second, and their processor."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel, ViTConfig, ViTForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from hf_distill.models.input_space import InputSpace, input_space
from hf_distill.models.task_model import TaskModel

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Processor:
    """What `space_of` reads of an image processor."""

    do_rescale, rescale_factor = True, 1 / 255
    do_normalize, image_mean, image_std = True, list(MEAN), list(STD)


class DenseConfig(PreTrainedConfig):
    """No hidden width: a linear classifier."""

    model_type = "dense_for_tests"
    wide: int = 0
    channels: int = 3
    pixels: int = 64


class DenseForImageClassification(PreTrainedModel):
    """Linear, or with one hidden layer and dropout."""

    config_class = DenseConfig
    main_input_name = "pixel_values"

    def __init__(self, config: Any):
        super().__init__(config)
        inputs, wide = config.channels * config.pixels, config.wide
        layers: list[nn.Module] = [nn.Linear(inputs, wide or config.num_labels)]
        if wide:
            layers += [nn.ReLU(), nn.Dropout(0.1), nn.Linear(wide, config.num_labels)]
        self.layers = nn.Sequential(*layers)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.layers(pixel_values.flatten(1)))


def dense(wide: int = 0, labels: int = 10, **config: Any) -> DenseForImageClassification:
    return DenseForImageClassification(DenseConfig(wide=wide, num_labels=labels, **config)).eval()


def vit(labels: int = 10, **config: Any) -> ViTForImageClassification:
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=4,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            num_labels=labels,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.1,
            **config,
        )
    ).eval()


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """All 1797 digits ``(N, 3, 8, 8)`` as a processor gives them, shuffled, and their labels."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    levels = torch.tensor(data.images, dtype=torch.float32)[order, None].expand(-1, 3, -1, -1) / 16
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (levels - mean) / std, torch.tensor(data.target)[order]


def train(
    model: nn.Module,
    pixels: Tensor,
    targets: Tensor,
    epochs: int = 10,
    rate: float = 1e-2,
    temperature: float = 1.0,
) -> Any:
    """Cross-entropy at a temperature, on class ids or on probabilities."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(pixels)).split(64):
            logits = model(pixel_values=pixels[rows]).logits / temperature
            optimizer.zero_grad()
            F.cross_entropy(logits, targets[rows]).backward()
            optimizer.step()
    return model.eval()


def space(model: nn.Module, processor: Any = None) -> InputSpace:
    return input_space(TaskModel(model), Processor() if processor is None else processor)


def state(model: nn.Module) -> Mapping[str, Any]:
    """All that an attack must leave as it was."""
    return {
        "modes": [module.training for module in model.modules()],
        "trained": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "values": [value.clone() for value in model.state_dict().values()],
        "random": torch.get_rng_state(),
    }
