"""Prompts out of batches of data, batches out of prompts and completions, and their buffer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_distill.models.batches import ALIGNED, GENERATED, IGNORE, Batch
from hf_distill.models.task_model import TaskModel
from hf_distill.training.on_policy.generating import Tokens
from hf_distill.utils.files import replacing

PromptCompletion = tuple[Tokens, Tokens]
"""A prompt and its completion."""


@dataclass(frozen=True)
class Prompts:
    """Prompts in a batch of data: the tokens before the first learned one of each text.

    A text's first token is never learned; a text without any learned token is a prompt as a whole.

    Args:
        task_model: The student's.
        length: So many first tokens are the prompt instead; None: as above.
        longest: A longer prompt loses its first tokens; None: never.
        start: The prompt of a row without tokens; None: there is no such token.
    """

    task_model: TaskModel
    length: int | None = None
    longest: int | None = None
    start: int | None = None

    def of(self, batch: Batch) -> list[Tokens]:
        """The prompts of a collated batch, in its order.

        Raises:
            ValueError: a row without tokens, and no token that a text starts with.
        """
        ids: Tensor = batch["input_ids"]
        # what is learned does not depend on where a teacher's tokens stand
        items = self.task_model.items({**batch, ALIGNED: None})
        mask = batch.get("attention_mask")
        real = items.masks.get("hidden") if mask is None else mask.bool()
        real = torch.ones_like(ids, dtype=torch.bool) if real is None else real
        rows = zip(ids.tolist(), real.tolist(), strict=True)
        tokens = [[(t, i) for t, (i, r) in enumerate(zip(*row, strict=True)) if r] for row in rows]
        if self.task_model.config.is_encoder_decoder:
            return [self._fitting([i for _, i in row]) for row in tokens]
        learned = items.masks["items"].tolist()
        positions = batch.get("position_ids")
        packed = positions is not None and positions.shape == ids.shape
        starts = positions.tolist() if packed and positions is not None else [None] * len(ids)
        prompts = []
        for row, own, begins in zip(tokens, learned, starts, strict=True):
            prompts += [self._fitting(self._prompt(text, own)) for text in _texts(row, own, begins)]
        return prompts

    def _prompt(self, text: Sequence[tuple[int, int]], learned: Sequence[bool]) -> Tokens:
        """``learned`` at a position is whether the next token is."""
        if self.length is not None:
            return [i for _, i in text[: self.length]]
        first = next((n for n, (t, _) in enumerate(text) if learned[t]), len(text))
        return [i for _, i in text[: first + 1]]

    def _fitting(self, prompt: Tokens) -> Tokens:
        if not prompt and self.start is None:
            raise ValueError(
                "Expected a prompt of at least one token, got a row without tokens, and the "
                "tokenizer has no bos_token. Drop empty rows from the data."
            )
        if not prompt and self.start is not None:
            return [self.start]
        return prompt if self.longest is None else prompt[-self.longest :]


def _texts(
    row: Sequence[tuple[int, int]], learned: Sequence[bool], positions: Sequence[int] | None
) -> list[Sequence[tuple[int, int]]]:
    """The texts of a packed row, or the row: their positions go on one by one. Of several texts
    those that teach something."""
    if positions is None:
        return [row]
    cuts = [n for n in range(1, len(row)) if positions[row[n][0]] != positions[row[n - 1][0]] + 1]
    if not cuts:
        return [row]
    texts = [row[a:b] for a, b in zip([0, *cuts], [*cuts, len(row)], strict=True)]
    return [text for text in texts if any(learned[t] for t, _ in text)] or texts[:1]


def assemble(
    pairs: Sequence[PromptCompletion], task_model: TaskModel, padding: int
) -> dict[str, Tensor]:
    """A batch for training, padded on the right, with labels of -100 on all but the completions:
    ``input_ids``, ``attention_mask``, ``labels``, ``(B, T)``, and a mark `GENERATED`, ``(B,)``."""
    if task_model.config.is_encoder_decoder:
        texts, labels = [p for p, _ in pairs], [c or [IGNORE] for _, c in pairs]
    else:
        texts = [p + c for p, c in pairs]
        labels = [[IGNORE] * len(p) + c for p, c in pairs]
    return {
        "input_ids": _padded(texts, padding),
        "attention_mask": _padded([[1] * len(text) for text in texts], 0),
        "labels": _padded(labels, IGNORE),
        GENERATED: torch.ones(len(pairs), dtype=torch.bool),
    }


def _padded(rows: Sequence[Tokens], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def longest_prompt(completion: int, configs: Sequence[Any]) -> int | None:
    """Largest prompt length for which a completion of this length fits into every context."""
    texts = [c.get_text_config() if hasattr(c, "get_text_config") else c for c in configs]
    limits = [getattr(text, "max_position_embeddings", None) for text in texts]
    context = min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)
    if context is None:
        return None
    if completion >= context:
        raise ValueError(
            f"Expected a max_completion_length below the context of {context} tokens, got "
            f"{completion}: no prompt would fit. Lower it."
        )
    return context - completion


def start_token(tokenizer: Any, config: Any) -> int | None:
    """The token that a text without any begins with."""
    tokens = (getattr(holder, "bos_token_id", None) for holder in (tokenizer, config))
    return next((token for token in tokens if isinstance(token, int)), None)


class ReplayBuffer:
    """The last texts, up to a capacity, that the student wrote on this process."""

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
