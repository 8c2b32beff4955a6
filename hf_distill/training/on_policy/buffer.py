"""Completions that are kept, to be trained on again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from hf_distill.training.on_policy.prompts import PromptCompletion
from hf_distill.utils.files import replacing


class ReplayBuffer:
    """The last texts that the student wrote on this process.

    Args:
        capacity: How many.
    """

    def __init__(self, capacity: int):
        self._pairs: deque[PromptCompletion] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def full(self) -> bool:
        return len(self._pairs) == self._pairs.maxlen

    def add(self, pairs: Iterable[PromptCompletion]) -> None:
        """Keep these; the oldest make room."""
        self._pairs.extend(pairs)

    def draw(self, count: int, random: np.random.Generator) -> list[PromptCompletion]:
        """Some of the texts, each once as long as there are enough."""
        chosen = random.choice(len(self._pairs), count, replace=count > len(self._pairs))
        return [self._pairs[index] for index in chosen.tolist()]

    def save(self, path: Path) -> None:
        """Write the tokens to a safetensors file."""
        parts = [part for pair in self._pairs for part in pair]
        tokens = torch.tensor([token for part in parts for token in part], dtype=torch.int64)
        lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64)
        with replacing(path) as temporary:
            save_file({"tokens": tokens, "lengths": lengths}, temporary)

    def load(self, path: Path) -> None:
        """Load the content stored by `save`."""
        saved = load_file(path)
        parts = [part.tolist() for part in saved["tokens"].split(saved["lengths"].tolist())]
        self._pairs.clear()
        self._pairs.extend(zip(parts[::2], parts[1::2], strict=True))
