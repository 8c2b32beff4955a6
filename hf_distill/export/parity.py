"""Comparison of an ONNX file with the student on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_distill.export.student import Batch, Student
from hf_distill.hub.exported import ExportError

PER_TOKEN = ("token_classification", "causal_lm", "masked_lm", "encoder")
_LOW = float(np.finfo(np.float32).min)


@dataclass
class Parity:
    """Differences between the outputs of a file and of its student, summed over batches.

    Attributes:
        max_difference: The largest absolute difference so far; NaN once an output has NaN.
        same: Equal decisions, of ``decisions`` in all.
        right: Right decisions of the file on ``examples``, and ``float_right`` of the student.
    """

    max_difference: float = 0.0
    same: int = 0
    decisions: int = 0
    examples: int = 0
    right: int = 0
    float_right: int = 0

    @property
    def same_argmax(self) -> float | None:
        """The share of equal decisions; None where the model decides nothing."""
        return self.same / self.decisions if self.decisions else None


def compare(student: Student, path: Path) -> Parity:
    """Run the student and its ONNX file on all examples.

    Raises:
        ExportError: onnxruntime cannot load the file, or cannot run it on a batch.
    """
    session = _session(path)
    found = Parity()
    kind = student.subject.task_model.kind(None)
    for batch, labels in student.batches():
        with torch.no_grad():
            expected = [value.numpy() for value in student.graph(*batch.values())]
        said = _ask(session, batch)
        found.examples += len(labels)
        if student.labels is not None:
            found.right += int((said[0].argmax(-1) == labels.numpy()).sum())
            found.float_right += int((expected[0].argmax(-1) == labels.numpy()).sum())
        for ours, theirs in zip(said, expected, strict=True):
            _add(found, _rows(student.task, ours, batch), _rows(student.task, theirs, batch), kind)
    return found


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base class of their own
        raise ExportError(f"onnxruntime cannot load {path.name}: {error}") from error


def _ask(session: Any, batch: Batch) -> list[np.ndarray]:
    try:
        answers: list[np.ndarray] = session.run(None, {k: v.numpy() for k, v in batch.items()})
    except Exception as error:  # see above
        shapes = {name: tuple(value.shape) for name, value in batch.items()}
        raise ExportError(
            f"The exported graph does not run on a batch of shapes {shapes}, so that it is of no "
            f"use for inputs of other sizes than those it was traced with: {error}"
        ) from error
    return answers


def _add(found: Parity, ours: np.ndarray, theirs: np.ndarray, kind: str) -> None:
    if ours.shape != theirs.shape:
        raise ExportError(f"Expected outputs of shape {theirs.shape}, got {ours.shape}.")
    if ours.size:
        difference = float(np.abs(ours.astype(np.float64) - theirs).max())
        found.max_difference = float(np.maximum(found.max_difference, difference))
    if kind == "sigmoid":
        same = (ours > 0) == (theirs > 0)
    elif kind in ("softmax", "ctc"):
        same = ours.argmax(-1) == theirs.argmax(-1)
    else:
        return
    found.same += int(same.sum())
    found.decisions += same.size


def _rows(task: str, output: np.ndarray, batch: Batch) -> np.ndarray:
    """Output with the classes last and without padding."""
    if task == "semantic_segmentation":
        return np.moveaxis(output, 1, -1)
    mask = batch.get("attention_mask")
    if mask is None or tuple(mask.shape) != output.shape[:2]:
        return output
    real = mask.numpy() > 0
    if task == "question_answering":
        return np.where(real, output, _LOW)
    return output[real] if task in PER_TOKEN else output
