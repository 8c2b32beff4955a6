"""Parts of a recipe: the data, the cache of the teacher's outputs, the adapter of a student."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_distill.recipe.errors import RecipeError
from hf_distill.robustness.perturbations import perturbation

Dtype = Literal["float32", "bfloat16", "float16"]


def path_of(text: str) -> Path:
    """The folder that a recipe names; ``~`` is the user's home."""
    return Path(os.path.expanduser(text))  # Path.expanduser raises where there is no such user


@dataclass(frozen=True)
class NoiseSection:
    """Perturbed versions of the training texts, for objectives that read them: `Columns`."""

    perturbations: list[str]
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    versions: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.perturbations or not self.severities or self.versions < 1:
            raise RecipeError(
                "`data.noisy`: expected at least one of `perturbations`, of `severities` and of "
                f"`versions`, got {self.perturbations}, {self.severities}, {self.versions}."
            )
        for name in self.perturbations:
            try:
                perturbation(name, "text")
            except ValueError as error:
                raise RecipeError(f"`data.noisy.perturbations`: {error}") from error


@dataclass(frozen=True)
class Data:
    """Where the examples come from: a Hub data set, or a function in a Python file."""

    source: str
    config: str | None = None
    revision: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    text_column: str = "text"
    text_pair_column: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    train_split: str = "train"
    validation_split: str | None = "validation"
    test_split: str = "test"
    max_train_examples: int | None = None
    max_eval_examples: int | None = None
    max_test_examples: int | None = None
    max_length: int | None = None
    processor: str | dict[str, Any] | None = None
    noisy: NoiseSection | None = None
    packing: Literal["first_fit", "wrapped"] | None = None
    assistant_only: bool = True
    completion_only: bool = True
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CacheSection:
    """How the teacher's outputs are kept on disk; what is None has its default."""

    format: Literal["full", "top_k", "sampled"] = "full"
    k: int | None = None
    draws: int | None = None
    dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    hidden_states: bool | dict[str, Any] | None = None
    attentions: bool | None = None
    path: str | None = None


@dataclass(frozen=True)
class LoraSection:
    """Train an adapter of low rank; the published student has it merged into its weights."""

    r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: str | list[str] | None = None

    def __post_init__(self) -> None:
        if self.r < 1 or not 0 <= self.lora_dropout < 1:
            raise RecipeError(
                "`lora`: expected `r` of at least 1 and `lora_dropout` from 0 to below 1, got "
                f"{self.r} and {self.lora_dropout}."
            )
