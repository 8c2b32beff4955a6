"""Pairs of a clean and a perturbed example: clean for the teacher, perturbed for the student."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

Example = dict[str, Any]
PREFIX = "noisy_"  # prefix of the columns with the perturbed version


class PairedPerturbation(Dataset[Example]):
    """A data set that adds a perturbed version of each input in further columns.

    ``noisy_input_ids`` of the perturbed text stands next to ``input_ids``, and so on for every key
    that ``encode`` returns. The text itself is left out.

    Args:
        data: Examples by index, with a length.
        encode: Function of a value that returns model inputs, such as a tokenizer.
        perturb: Function of a value and a generator that returns another value.
        column: The column that is perturbed and encoded.
        prefix: Prefix of the columns of the perturbed version.
        seed: Each example has one perturbed version, independent of the order of reading; None: a
            new one at each reading, drawn from torch's global generator (like `Views`).
    """

    def __init__(
        self,
        data: Any,
        encode: Callable[[Any], Mapping[str, Any]],
        perturb: Callable[[Any, np.random.Generator], Any],
        column: str = "text",
        prefix: str = PREFIX,
        seed: int | None = None,
    ):
        if not hasattr(data, "__len__"):
            raise ValueError(
                f"Expected data with a length, got {type(data).__name__}. For a stream use `map`."
            )
        self.data, self.encode, self.perturb = data, encode, perturb
        self.column, self.prefix, self.seed = column, prefix, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Example:
        example = dict(self.data[index])
        if self.column not in example:
            raise ValueError(
                f"Expected a column {self.column!r} to perturb, got {sorted(example)}. Name it: "
                "Noisy(…, column=…)."
            )
        value = example.pop(self.column)
        key = [int(torch.randint(2**32, ()))] if self.seed is None else [self.seed, index]
        noisy = self.encode(self.perturb(value, np.random.default_rng(key)))
        return {
            **example,
            **self.encode(value),
            **{self.prefix + name: part for name, part in noisy.items()},
        }


@dataclass(frozen=True)
class PairedCollator:
    """A collator that makes two batches of each list of examples, plain and perturbed, in one.

    ``collate`` is called once for each version, so that both are padded; ``prefix`` is that of the
    columns of the perturbed version.
    """

    collate: Callable[[list[Example]], Mapping[str, Any]]
    prefix: str = PREFIX

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        plain, noisy = list[Example](), list[Example]()
        for example in examples:
            ours = {k for k in example if k.startswith(self.prefix)}
            plain.append({k: v for k, v in example.items() if k not in ours})
            noisy.append({k.removeprefix(self.prefix): example[k] for k in example if k in ours})
        batch = dict(self.collate(plain))
        if all(noisy):
            found = self.collate(noisy)
            batch.update({self.prefix + name: value for name, value in found.items()})
        return batch
