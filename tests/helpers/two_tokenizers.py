"""Tokenizers of three families, models in float64 for each, and a trainer that does not train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from tiny_trainers import config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from hf_distill import DistillationTrainer

tf: Any = transformers
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "a student learns from its teacher",
    "unbelievable results, honestly",
    "yes",
    "what a thoroughly boring film it was",
    "brown dogs and lazy foxes",
]
OTHERS = ["no", "a film about a fox", "the dog", "it was honestly lazy", "quick", "teacher"]
TAGS = [[0, 1, 2, 1, 0, 2, 1, 0, 2], [1, 0, 2, 1, 0, 2], [2, 1, 0], [1], [0] * 7, [1, 2, 0, 1, 2]]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def word_pieces() -> Any:
    """A tokenizer as BERT's: word pieces in lower case, padding 0."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer: Any = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special)
    tokenizer.train_from_iterator(TEXTS + OTHERS, trainer)
    return BertTokenizerFast(vocab=tokenizer.get_vocab(), do_lower_case=True)


def byte_pairs() -> Any:
    """A tokenizer as RoBERTa's: byte pairs, padding 1, two separators between texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(TEXTS + OTHERS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokens = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    options = {"model_max_length": 40, "model_input_names": ["input_ids", "attention_mask"]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens, **options)


def unigrams() -> Any:
    """A tokenizer as DeBERTa's: unigrams of sentence pieces, padding 0."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    trainer: Any = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=special, unk_token="[UNK]", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS + OTHERS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokens = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **tokens)


PIECES, PAIRS, UNIGRAMS = word_pieces(), byte_pairs(), unigrams()


def randomised(model: Any, seed: int) -> Any:
    """A model in float64 whose outputs differ from example to example."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.double().eval()


def bert(kind: str, seed: int, **extra: Any) -> Any:
    sizes = {**SIZES, "vocab_size": len(PIECES), "max_position_embeddings": 40}
    return randomised(getattr(tf, f"Bert{kind}")(tf.BertConfig(**sizes, **extra)), seed)


def roberta(kind: str, seed: int, **extra: Any) -> Any:
    sizes = {**SIZES, "vocab_size": len(PAIRS), "max_position_embeddings": 42, "pad_token_id": 1}
    made = tf.RobertaConfig(**{**sizes, "hidden_size": 24, "type_vocab_size": 1}, **extra)
    return randomised(getattr(tf, f"Roberta{kind}")(made), seed)


def deberta(kind: str, seed: int, **extra: Any) -> Any:
    sizes = {**SIZES, "vocab_size": max(UNIGRAMS.vocab.values()) + 1, "max_position_embeddings": 40}
    relative = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
    made = tf.DebertaV2Config(**sizes, **relative, type_vocab_size=0, **extra)
    return randomised(getattr(tf, f"DebertaV2{kind}")(made), seed)


def kl(student: torch.Tensor, teacher: torch.Tensor, t: float = 2.0) -> float:
    """Forward KL with a temperature, times its square."""
    p, q = (torch.log_softmax(z / t, -1) for z in (teacher, student))
    return float((p.exp() * (p - q)).sum().detach() * t * t)


def squares(student: torch.Tensor, teacher: torch.Tensor) -> float:
    return float((student - teacher).square().sum())


def logits(model: Any, processor: Any, *texts: Any, **options: Any) -> torch.Tensor:
    """The logits of one example, by the model's own forward."""
    inputs = processor(*texts, return_tensors="pt", **options)
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits[0]
    return found


def made(folder: Path, student: nn.Module, teacher: Any, rows: Any, **options: Any) -> Any:
    """A trainer without an optimizer step to speak of: its first loss is that of the models."""
    arguments = {"learning_rate": 0.0, "per_device_train_batch_size": 4, "max_steps": -1}
    arguments |= {"num_train_epochs": 1, "lr_scheduler_type": "constant"}
    arguments |= {key: options.pop(key) for key in list(options) if key.startswith("per_device")}
    return DistillationTrainer(
        student,
        config(folder, **arguments),
        train_dataset=rows,
        eval_dataset=rows,
        teacher_model=teacher,
        **options,
    )


def tokenized(pairs: bool = False, columns: tuple[str, ...] = ("text",)) -> Dataset:
    """The student's tokens beside the raw texts."""
    rows = Dataset.from_dict({"text": TEXTS, "other": OTHERS, "labels": [0, 1, 2, 0, 1, 2]})
    rows = rows.map(lambda row: PIECES(row["text"], row["other"] if pairs else None))
    keep = {*columns, "labels", "input_ids", "attention_mask", "token_type_ids"}
    return rows.select_columns(sorted(keep & set(rows.column_names)))


TEACHERS: dict[str, tuple[Callable[..., Any], Any]] = {
    "roberta": (roberta, PAIRS),
    "deberta": (deberta, UNIGRAMS),
}
