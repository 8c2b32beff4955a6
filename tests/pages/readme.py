"""Stand-ins for the example of README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from tests.pages import stand_ins


def sst2(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A tiny DistilBERT of six layers and a few reviews, under the names that the example loads."""
    tokenizer = stand_ins.word_tokenizer()
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, hidden_dim=48, n_heads=2)
    model = DistilBertForSequenceClassification(config)
    name = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
    stand_ins.on_hub(folder, monkeypatch, name, model, tokenizer)
    reviews = stand_ins.REVIEWS
    columns = {"idx": list(range(16)), "sentence": reviews["text"], "label": reviews["label"]}
    rows = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=["neg", "pos"]))
    data = DatasetDict({"train": rows, "validation": rows, "test": rows})
    stand_ins.data_on_hub(monkeypatch, stanfordnlp__sst2=data)
    return {}


def check_sst2(names: dict[str, Any], folder: Path) -> None:
    """The example leaves a plain student of half the layers, with its tokenizer."""
    assert names["trainer"].state.global_step == 2
    saved = AutoModelForSequenceClassification.from_pretrained(folder / "sst2-student")
    assert saved.config.n_layers == 3
    trained = names["trainer"].model.state_dict()
    assert saved.state_dict().keys() == trained.keys()
    assert all(torch.equal(value, trained[key]) for key, value in saved.state_dict().items())
    AutoTokenizer.from_pretrained(folder / "sst2-student")
