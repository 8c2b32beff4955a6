"""What stands in for the network and for missing packages while an official script runs.

Nothing of transformers or of the scripts is touched: `evaluate.load` computes a handful of metrics
here, `load_dataset` also reads a folder written by `DatasetDict.save_to_disk`, audio is decoded by
soundfile, torchvision is a small shim, and albumentations draws from numpy's generator (so that two
runs of one seed see the same pictures).
"""

from __future__ import annotations

import importlib.util
import io
import sys
import types
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import soundfile
import torch
from datasets.features import Audio
from transformers.utils import is_torchvision_available

from . import torchvision_shim

Result = dict[str, Any]


# ---- metrics ---------------------------------------------------------------------------------


def accuracy(predictions: Any, references: Any, **_: Any) -> Result:
    return {"accuracy": float(np.mean(np.array(predictions) == np.array(references)))}


def mse(predictions: Any, references: Any, **_: Any) -> Result:
    return {"mse": float(np.mean((np.array(predictions) - np.array(references)) ** 2))}


def f1(predictions: Any, references: Any, average: str = "micro", **_: Any) -> Result:
    from sklearn.metrics import f1_score

    return {"f1": float(f1_score(references, predictions, average=average, zero_division=0))}


def seqeval(predictions: Any, references: Any, **_: Any) -> Result:
    from seqeval import metrics

    scores = ("precision", "recall", "f1")
    found = {
        f"overall_{name}": float(getattr(metrics, f"{name}_score")(references, predictions))
        for name in scores
    }
    return {**found, "overall_accuracy": float(metrics.accuracy_score(references, predictions))}


def squad(predictions: Any, references: Any, **_: Any) -> Result:
    """Exact matches and overlapping words, as percentages."""
    texts = {row["id"]: row["prediction_text"] for row in predictions}
    exact, overlap = [], []
    for row in references:
        truths = list(row["answers"]["text"]) or [""]
        exact.append(max(float(texts[row["id"]].lower() == truth.lower()) for truth in truths))
        overlap.append(max(_word_f1(texts[row["id"]], truth) for truth in truths))
    return {"exact_match": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(overlap))}


def _word_f1(prediction: str, truth: str) -> float:
    ours, theirs = prediction.lower().split(), truth.lower().split()
    common = sum(min(ours.count(word), theirs.count(word)) for word in set(ours))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * common / (len(ours) + len(theirs))


def rouge(predictions: Any, references: Any, use_stemmer: bool = False, **_: Any) -> Result:
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(names, use_stemmer=use_stemmer)
    scores = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in names}


def sacrebleu(predictions: Any, references: Any, **_: Any) -> Result:
    from sacrebleu import corpus_bleu

    by_number = [list(texts) for texts in zip(*references, strict=True)]
    return {"score": corpus_bleu(predictions, by_number).score}


def wer(predictions: Any, references: Any, **_: Any) -> float:
    import jiwer

    return float(jiwer.wer(list(references), list(predictions)))


def mean_iou(
    predictions: Any, references: Any, num_labels: int, ignore_index: int, **_: Any
) -> Result:
    predictions, references = np.array(predictions), np.array(references)
    kept = references != ignore_index
    shared, either, truth = (np.zeros(num_labels) for _ in range(3))
    for label in range(num_labels):
        ours, theirs = (predictions == label) & kept, references == label
        theirs &= kept
        shared[label] = (ours & theirs).sum()
        either[label], truth[label] = (ours | theirs).sum(), theirs.sum()
    iou, found = shared / np.maximum(either, 1), shared / np.maximum(truth, 1)
    return {
        "mean_iou": float(iou.mean()),
        "mean_accuracy": float(found.mean()),
        "overall_accuracy": float(shared.sum() / kept.sum()),
        "per_category_iou": iou,
        "per_category_accuracy": found,
    }


METRICS: dict[str, Callable[..., Any]] = {
    "accuracy": accuracy,
    "f1": f1,
    "glue": accuracy,
    "mean_iou": mean_iou,
    "mse": mse,
    "rouge": rouge,
    "sacrebleu": sacrebleu,
    "seqeval": seqeval,
    "squad": squad,
    "squad_v2": squad,
    "wer": wer,
    "xnli": accuracy,
}


