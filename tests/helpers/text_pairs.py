"""A tiny recipe of text to text: a word for each of three letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_recipes import recipe
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SOURCE = """
from datasets import Dataset, DatasetDict

LETTERS, WORDS = "abcdefgh", ("good", "bad", "film", "plot", "the", "was", "very", "not")


def spelled(empty: int = 0) -> DatasetDict:
    def part(first, count):
        numbers = [[(n * k + n // 8) % 8 for k in range(1, 3 + n % 3)] for n in range(first, count)]
        texts = [" ".join(LETTERS[i] for i in row) for row in numbers]
        targets = [" ".join(WORDS[i] for i in row) for row in numbers]
        targets[:empty] = [""] * empty
        return Dataset.from_dict({"text": texts, "target": targets})

    return DatasetDict(train=part(0, 64), validation=part(100, 112), test=part(200, 216))
"""
WORDS = ("good", "bad", "film", "plot", "the", "was", "very", "not", *"abcdefgh", "say")
SIZES: dict[str, dict[str, Any]] = {
    "t5": {"d_kv": 8, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 2},
    "bart": {
        **{f"{side}_layers": 2 + (side == "decoder") for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
        **{"max_position_embeddings": 16, "decoder_start_token_id": 1, "pad_token_id": 0},
        **{"eos_token_id": 1, "forced_eos_token_id": None, "bos_token_id": None, "init_std": 0.3},
    },
}
SIZES["marian"] = {**SIZES["bart"], "decoder_start_token_id": 0}


def spelling(folder: Path, kind: str = "t5", **changes: Any) -> Path:
    """Write a tiny recipe of text to text into a folder; return the YAML's path."""
    config = {"model_type": kind, "vocab_size": 24, "d_model": 16, **SIZES[kind]}
    values: dict[str, Any] = {
        "task": "text_to_text",
        "data": {"source": "spelled.py:spelled", "prefix": "say ", "max_target_length": 8},
        "teacher": {"config": config},
        "student": {"from_teacher_layers": {"decoder": 2}},
        "training": {"learning_rate": 5e-3},
    }
    for key, value in changes.items():
        old = values.get(key)
        values[key] = {**old, **value} if isinstance(old, dict) else value
    path = recipe(folder, **values)
    (folder / "spelled.py").write_text(SOURCE, encoding="utf-8")
    words = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    model = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=16, **special)
    tokenizer.save_pretrained(folder / "tokenizer")
    return path
