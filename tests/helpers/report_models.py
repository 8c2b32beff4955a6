"""Small models and data for reports: texts, pictures, sounds and rows of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tiny_recipes import WORDS, bert
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from hf_distill.robustness import Examples, Predictor

tf: Any = transformers
NAMES = ("negative", "positive")


def tokenizer() -> Any:
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )


def classifier(seed: int, names: tuple[str, ...] = NAMES) -> Any:
    """A tiny BERT with random weights; dropout is on in training mode."""
    torch.manual_seed(seed)
    sizes = {k: v for k, v in bert(2).items() if k != "model_type"}
    labels = dict(enumerate(names))
    config = BertConfig(**sizes, id2label=labels, label2id={v: k for k, v in labels.items()})
    return BertForSequenceClassification(config).eval()


def reader(seed: int, name: str = "model") -> Predictor:
    """A subject that reads texts."""
    return Predictor(name, classifier(seed), tokenizer())


def texts(count: int = 16, seed: int = 0) -> Examples:
    """Sentences of known and unknown words, of all lengths up to the limit; no two alike."""
    generator = np.random.default_rng(seed)
    found: dict[str, int] = {}
    while len(found) < count:
        length = int(generator.integers(3, 12))
        words = generator.choice([*WORDS, "wonderful", "London"], size=length)
        found[" ".join(words)] = int(generator.integers(2))
    return Examples(tuple(found), np.array(list(found.values())), names=NAMES)


class Linear(nn.Module):
    """Logits of rows of numbers: no transformers model at all."""

    main_input_name = "rows"
    bias: Tensor

    def __init__(self, weight: Any, bias: Any = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(np.asarray(weight), dtype=torch.float32))
        self.register_buffer("bias", torch.as_tensor(bias, dtype=torch.float32))

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.weight.T + self.bias


def linear(weight: Any, name: str = "linear") -> Predictor:
    return Predictor(name, Linear(weight))


def rows(count: int = 200, features: int = 6, seed: int = 0) -> tuple[Examples, np.ndarray]:
    """Rows of numbers, their classes by the sign of a weighted sum, and these weights."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=features)
    values = generator.normal(size=(count, features)).astype(np.float32)
    labels = (values @ truth > 0).astype(np.int64)
    return Examples(tuple(values), labels), np.stack([-truth, truth])


def saved(folder: Path, seed: int) -> Path:
    """A tiny BERT with its tokenizer in a folder."""
    classifier(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def pictures(count: int = 5) -> list[np.ndarray]:
    """Coloured noise."""
    return list(np.random.default_rng(0).integers(0, 256, (count, 9, 9, 3), dtype=np.uint8))


def viewer(seed: int = 0) -> Predictor:
    """A subject that looks at pictures."""
    torch.manual_seed(seed)
    config = tf.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
    )
    processor = tf.ViTImageProcessorPil(
        size={"height": 8, "width": 8}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    return Predictor("viewer", tf.ViTForImageClassification(config), processor)


def listener(seed: int = 0) -> Predictor:
    """A subject that hears sounds, of which it gets no mask."""
    torch.manual_seed(seed)
    config = tf.Wav2Vec2Config(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        num_labels=2,
    )
    processor = tf.Wav2Vec2FeatureExtractor(sampling_rate=16000, return_attention_mask=False)
    return Predictor("listener", tf.Wav2Vec2ForSequenceClassification(config), processor)


def sounds() -> list[dict[str, Any]]:
    """Noises of several lengths, two of them twice."""
    generator = np.random.default_rng(0)
    lengths = (800, 500, 800, 650, 500)
    arrays = [generator.normal(size=n).astype(np.float32) for n in lengths]
    return [{"array": array, "sampling_rate": 16000} for array in arrays]
