"""Classifiers applied to raw examples: texts, images, sounds or rows of numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from hf_distill.data.values import check_values, length_of
from hf_distill.evaluation.examples import Examples
from hf_distill.models.batches import Batch
from hf_distill.models.embedding import own_class
from hf_distill.models.modes import evaluating
from hf_distill.models.raw_inputs import (
    processed_images,
    processed_sounds,
    processed_texts,
    token_limit,
)
from hf_distill.models.special_tokens import special_tokens
from hf_distill.models.task_model import TaskModel
from hf_distill.models.tasks import Task

MODALITIES = {
    "input_ids": "text",
    "pixel_values": "image",
    "input_values": "audio",
    "input_features": "audio",
}
"""Main input of a model -> modality of its examples; others are tabular."""
_PROCESSORS = {
    "text": "AutoTokenizer",
    "image": "AutoImageProcessor",
    "audio": "AutoFeatureExtractor",
}


@dataclass(frozen=True)
class Predictor:
    """Classifier together with its tokenizer or processor.

    Args:
        name: For tables and messages.
        model: A transformers classifier, one class per example.
        processor: Its tokenizer, image processor or feature extractor; None for rows of numbers.
        task: Its row of `hf_distill.models.tasks.TASKS`; default: found by the class name.
        role: ``student``, ``baseline``, ``control`` or ``teacher``.
        max_length: Tokens after which texts are cut; default: the tokenizer's or the model's.
        order: Class of the data -> class of the model; None: the same. See `aligned`.
    """

    name: str
    model: nn.Module
    processor: Any = None
    task: Task | None = None
    role: str = "student"
    max_length: int | None = None
    order: tuple[int, ...] | None = None

    @classmethod
    def load(cls, source: str | Path, role: str = "student") -> Predictor:
        """Load a saved model with its processor from a folder or Hub id; ValueError if that cannot
        be."""
        name = str(source)
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            kind = (config.architectures or ["none"])[0]
            if (auto := own_class(kind)) is None:
                raise ValueError(f"its config names the architecture {kind!r}, unknown here")
            model = auto.from_pretrained(name)
            kind = _PROCESSORS.get(MODALITIES.get(model.main_input_name, ""), "")
            processor = getattr(transformers, kind).from_pretrained(name) if kind else None
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"Expected a folder or Hub id of a transformers model with its tokenizer or "
                f"processor, got {name!r}: {reason:.300}"
            ) from error
        return cls(Path(name).name if Path(name).is_dir() else name, model, processor, role=role)

    @property
    def key(self) -> str:
        """Batch key of the model's main input."""
        return str(getattr(self.model, "main_input_name", "inputs"))

    @property
    def modality(self) -> str:
        """``text``, ``image``, ``audio`` or ``tabular``."""
        if self.processor is None and self.key != "input_ids":
            return "tabular"
        return MODALITIES.get(self.key, "tabular")

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def task_model(self) -> TaskModel:
        task_model = TaskModel(self.model, self.task, self.role)
        task_model.tokens.from_data = special_tokens(self.processor)
        return task_model

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, settings, processor and class order."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            if isinstance(value, Tensor):
                digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
                flat = value.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().tobytes())
        settings = {} if self._config is None else self._config.to_diff_dict()
        for key in ("transformers_version", "_name_or_path", "dtype"):
            settings.pop(key, None)
        processor = _described(self.processor)
        facts = [type(self.model).__name__, settings, processor, self.max_length, self.order]
        digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def aligned(self, names: Sequence[str]) -> Predictor:
        """Same model with classes in the order of the data's, matched by name; where the names do
        not match (``LABEL_0``, other words), by number. ValueError for another number of
        classes.
        """
        config = self._config
        if config is not None and names and config.num_labels != len(names):
            raise ValueError(
                f"Expected {self.name} to have the {len(names)} classes of the data "
                f"({', '.join(map(str, names[:8]))}), got {config.num_labels}."
            )
        place = {name.casefold(): index for index, name in self.class_names.items()}
        wanted = [str(name).casefold() for name in names]
        if len(place) != len(wanted) or set(place) != set(wanted):
            return self
        order = tuple(place[name] for name in wanted)
        return self if order == tuple(range(len(order))) else dataclasses.replace(self, order=order)

    def logits(self, values: Sequence[Any], batch_size: int = 64) -> np.ndarray:
        """Logits ``(N, C)`` of raw examples, float64, in the order of the examples and the data's
        classes.

        ``values`` are texts; pictures (PIL, or arrays: uint8, or floats in [0, 1], which are
        rounded to 256 grey levels); sounds as dicts of ``array`` and ``sampling_rate``; or rows of
        numbers.

        Raises:
            ValueError: no examples, values of another kind, or a model that is not a classifier.
        """
        places, parts = list[int](), list[np.ndarray]()
        with torch.no_grad(), evaluating(self.model):
            for rows in self._rows(values, batch_size):
                places += rows
                parts.append(self._forward([values[row] for row in rows]))
        if not parts:
            raise ValueError("Expected at least one example, got none.")
        found = np.concatenate(parts)[np.argsort(places)]
        return found if self.order is None else found[:, list(self.order)]

    def batches(
        self, values: Sequence[Any], labels: Sequence[int] | np.ndarray, batch_size: int = 64
    ) -> Iterator[tuple[list[int], Batch, Tensor]]:
        """Batches for attacks by gradient: the places of the examples in ``values``, the model's
        inputs on its device, and labels ``(B,)`` in the model's own order of classes."""
        own = np.asarray(labels)
        own = own if self.order is None else np.asarray(self.order)[own]
        for rows in self._rows(values, batch_size):
            batch = self.encoded([values[row] for row in rows])
            yield rows, batch, torch.as_tensor(own[rows], device=self.device)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def encoded(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """The model's inputs for some examples, padded to the longest, on its device."""
        check_values(values, self.modality)
        kind = next((p.dtype for p in self.model.parameters()), torch.float32)
        return {
            name: (value.to(kind) if value.is_floating_point() else value).to(self.device)
            for name, value in self._processed(values).items()
            if isinstance(value, Tensor)
        }

    def _processed(self, values: Sequence[Any]) -> Mapping[str, Any]:
        if self.modality == "tabular":
            rows = torch.as_tensor(np.stack([np.asarray(v, np.float32) for v in values]))
            return {self.key: rows}
        if self.modality == "text":
            positions = getattr(self._config, "max_position_embeddings", None)
            limit = self.max_length or token_limit(self.processor, positions)
            tokens = processed_texts(self.processor, [values], limit)
            known = {k: v for k, v in tokens.items() if self.task_model.takes(k)}
            return self.task_model.tokens.placed(known)
        if self.modality == "image":
            channels = getattr(self._config, "num_channels", 3)
            return processed_images(self.processor, values, channels)
        return processed_sounds(self.processor, values)

    @property
    def _config(self) -> Any:
        return getattr(self.model, "config", None)

    @property
    def class_names(self) -> dict[int, str]:
        """Names of the classes in the model's config; empty without any."""
        known = getattr(self._config, "id2label", None) or {}
        return {int(index): str(name) for index, name in known.items()}

    def _forward(self, values: Sequence[Any]) -> np.ndarray:
        batch = self.encoded(values)
        text = self.modality == "text"
        with self.task_model.tokens.in_config() if text else contextlib.nullcontext():
            output = self.model(**batch)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"Expected {self.name} to give logits (examples, classes) with at least 2 "
                f"classes, got {shape}: robustness is measured for classifiers with one class per "
                "example."
            )
        return np.asarray(logits.double().cpu().numpy())

    def _rows(self, values: Sequence[Any], batch_size: int) -> Iterator[list[int]]:
        """Batches of indices, shortest first; sounds without a mask are batched by equal length."""
        if batch_size < 1:
            raise ValueError(f"Expected a batch size of at least 1, got {batch_size}.")
        sizes = [length_of(value) for value in values]
        places = sorted(range(len(values)), key=sizes.__getitem__)
        groups = [places]
        if self.modality == "audio" and not getattr(self.processor, "return_attention_mask", True):
            groups = [list(same) for _, same in itertools.groupby(places, sizes.__getitem__)]
        for group in groups:
            for start in range(0, len(group), batch_size):
                yield group[start : start + batch_size]


def _described(processor: Any) -> Any:
    """Settings of a processor without transient state (padding, truncation)."""
    backend = getattr(processor, "backend_tokenizer", None)
    if backend is not None:
        settings = json.loads(backend.to_str())
        return {k: v for k, v in settings.items() if k not in ("truncation", "padding")}
    if hasattr(processor, "get_vocab"):
        return processor.get_vocab()
    return processor.to_dict() if hasattr(processor, "to_dict") else str(type(processor))


def aligned(
    subjects: Mapping[str, Predictor], data: Examples, notes: list[str]
) -> dict[str, Predictor]:
    """Models with the classes of the data; doubtful matches go into the notes."""
    found = {}
    for key, subject in subjects.items():
        if subject.modality != data.modality:
            raise ValueError(
                f"Expected examples for {key}, a model of {subject.modality}, got "
                f"{data.modality}. Name the right column, or another model."
            )
        found[key] = subject.aligned(data.names)
        known = list(subject.class_names.values())
        strange = set(map(str.casefold, data.names)) != set(map(str.casefold, known))
        if data.names and known and strange:
            notes.append(
                f"{key}: its classes ({', '.join(known)}) are not called as in "
                f"the data ({', '.join(data.names)}); they are taken in their order."
            )
    return found
