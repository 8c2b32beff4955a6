"""Outputs of text embedders."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class SentenceOutput(ModelOutput):
    """Outputs of a text embedder.

    Attributes:
        sentence_embedding: ``(B, D)``.
        last_hidden_state: ``(B, T, H)``; None for a static model.
        hidden_states: Outputs of the embeddings and of each layer, on request.
        attentions: Attention maps of each layer, on request.
    """

    sentence_embedding: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
