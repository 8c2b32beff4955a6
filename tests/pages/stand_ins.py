"""Stand-ins without network, for blocks of the pages: models, tokenizers and data on the Hub.

A function that a page names (``<!-- setup: stand_ins.text_classifiers -->``) takes any of ``names``
(the page's namespace so far), ``folder`` (the empty working directory) and ``monkeypatch``, and
returns the names that the block may use. A function ``check_text_classifiers`` beside it, with the
same arguments, is called after the block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

from hf_distill.models.embedding import SentenceModel

TEXTS = ["a dull film", "great fun", "this never ends", "warm and very funny indeed"]
REVIEWS = {
    "text": TEXTS * 4,
    "label": [0, 1, 0, 1] * 4,
}


def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit every training to two steps on the CPU, without trackers; applied to all pages."""
    original = TrainingArguments.__post_init__

    def short(self: TrainingArguments) -> None:
        self.max_steps = 2 if self.max_steps < 0 else min(self.max_steps, 2)
        self.use_cpu, self.report_to, self.disable_tqdm = True, "none", True
        self.logging_strategy = "no"
        original(self)

    monkeypatch.setattr(TrainingArguments, "__post_init__", short)


def word_tokenizer(texts: list[str] = TEXTS) -> PreTrainedTokenizerFast:
    """A tokenizer with BERT's special tokens and one token for each word of the texts."""
    words = " ".join(texts).split()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*marks, *dict.fromkeys(words)])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), marks, strict=True))
    special = {f"{name}_token": mark for name, mark in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=32, **special)


def text_embedder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """all-MiniLM-L6-v2, tiny, with its list of modules, on the Hub."""
    teacher = SentenceModel(bert().base_model)
    on_hub(folder, monkeypatch, "sentence-transformers/all-MiniLM-L6-v2", teacher, word_tokenizer())
    return {}


def bi_encoder() -> dict[str, Any]:
    """``encoder``, ``cross_encoder`` and their ``tokenizer``."""
    encoder, cross_encoder = bert(1, seed=1).base_model, bert(2, classes=1)
    return {"encoder": encoder, "cross_encoder": cross_encoder, "tokenizer": word_tokenizer()}


def bert(layers: int = 2, seed: int = 0, classes: int = 2) -> PreTrainedModel:
    """A tiny ``BertForSequenceClassification`` for `word_tokenizer`."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(word_tokenizer()), hidden_size=32, intermediate_size=48,
        num_hidden_layers=layers, num_attention_heads=2, max_position_embeddings=32,
        num_labels=classes,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def on_hub(folder: Path, monkeypatch: pytest.MonkeyPatch, repo: str, *parts: Any) -> Path:
    """Put saved models, tokenizers and processors into an offline Hub cache, as ``repo``."""
    cache = folder / ".hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    stored = cache / f"models--{repo.replace('/', '--')}"
    snapshot = stored / "snapshots" / ("0" * 40)
    for part in parts:
        part.save_pretrained(snapshot)
    (stored / "refs").mkdir(exist_ok=True)
    (stored / "refs" / "main").write_text("0" * 40)
    return snapshot


def data_on_hub(monkeypatch: pytest.MonkeyPatch, **found: datasets.DatasetDict) -> None:
    """Let ``datasets.load_dataset`` return these data sets (``__`` in a name stands for ``/``)."""
    known = {name.replace("__", "/"): data for name, data in found.items()}

    def load_dataset(path: str, *_: Any, split: str | None = None, **__: Any) -> Any:
        return known[path] if split is None else known[path][split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def two_tokenizers() -> dict[str, Any]:
    """As `text_classifiers`, with raw texts, and a teacher with a tokenizer of its own."""
    own = word_tokenizer(["one", *TEXTS, "more"])
    teacher = bert(2)
    teacher.resize_token_embeddings(len(own))
    given = text_classifiers()
    train = given["train"].add_column("text", REVIEWS["text"])
    return {**given, "teacher": teacher, "teacher_tokenizer": own, "train": train}


def text_classifiers() -> dict[str, Any]:
    """``student``, ``teacher``, ``tokenizer``, ``collator``, and tokenized ``train``, ``test``."""
    tokenizer = word_tokenizer()
    rows = datasets.Dataset.from_dict(REVIEWS).rename_column("label", "labels")
    rows = rows.map(lambda row: tokenizer(row["text"]), batched=True, remove_columns=["text"])
    return {
        "student": bert(1, seed=1),
        "teacher": bert(2),
        "tokenizer": tokenizer,
        "collator": transformers.DataCollatorWithPadding(tokenizer),
        "train": rows,
        "test": rows,
    }
