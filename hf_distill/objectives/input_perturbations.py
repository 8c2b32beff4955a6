"""Input perturbations in training: noise, other columns, another dropout mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_distill.data.perturbed_pairs import PREFIX
from hf_distill.models.batches import Batch
from hf_distill.models.input_space import EMBEDDINGS
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import vocabulary_size
from hf_distill.objectives.base.models_in_step import ModelsInStep
from hf_distill.objectives.base.objective import Context
from hf_distill.utils.suggest import one_of

READ = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "decoder_input_ids")
SEEN = ("pixel_values", "pixel_mask", "input_values", "input_features")


@dataclass(frozen=True)
class InputPerturbation:
    """Base of input perturbations: another batch of the same items, for the student.

    ``needs`` lists the teacher outputs on the clean batch that it reads.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    needs_labels: ClassVar[bool] = False
    citation: ClassVar[str] = ""

    @property
    def columns(self) -> frozenset[str]:
        """The batch keys that it reads besides what the models take."""
        return frozenset()

    def check(self, kind: str, classes: int | None = None) -> None:
        """Raise if it is not defined for a head, see `Objective.check`."""

    def batch(
        self, pair: ModelsInStep, teacher: Signal | None, items: BatchItems, context: Context
    ) -> Batch:
        """The perturbed batch; ``teacher`` is the teacher's signal on the clean one, if needed."""
        raise NotImplementedError


@dataclass(frozen=True)
class SecondDropout(InputPerturbation):
    """The batch itself once more: in training another dropout mask (R-Drop, arXiv 2106.14448)."""

    name: ClassVar[str] = "again"

    def batch(
        self, pair: ModelsInStep, teacher: Signal | None, items: BatchItems, context: Context
    ) -> Batch:
        return pair.batch


@dataclass(frozen=True)
class Gaussian(InputPerturbation):
    """The input with Gaussian noise, within its bounds.

    Args:
        deviation: The standard deviation of each value, in the units of the input's `InputSpace`
            (images: pixel levels from 0 to 1). For text: the root mean square length of a token's
            noise, in lengths of its embedding.
    """

    deviation: float
    name: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        _at_least_0("a deviation", self.deviation)

    def batch(
        self, pair: ModelsInStep, teacher: Signal | None, items: BatchItems, context: Context
    ) -> Batch:
        space = pair.space
        center = space.point(pair.task_model, pair.batch)
        ball = space.ball(pair.batch, center, math.inf, "linf")
        size = self.deviation / (center.shape[-1] ** 0.5 if space.key == EMBEDDINGS else 1.0)
        drawn = normal_like(center, pair.generator())
        return pair.perturbed(ball.project(center + size * ball.scale * drawn))


@dataclass(frozen=True)
class Uniform(InputPerturbation):
    """The input with uniform noise in [-epsilon, epsilon], within its bounds.

    Args:
        epsilon: In the units of the input's `hf_distill.models.input_space.InputSpace`.
    """

    epsilon: float
    name: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        _at_least_0("a radius epsilon", self.epsilon)

    def batch(
        self, pair: ModelsInStep, teacher: Signal | None, items: BatchItems, context: Context
    ) -> Batch:
        space = pair.space
        center = space.point(pair.task_model, pair.batch)
        ball = space.ball(pair.batch, center, self.epsilon, "linf")
        return pair.perturbed(ball.start(pair.generator()))