def load_metric(name: str, *_: Any, **__: Any) -> Any:
    """In place of `evaluate.load`: an object whose ``compute`` is one of `METRICS`."""
    return types.SimpleNamespace(compute=METRICS[name])


# ---- data ------------------------------------------------------------------------------------


def load_dataset(
    path: str, name: str | None = None, split: str | None = None, **options: Any
) -> Any:
    """`datasets.load_dataset`, which also reads a folder written by ``save_to_disk``."""
    folder = Path(path)
    if name and (folder / name / "dataset_dict.json").is_file():
        folder = folder / name
    if not (folder / "dataset_dict.json").is_file():
        return _original_load(path, name, split=split, **options)
    whole: Any = datasets.load_from_disk(str(folder))
    if options.get("streaming"):
        whole = datasets.IterableDatasetDict({k: v.to_iterable_dataset() for k, v in whole.items()})
    if split is None:
        return whole
    parts = [whole[part] for part in split.split("+")]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


_original_load = datasets.load_dataset


def decode_audio(self: Audio, value: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
    """In place of torchcodec: a WAV file as floats at its own rate."""
    data = value["bytes"]
    source = io.BytesIO(data) if data is not None else value["path"]
    array, rate = soundfile.read(source, dtype="float32")
    if self.sampling_rate not in (None, rate):
        raise ValueError(f"Expected audio at {self.sampling_rate} Hz, got {rate} Hz.")
    return {"path": value.get("path"), "array": array, "sampling_rate": rate}


def hub_file(repo: str, name: str, **_: Any) -> str:
    """In place of `hf_hub_download`: a file beside a saved data set."""
    return str(Path(repo) / name)


# ---- packages --------------------------------------------------------------------------------


def _module(name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(members)
    sys.modules[name] = module


def _split_sentences() -> None:
    """nltk wants to download how sentences end."""
    import nltk

    nltk.data.find = lambda _: None
    nltk.sent_tokenize = lambda text: text.split(". ")


def _seed_albumentations() -> None:
    """Its pipelines keep generators of their own, which nothing seeds."""
    import albumentations

    draw = albumentations.Compose.__call__

    def seeded(self: Any, *positional: Any, **given: Any) -> Any:
        if not getattr(self, "main_compose", True):
            return draw(self, *positional, **given)
        self.set_random_seed(int(np.random.randint(2**31 - 1)))
        return draw(self, *positional, **given)

    albumentations.Compose.__call__ = seeded


def _boxes(boxes: torch.Tensor, in_fmt: str, out_fmt: str) -> torch.Tensor:
    """`torchvision.ops.box_convert`, for the one pair that the metric of the scripts needs."""
    if in_fmt == out_fmt:
        return boxes
    if (in_fmt, out_fmt) != ("xyxy", "xywh"):
        raise ValueError(f"Expected boxes from xyxy to xywh, got {in_fmt} to {out_fmt}.")
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)


def _average_precision() -> None:
    """torchmetrics asks for torchvision, of which it needs one function."""
    from torchmetrics.detection import mean_ap

    mean_ap._TORCHVISION_AVAILABLE = True


def install(script: Path) -> None:
    """Put everything that a script needs in its place, in this process."""
    import evaluate

    text = script.read_text()
    is_torchvision_available()  # transformers keeps its answer: no
    if "mean_ap" in text:  # before there is a torchvision to be found
        _average_precision()
    evaluate.load = load_metric
    datasets.load_dataset = load_dataset
    huggingface_hub.hf_hub_download = hub_file
    Audio.decode_example = decode_audio
    torchvision_shim.install()
    _module("torchvision.ops", box_convert=_boxes)
    torch.jit.script = lambda module: module  # run_clip compiles its transforms
    if "nltk" in text:
        _split_sentences()
    if "albumentations" in text and importlib.util.find_spec("albumentations"):
        _seed_albumentations()
