"""A whole recipe on a few lines of text, with models of a few thousand weights: no network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

WORDS = ("good", "bad", "film", "plot", "the", "was", "a", "and", "very", "not")
SOURCE = """
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

CARDS = {"lines": {"hub_id": None, "license": "mit", "description": "Invented lines."}}
WORDS = ("film", "plot", "the", "was", "a", "and", "very")


def lines(rows: int = 40, gap: float = 0.5) -> DatasetDict:
    def part(first: int, count: int) -> Dataset:
        texts, labels = [], []
        for n in range(first, first + count):
            words = [WORDS[(n * k) % len(WORDS)] for k in range(1, 3 + n % 4)]
            label = (n // 2) % 2
            word = "good" if label else "bad"
            texts.append(" ".join([*words, word if n % 5 else "not " + word]))
            labels.append(label)
        features = Features(text=Value("string"), label=ClassLabel(names=["negative", "positive"]))
        return Dataset.from_dict({"text": texts, "label": labels}, features=features)

    return DatasetDict(train=part(0, rows), validation=part(1000, 12), test=part(2000, 16))


def broken() -> DatasetDict:
    raise RuntimeError("the shelf is empty")


def no_splits() -> Dataset:
    return Dataset.from_dict({"text": ["a"], "label": [0]})
"""


def bert(layers: int, **sizes: Any) -> dict[str, Any]:
    """A tiny BERT's config; no dropout is left out, so that resuming must restore the RNG."""
    return {
        "model_type": "bert",
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
        "initializer_range": 0.2,
        **sizes,
    }


def recipe(folder: Path, **changes: Any) -> Path:
    """Write a tiny recipe, its data and its tokenizer into a folder; return the YAML's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lines.py").write_text(SOURCE, encoding="utf-8")
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    values: dict[str, Any] = {
        "name": "tiny",
        "task": "text_classification",
        "output_dir": str(folder / "out"),
        "data": {"source": "lines.py:lines", "processor": "./tokenizer"},
        "teacher": {"config": bert(3), "training": {"learning_rate": 2e-3}},
        "student": {"from_teacher_layers": [0, 2]},
        "objective": [
            {"name": "hard_labels", "weight": 0.3},
            {"name": "forward_kl", "weight": 0.7, "temperature": 2.0},
        ],
        "training": {
            "learning_rate": 1e-3,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "logging_steps": 2,
            "disable_tqdm": True,
            "use_cpu": True,
        },
        "card": {"license": "apache-2.0", "language": "en"},
    }
    for key, value in changes.items():
        old = values.get(key)
        values[key] = {**old, **value} if isinstance(old, dict) and value is not None else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


PICTURES = """
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL.Image import fromarray


def squares() -> DatasetDict:
    def part(seed: int, count: int) -> Dataset:
        noise = np.random.default_rng(seed)
        labels = [n % 2 for n in range(count)]
        pixels = [noise.integers(90 * k, 90 * k + 160, (9, 9), "uint8") for k in labels]
        pictures = [fromarray(grey) for grey in pixels]
        features = Features(image=Image(), label=ClassLabel(names=["dark", "light"]))
        return Dataset.from_dict({"image": pictures, "label": labels}, features=features)

    return DatasetDict(train=part(0, 24), validation=part(1, 8), test=part(2, 8))
"""


def pictures(folder: Path) -> Path:
    """Write a tiny recipe on pictures into a folder; return the YAML's path."""
    resnet = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    path = recipe(
        folder,
        task="image_classification",
        data={
            "source": "squares.py:squares",
            "processor": {
                "image_processor_type": "ViTImageProcessor",
                "size": {"height": 8, "width": 8},
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            },
        },
        teacher={"config": {"model_type": "resnet", **resnet}},
        student={
            "from_teacher_layers": None,
            "config": {"model_type": "mobilenet_v1", "depth_multiplier": 0.05},
        },
    )
    (folder / "squares.py").write_text(PICTURES, encoding="utf-8")
    return path


def record(folder: Path, stage: str) -> dict[str, Any]:
    """What a stage of the recipe in this folder has written down."""
    loaded: dict[str, Any] = json.loads((folder / "out" / stage / "stage.json").read_text())
    return loaded


def held_out(folder: Path) -> tuple[list[str], list[int]]:
    """The texts and labels of the test split of the recipe in this folder."""
    spec = importlib.util.spec_from_file_location("lines_of_a_test", folder / "lines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    test = module.lines()["test"]
    return test["text"][:], test["label"][:]


def probabilities(model: Path, texts: list[str]) -> np.ndarray:
    """Plain transformers, one text at a time, in float64."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForSequenceClassification.from_pretrained(model).double().eval()
    with torch.no_grad():
        rows = [loaded(**tokenizer(text, return_tensors="pt")).logits for text in texts]
    probabilities: np.ndarray = torch.cat(rows).softmax(-1).numpy()
    return probabilities


PROSE = """
from datasets import Dataset, DatasetDict

WORDS = ("film", "plot", "the", "was", "a", "and", "very", "good", "bad", "not")


def sentence(n: int) -> str:
    return " ".join(WORDS[(n * k + k // 3) % len(WORDS)] for k in range(1, 6 + n % 5))


def prose() -> DatasetDict:
    def part(first: int, count: int) -> Dataset:
        return Dataset.from_dict({"text": [sentence(n) for n in range(first, first + count)]})

    return DatasetDict(train=part(0, 32), validation=part(100, 8), test=part(200, 8))


def answers() -> DatasetDict:
    def part(first: int, count: int) -> Dataset:
        rows = range(first, first + count)
        return Dataset.from_dict(
            {
                "prompt": [sentence(n) for n in rows],
                "completion": [f" {sentence(7 * n + 3)}" for n in rows],
            }
        )

    return DatasetDict(train=part(0, 32), validation=part(100, 8), test=part(200, 8))
"""


def llama(layers: int, **sizes: Any) -> dict[str, Any]:
    """A tiny Llama's config."""
    return {
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "bos_token_id": None,
        **sizes,
    }


def language(folder: Path, **changes: Any) -> Path:
    """Write a tiny recipe of language models into a folder; return the YAML's path.

    The teacher is ready, as in the shipped ones: a model with random weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prose.py").write_text(PROSE, encoding="utf-8")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**llama(3))).save_pretrained(
        folder / "expert"
    )
    values: dict[str, Any] = {
        "task": "causal_lm",
        "data": {"source": "prose.py:prose", "max_length": 12},
        "teacher": {"model": "./expert", "config": None, "fine_tuned": True, "training": {}},
        "objective": [{"name": "forward_kl", "temperature": 1.0}],
    }
    for key, value in changes.items():
        old = values.get(key)
        values[key] = {**old, **value} if isinstance(old, dict) else value
    path = recipe(folder, **values)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_special_tokens({"eos_token": "[SEP]"})
    tokenizer.save_pretrained(folder / "tokenizer")
    return path
