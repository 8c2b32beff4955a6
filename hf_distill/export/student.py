"""A finished student as a graph with inputs, outputs and examples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_distill.evaluation.examples import Examples
from hf_distill.evaluation.predictor import Predictor
from hf_distill.models.signals import Needs
from hf_distill.models.task_model import TaskModel

OUTPUTS: dict[str, tuple[str, ...]] = {
    "sequence_classification": ("logits",),
    "image_classification": ("logits",),
    "audio_classification": ("logits",),
    "token_classification": ("logits",),
    "question_answering": ("start_logits", "end_logits"),
    "causal_lm": ("logits",),
    "masked_lm": ("logits",),
    "semantic_segmentation": ("logits",),
    "ctc": ("logits",),
    "encoder": ("last_hidden_state",),
}
"""Task that can be exported -> the outputs of its graph."""
LABELLED = ("sequence_classification", "image_classification", "audio_classification")
"""Tasks with one class per example, whose accuracy can be measured."""
_GENERATED = 8
_SIZES = (1, 2, 5)  # of the first batches; the others have `_LARGEST`
_LARGEST = 32
Batch = dict[str, Tensor]


class Graph(nn.Module):
    """Exported graph: the student's inputs in order -> its outputs, without a cache."""

    def __init__(self, task_model: TaskModel, inputs: Sequence[str], outputs: Sequence[str]):
        super().__init__()
        self.model, self.task_model = task_model.model, task_model
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        batch = dict(zip(self.inputs, values, strict=True))
        answer = self.model(**self.task_model.inputs(batch, Needs()), return_dict=True)
        return tuple(answer[name] for name in self.outputs)


@dataclass(frozen=True)
class Student:
    """A student with examples for it.

    Attributes:
        subject: The model in float32, with its tokenizer or processor.
        graph: The exported graph.
        values: Raw examples.
        labels: ``(N,)`` classes in the model's numbers; None: unknown.
        generated: True if the examples are random.
        axes: Input -> its dimensions but the first that vary between examples.
    """

    subject: Predictor
    graph: Graph
    values: Sequence[Any]
    labels: np.ndarray | None
    generated: bool
    axes: dict[str, list[int]]

    @property
    def task(self) -> str:
        return self.subject.task_model.task.name

    def feed(self, batch: Mapping[str, Any]) -> Batch:
        """The inputs of the graph, of a batch."""
        return {name: batch[name] for name in self.graph.inputs}

    def batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """Inputs of the graph and labels (0 if unknown), in batches of several sizes."""
        labels = np.zeros(len(self.values), np.int64) if self.labels is None else self.labels
        start = 0
        for size in (*_SIZES, len(self.values)):
            part = slice(start, start + size)
            start += size
            if len(self.values[part]):
                found = self.subject.batches(self.values[part], labels[part], _LARGEST)
                yield from ((self.feed(batch), own) for _, batch, own in found)


def read_student(
    folder: str | os.PathLike[str], examples: Examples | Sequence[Any] | None = None
) -> Student:
    """Load a student that can be exported, for `export_onnx`.

    Raises:
        ValueError: no such student, or none that can be exported, or examples of another kind.
    """
    root = Path(folder)
    if (root / "adapter_config.json").is_file():
        raise ValueError(
            f"Expected a whole model in {root}, got an adapter. Merge it into its base first: "
            "model.merge_and_unload().save_pretrained(…), with the tokenizer or processor."
        )
    if not (root / "config.json").is_file():
        raise ValueError(f"Expected the folder of a finished student with config.json, got {root}.")
    subject = Predictor.load(root)
    _check(subject)
    subject.model.float().eval()
    random = _generated(subject)
    values, labels = random, None
    if isinstance(examples, Examples):
        subject = _labelled(subject, examples)
        values, labels = list(examples.values), examples.labels
    elif examples is not None:
        values = list(examples)
    if not values:
        raise ValueError("Expected at least one example, got none.")
    shapes = [dict(subject.encoded([value])) for value in random]
    keys = [key for key in shapes[0] if key in subject.task_model.accepts]
    text = subject.modality == "text"
    axes = {
        key: [n for n, sizes in enumerate(_sizes(shapes, key)) if n and (text or len(sizes) > 1)]
        for key in keys
    }
    graph = Graph(subject.task_model, keys, OUTPUTS[subject.task_model.task.name]).eval()
    return Student(subject, graph, values, labels, examples is None, axes)


def _check(subject: Predictor) -> None:
    config: Any = subject.model.config
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"Expected {subject.name} in floating point, got a quantised model. Export the student "
            "from before its quantisation; quantize_int8 makes an int8 file of it."
        )
    name = subject.task_model.task.name
    if name not in OUTPUTS:
        raise ValueError(
            f"Expected a student for one of {', '.join(OUTPUTS)}, got {name} "
            f"({type(subject.model).__name__}), which is not supported: what generates with an "
            "encoder and a decoder, or takes inputs of several kinds, is not one graph."
        )
    if subject.modality == "tabular":
        raise ValueError(
            f"Expected {subject.name} to take texts, pictures or sounds, got a model with the "
            f"input {subject.key!r}."
        )
    tokenizer = subject.processor
    if subject.modality == "text" and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # for this comparison; it is masked


def _labelled(subject: Predictor, examples: Examples) -> Predictor:
    task_model = subject.task_model
    if task_model.task.name not in LABELLED or task_model.kind(None) != "softmax":
        raise ValueError(
            f"Expected labels for a model with one class per example ({', '.join(LABELLED)}), got "
            f"them for {task_model.task.name} with {task_model.kind(None)} outputs. Give the "
            "examples without labels: the outputs are compared all the same."
        )
    if examples.labels.max() >= task_model.config.num_labels:
        raise ValueError(
            f"Expected labels below {task_model.config.num_labels}, the number of classes of "
            f"{subject.name}, got {examples.labels.max()}."
        )
    return subject.aligned(examples.names)


def _sizes(shapes: Sequence[Batch], key: str) -> list[set[int]]:
    return [set(sizes) for sizes in zip(*(shape[key].shape for shape in shapes), strict=True)]


def _generated(subject: Predictor) -> list[Any]:
    """Random examples of different lengths, the same ones every time."""
    draw, modality = np.random.default_rng(0), subject.modality
    if modality == "text":
        tokenizer = subject.processor
        special = set(tokenizer.all_special_ids)
        ids = [index for index in sorted(tokenizer.get_vocab().values()) if index not in special]
        lengths = (5, 12, 2, 9, 20, 3, 14, 7)
        return [tokenizer.decode(draw.choice(ids, length).tolist()) for length in lengths]
    if modality == "image":
        size = getattr(subject.model.config, "image_size", None)
        side = size if isinstance(size, int) else 64
        return [draw.integers(0, 256, (side, side, 3), "uint8") for _ in range(_GENERATED)]
    rate = int(subject.processor.sampling_rate)
    seconds = (0.5, 0.9, 0.4, 1.0, 0.7, 0.6, 0.8, 0.45)
    sounds = [draw.normal(0, 0.1, int(rate * length)) for length in seconds]
    return [{"array": sound.astype(np.float32), "sampling_rate": rate} for sound in sounds]


def sample(student: Student) -> Batch:
    """A batch to trace the graph with: several random examples, each axis longer than 1."""
    values = _generated(student.subject)[: max(_SIZES)]
    with torch.no_grad():
        return student.feed(student.subject.encoded(values))
