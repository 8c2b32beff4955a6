"""Tiny recipes of every task on sounds, each with the judge of its figures."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tiny_recipes
import transformers
from scipy.signal import resample_poly
from tiny_models import _wav2vec2

tf: Any = transformers
RATE, STORED = 2000, 4000
"""Samples per second of the feature extractors, and of the files."""
SECONDS = 0.25
CLASSES = ["low", "high"]
SOURCE = '''
import io

import numpy as np
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value

NAMES = ["low", "high"]
FILE = {"audio": {"bytes": Value("binary"), "path": Value("string")}}


def sound(n: int, pitch: float) -> dict:
    """A tone in noise of 0.1 to 0.3 s, in two channels, as the bytes of a file."""
    noise = np.random.default_rng(n)
    times = np.arange(400 + 200 * (n % 5)) / 4000
    tone = np.sin(2 * np.pi * pitch * times)[:, None] + 0.2 * noise.normal(size=(len(times), 2))
    file = io.BytesIO()
    soundfile.write(file, 0.3 * tone, 4000, format="WAV")
    return {"bytes": file.getvalue(), "path": None}


def parts(row, features, sizes=(24, 8, 8)) -> DatasetDict:
    found, first = {}, 0
    for name, size in zip(("train", "validation", "test"), sizes):
        rows = [row(n) for n in range(first, first + size)]
        columns = {key: [r[key] for r in rows] for key in rows[0]}
        found[name] = Dataset.from_dict(columns, features=Features({**FILE, **features}))
        first += size
    return DatasetDict(found).cast_column("audio", Audio(decode=False))


def tones() -> DatasetDict:
    def row(n: int) -> dict:
        return {"audio": sound(n, 100 + 300 * (n % 2)), "label": n % 2}

    return parts(row, {"label": ClassLabel(names=NAMES)})
'''
EXTRACTOR = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "sampling_rate": RATE,
    "return_attention_mask": True,
}
TRAINING = {"num_train_epochs": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 8}


def heard(value: dict[str, Any]) -> np.ndarray:
    """Samples as the extractor reads them, by soundfile and SciPy: mono, cut, resampled."""
    samples, rate = soundfile.read(io.BytesIO(value["bytes"]), dtype="float32")
    assert rate == STORED
    cut = samples.mean(1)[: int(SECONDS * STORED)]
    found: np.ndarray = resample_poly(cut, 1, STORED // RATE).astype(np.float32)
    return found


def classified(model: Path, test: Any) -> dict[str, float]:
    """Accuracy of the stock pipeline."""
    pipe = tf.pipeline("audio-classification", model=str(model), top_k=1)
    names = test.features["label"].names
    sounds = [{"raw": heard(value), "sampling_rate": RATE} for value in test["audio"]]
    hits = [pipe(s)[0]["label"] == names[y] for s, y in zip(sounds, test["label"], strict=True)]
    return {"accuracy": float(np.mean(hits))}


@dataclass(frozen=True)
class Row:
    """One task on tiny sounds.

    Attributes:
        source: The function of `SOURCE` that makes the data.
        judge: ``(folder of a model, test split) -> metrics`` by stock transformers.
        metrics: The metrics that the judge gives.
        task: The recipe's task.
        tag: The pipeline tag of the card.
        auto: The class that loads the published folder.
        config: Settings of the teacher.
        data: Further keys of the recipe's data.
    """

    source: str
    judge: Callable[[Path, Any], dict[str, float]]
    metrics: tuple[str, ...]
    task: str
    tag: str
    auto: str
    config: Callable[[], dict[str, Any]]
    data: dict[str, Any] = field(default_factory=dict)


def listener() -> dict[str, Any]:
    """A tiny wav2vec 2.0 that reads padded batches as single sounds."""
    config: dict[str, Any] = _wav2vec2().to_diff_dict()
    for name in ("transformers_version", "architectures"):
        config.pop(name, None)
    return config


def recipe(row: Row, folder: Path, **changes: Any) -> Path:
    """Write the recipe of a row and its data; return the YAML's path."""
    values: dict[str, Any] = {
        "task": row.task,
        "data": {
            "source": f"sounds.py:{row.source}",
            "processor": EXTRACTOR,
            "max_seconds": SECONDS,
            **row.data,
        },
        "teacher": {"config": row.config(), "training": {"learning_rate": 5e-3}},
        "student": {
            "from_teacher_layers": None,
            "config": {**row.config(), "num_hidden_layers": 1},
        },
        "training": TRAINING,
    }
    for key, value in changes.items():
        old = values.get(key)
        values[key] = {**old, **value} if isinstance(old, dict) else value
    path = tiny_recipes.recipe(folder, **values)
    (folder / "sounds.py").write_text(SOURCE, encoding="utf-8")
    return path


ROWS = {
    "tones": Row(
        "tones",
        classified,
        ("accuracy",),
        "audio_classification",
        "audio-classification",
        "AutoModelForAudioClassification",
        listener,
    ),
}
