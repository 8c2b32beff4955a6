"""Misspelt versions of a recipe's texts, for objectives that show them to the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_distill.data.perturbed_pairs import PREFIX, PairedCollator
from hf_distill.recipe.sections import NoiseSection
from hf_distill.robustness.perturbations import perturb

Encode = Callable[[list[str]], Sequence[list[int]]]
IDS = f"{PREFIX}input_ids"


def with_noise(
    dataset: Dataset, texts: Sequence[str], encode: Encode, noise: NoiseSection, versions: int
) -> Dataset:
    """Add a column with the tokens of several perturbed versions of each text.

    Args:
        dataset: The tokenised examples.
        texts: Their texts.
        encode: Makes token ids of texts.
        noise: Which perturbations; each version of a text is under one of them, at one severity.
        versions: How many.
    """
    made = [encode(_version(texts, noise, number)) for number in range(versions)]
    return dataset.add_column(IDS, [list(each) for each in zip(*made, strict=True)])


def _version(texts: Sequence[str], noise: NoiseSection, number: int) -> list[str]:
    kinds = [(name, severity) for name in noise.perturbations for severity in noise.severities]
    drawn = np.random.default_rng([noise.seed, number]).integers(len(kinds), size=len(texts))
    found = list(texts)
    for kind, (name, severity) in enumerate(kinds):
        own = np.flatnonzero(drawn == kind).tolist()
        changed = perturb([texts[i] for i in own], name, severity, seed=noise.seed + number)
        for index, text in zip(own, changed, strict=True):
            found[index] = text
    return found


@dataclass(frozen=True)
class RandomVersionCollator:
    """A collator that takes one of the versions of each example, drawn as dropout is.

    Args:
        collate: Makes a batch of examples without versions.
    """

    collate: Callable[[list[Any]], Mapping[str, Any]]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [dict(example) for example in examples]
        for row in rows:
            if versions := row.get(IDS):
                row[IDS] = versions[int(torch.randint(len(versions), ()))]
        return PairedCollator(self.collate)(rows)
