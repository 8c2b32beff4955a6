"""Tiny finished students with their tokenizers and processors, and what plain libraries say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedTokenizerFast

from hf_distill.evaluation.examples import Examples

onnx, onnxruntime, _ = map(pytest.importorskip, ("onnx", "onnxruntime", "onnxscript"))

TEXT = ("sequence_classification", "multi_label", "regression", "token_classification")
TEXT = (*TEXT, "question_answering", "masked_lm", "causal_lm", "encoder")
IMAGE = ("image_classification", "semantic_segmentation")
AUDIO = ("audio_classification", "ctc")
RATE = 2000
WORDS = [f"w{n}" for n in range(tiny_models.VOCAB - 4)]


def tokenizer(side: str = "right", **special: Any) -> PreTrainedTokenizerFast:
    """A word a token; pairs have token types, as BERT's do."""
    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    words.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=16,
        padding_side=side,
        model_input_names=["input_ids", "attention_mask", *(["token_type_ids"] * (side != "left"))],
        **{**names, **special},
    )


def processor(name: str) -> Any:
    """What turns raw examples of a task into inputs."""
    if name in IMAGE:
        return transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    if name in AUDIO:
        return transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    return tokenizer("left" if name == "causal_lm" else "right")


def saved(folder: Path, name: str, model: nn.Module | None = None, beside: Any = None) -> Path:
    """A finished student of a task in its folder."""
    student: Any = tiny_models.CASES[name].models(torch.float32)[0] if model is None else model
    if name == "multi_label":
        student.config.problem_type = "multi_label_classification"
    student.save_pretrained(folder)
    (beside or processor(name)).save_pretrained(folder)
    return folder


def batches(folder: Path, name: str) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs of several batch sizes and lengths, without any code of the package."""
    draw = np.random.default_rng(5)
    for rows, longest in ((1, 3), (3, 11), (4, 7)):
        sizes = [longest, *draw.integers(1, longest, rows - 1).tolist()]
        if name in IMAGE:
            values = [draw.integers(0, 255, (20, 24, 3), "uint8") for _ in sizes]
            loaded = transformers.AutoImageProcessor.from_pretrained(folder)
            yield dict(loaded(values, return_tensors="pt"))
        elif name in AUDIO:
            sounds = [draw.normal(0, 1, 150 * size).astype("float32") for size in sizes]
            loaded = transformers.AutoFeatureExtractor.from_pretrained(folder)
            yield dict(loaded(sounds, sampling_rate=RATE, padding=True, return_tensors="pt"))
        else:
            texts = [" ".join(draw.choice(WORDS, size)) for size in sizes]
            pairs = [texts, texts[::-1]] if name == "question_answering" else [texts]
            loaded = transformers.AutoTokenizer.from_pretrained(folder)
            yield dict(loaded(*pairs, padding=True, truncation=True, return_tensors="pt"))


def reloaded(folder: Path) -> Any:
    config: Any = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()


def difference(folder: Path, name: str, file: str) -> float:
    """The largest difference of an output at real positions, by onnxruntime and transformers."""
    session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
    model, worst = reloaded(folder), 0.0
    for batch in batches(folder, name):
        found = session.run(None, {key: value.numpy() for key, value in batch.items()})
        with torch.no_grad():
            answer = model(**batch)
        for output, said in zip(session.get_outputs(), found, strict=True):
            gap = np.abs(said - answer[output.name].numpy())
            if name in ("token_classification", "question_answering", "causal_lm", "encoder"):
                gap = gap[batch["attention_mask"].numpy() > 0]
            worst = max(worst, float(gap.max()))
    return worst


def labelled(rows: int, names: tuple[str, ...] = ()) -> Examples:
    draw = np.random.default_rng(3)
    texts = tuple(" ".join(draw.choice(WORDS, 2 + n % 9)) for n in range(rows))
    return Examples(texts, draw.integers(0, tiny_models.LABELS, rows), None, names)


def accuracy(folder: Path, examples: Examples, answer: Any) -> float:
    """The share of examples whose largest logit is at the label, one example at a time."""
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    logits = [answer(dict(loaded([text], return_tensors="pt"))) for text in examples.values]
    return float(np.mean([np.argmax(row) for row in logits] == examples.labels))
