"""Plain modules as students and teachers: no config, and answers of every form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

FORMS = ("tensor", "tuple", "dict", "output")


class Recurrent(nn.Module):
    """An LSTM over tokens, with one row of classes for each text.

    Args:
        form: What its ``forward`` returns: one of `FORMS`.
        classes: The number of classes; 1 for a regression.
        width: Of embeddings and states.
        vocabulary: Of its embeddings.
    """

    def __init__(
        self, form: str = "tensor", classes: int = 3, width: int = 8, vocabulary: int = 40
    ):
        super().__init__()
        self.form = form
        self.embeddings = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.classifier = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        states, last = self.lstm(self.embeddings(input_ids))
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ends = real.sum(-1) - 1
        logits = self.classifier(states[torch.arange(len(ends)), ends])
        return answer(self.form, logits, last)


def answer(form: str, logits: Tensor, more: Any) -> Any:
    """The logits, in a form."""
    if form == "tensor":
        return logits
    if form == "tuple":
        return logits, more
    if form == "dict":
        return {"logits": logits, "last": more}
    return SequenceClassifierOutput(logits=logits)  # type: ignore[arg-type]


class Packed(nn.Module):
    """An LSTM that reads packed sequences.

    Args:
        first: Whether the examples are the first dimension of its states.
    """

    def __init__(self, first: bool = True, classes: int = 3, width: int = 8, vocabulary: int = 40):
        super().__init__()
        self.first = first
        self.embeddings = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=first)
        self.classifier = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states, lengths = self.embeddings(input_ids), attention_mask.sum(-1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            states if self.first else states.transpose(0, 1),
            lengths,
            batch_first=self.first,
            enforce_sorted=False,
        )
        logits: Tensor = self.classifier(self.lstm(packed)[1][0][-1])
        return logits


class Tagger(nn.Module):
    """An LSTM with a row of classes for each token."""

    def __init__(self, classes: int = 3, width: int = 8, vocabulary: int = 40):
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.classifier = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.lstm(self.embeddings(input_ids))[0])
        return logits


class Writer(Tagger):
    """A language model; its output layer is its embeddings."""

    def __init__(self, width: int = 8, vocabulary: int = 40):
        super().__init__(vocabulary, width, vocabulary)
        self.classifier.weight = self.embeddings.weight


class Convolutional(nn.Module):
    """A CNN over pictures."""

    def __init__(self, classes: int = 3, channels: int = 4):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, channels, 3, 2), nn.ReLU(), nn.Dropout(0.0))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.features(pixel_values).mean((-1, -2)))}


class Perceptron(nn.Module):
    """A regression on rows of numbers, with one number (no row) for each example."""

    def __init__(self, inputs: int = 5, width: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        numbers: Tensor = self.layers(features).squeeze(-1)
        return numbers


def rows_of_numbers(count: int = 8, inputs: int = 5) -> list[dict[str, Any]]:
    """Examples of a regression."""
    generator = torch.Generator().manual_seed(1)
    found = torch.randn(count, inputs + 1, generator=generator)
    return [{"features": row[:-1], "labels": row[-1]} for row in found]