@dataclass(frozen=True)
class TokenNoise(InputPerturbation):
    """A text in which some tokens are replaced, masked or left out of the attention.

    Padding and special tokens stay. The special ones are those of the tokenizer that the trainer
    has (``processing_class``), and ``keep``.

    Args:
        rate: The chance of each token, from 0 to 1.
        replacement: ``random`` (any token of the vocabulary that is not special), ``mask`` or
            ``drop`` (the token stays in its place and nothing attends to it).
        mask_token: For ``mask``; None: the tokenizer's.
        keep: Ids that stay and are not drawn.
    """

    rate: float
    replacement: str = "random"
    mask_token: int | None = None
    keep: tuple[int, ...] = ()
    name: ClassVar[str] = "token_noise"

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(int(token) for token in self.keep))
        if not 0 <= self.rate <= 1:
            raise ValueError(f"Expected a rate of replaced tokens from 0 to 1, got {self.rate}.")
        one_of("a replacement", self.replacement, ("random", "mask", "drop"))

    def batch(
        self, pair: ModelsInStep, teacher: Signal | None, items: BatchItems, context: Context
    ) -> Batch:
        ids = pair.batch.get("input_ids")
        if ids is None:
            raise ValueError(
                f"Expected a text with `input_ids`, got a batch with {sorted(pair.batch)}. For "
                "images and audio use Gaussian or PGD."
            )
        generator, special = pair.generator(), self._special(pair)
        chosen = torch.rand(ids.shape, generator=generator).to(ids.device) < self.rate
        chosen &= ~torch.isin(ids, torch.tensor(special, device=ids.device, dtype=ids.dtype))
        mask = pair.batch.get("attention_mask")
        if mask is not None:
            chosen &= mask.bool()
        if self.replacement == "drop":
            mask = torch.ones_like(ids) if mask is None else mask
            return {**pair.batch, "attention_mask": mask.masked_fill(chosen, 0)}
        if self.replacement == "mask":
            return {**pair.batch, "input_ids": ids.masked_fill(chosen, self._mask_token(pair))}
        size = vocabulary_size(pair.task_model.config) or 0
        plain = torch.tensor(sorted(set(range(size)) - set(special)), dtype=ids.dtype)
        drawn = plain[torch.randint(len(plain), ids.shape, generator=generator)]
        return {**pair.batch, "input_ids": torch.where(chosen, drawn.to(ids.device), ids)}

    def _special(self, pair: ModelsInStep) -> list[int]:
        tokenizer = getattr(pair.processor, "tokenizer", pair.processor)
        known = getattr(tokenizer, "all_special_ids", None)
        if known is None and not self.keep:
            raise ValueError(
                "Expected to know which tokens are special, and the trainer has no tokenizer. Pass "
                "processing_class=tokenizer, or TokenNoise(…, keep=(ids that must stay,))."
            )
        return sorted({*(known or ()), *self.keep})

    def _mask_token(self, pair: ModelsInStep) -> int:
        tokenizer = getattr(pair.processor, "tokenizer", pair.processor)
        token = self.mask_token
        token = getattr(tokenizer, "mask_token_id", None) if token is None else token
        if token is None:
            raise ValueError(
                "Expected a tokenizer with a mask token, got none. Give its id, TokenNoise(…, "
                "mask_token=…), or use replacement='random'."
            )
        return int(token)


@dataclass(frozen=True)
class PerturbedColumns(InputPerturbation):
    """A perturbed version of each example from columns of the data.

    ``noisy_input_ids`` and ``noisy_attention_mask`` take the place of ``input_ids`` and
    ``attention_mask``, ``noisy_pixel_values`` that of ``pixel_values``: see `perturbed_pairs`.

    Args:
        prefix: What their names begin with.
    """

    prefix: str = PREFIX
    name: ClassVar[str] = "columns"

    def __post_init__(self) -> None:
        if not self.prefix:
            raise ValueError("Expected a prefix of the columns' names, got an empty one.")

    @property
    def columns(self) -> frozenset[str]:
        return frozenset(self.prefix + name for name in (*READ, *SEEN))

    def batch(
        self, pair: ModelsInStep, teacher: Signal | None, items: BatchItems, context: Context
    ) -> Batch:
        found = {
            key.removeprefix(self.prefix): value
            for key, value in pair.batch.items()
            if key.startswith(self.prefix)
        }
        inputs = pair.task_model.accepts.intersection(found)
        if not inputs:
            raise ValueError(
                f"Expected columns {self.prefix}… beside the models' inputs, got "
                f"{sorted(pair.batch)}. Wrap the data, PairedPerturbation(data, …), and the "
                "collator, PairedCollator(collator)."
            )
        plain = items.masks.get("items")
        if "input_ids" in inputs and plain is not None and plain.dim() > 1:
            raise ValueError(
                "Expected one output per text, got one per token: the tokens of a perturbed text "
                "are not those that the labels and the teacher are about. Use TokenNoise."
            )
        dropped = (
            {"attention_mask", "token_type_ids", "position_ids"} if "input_ids" in found else ()
        )
        kept = {key: value for key, value in pair.batch.items() if key not in dropped}
        return {**kept, **found}


def normal_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Normally distributed numbers, drawn on the CPU."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _at_least_0(what: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"Expected {what} of at least 0, got {value}.")
