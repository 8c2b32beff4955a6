"""Inputs that a teacher reads from the raw example with its own tokenizer or processor."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from hf_distill.models.batch_checks import position_limit
from hf_distill.models.batches import ALIGNED, Batch
from hf_distill.models.raw_inputs import (
    AUDIO,
    IMAGE,
    TEXT,
    WORDS,
    processed_images,
    processed_sounds,
    processed_texts,
    processor_kind,
    token_limit,
    value_kind,
)
from hf_distill.models.signals import BatchItems, Signal
from hf_distill.models.task_model import TaskModel

PREFIX = "teacher_"
KEY = "key"
"""Batch key, behind the prefix, of hashes of the raw examples, ``(B, 2)`` int64."""
POSITIONS = ALIGNED.removeprefix(PREFIX)
READS = {TEXT: (TEXT, WORDS), IMAGE: (IMAGE,), AUDIO: (AUDIO,)}
"""Kind of a processor -> kinds of raw columns that it reads."""


@dataclass(frozen=True)
class OwnInputs:
    """Inputs of a teacher, in batch columns with a prefix.

    They are made of raw columns (a text, two texts, a list of words, an image, a sound) when
    batches are collated, or padded where the data have columns with the prefix
    (``teacher_input_ids``); sounds are converted to the processor's sampling rate. The teacher's
    outputs must have one row per example; for token classification they are taken at the first
    token of each word, where the student's first token of that word is.

    Args:
        processor: The teacher's tokenizer, image processor or feature extractor; None where the
            data have its columns.
        columns: The raw columns; empty: not known yet, see `found_in`.
        max_length: Tokens after which texts are cut; default: the tokenizer's or the model's limit.
        channels: Channels of images.
        prefix: Prefix of the batch columns.
        student: The student's tokenizer, for the words of its tokens.
        keys_only: Make the keys of the raw examples and nothing else, for a cache.
    """

    processor: Any
    columns: tuple[str, ...] = ()
    max_length: int | None = None
    channels: int = 3
    prefix: str = PREFIX
    student: Any = None
    keys_only: bool = False

    @property
    def names(self) -> set[str]:
        """Columns of the data and of batches that are read."""
        given = {f"{self.prefix}{name}" for name in (KEY, POSITIONS)}
        made = getattr(self.processor, "model_input_names", ())
        return {*self.columns, *given, *(f"{self.prefix}{name}" for name in made)}

    # ---- from raw examples -----------------------------------------------------------------------

    def found_in(
        self, example: Mapping[str, Any] | None, read: Collection[str] = ()
    ) -> OwnInputs | None:
        """The same with the raw columns of an example; None if it has no column that fits.

        Args:
            example: A raw example; None: unknown.
            read: Columns that the student reads, which are not raw.

        Raises:
            ValueError: several columns fit.
        """
        if self.columns or self.processor is None or example is None:
            return self if self.columns else None
        given = tuple(sorted(str(name) for name in example if str(name).startswith(self.prefix)))
        if given:
            return replace(self, columns=given)
        kinds = READS[processor_kind(self.processor)]
        fitting = [
            name
            for name, value in example.items()
            if value_kind(value) in kinds and name not in read
        ]
        if len(fitting) > 1:
            raise ValueError(
                f"Expected one raw column for the teacher's {type(self.processor).__name__} to "
                f"read, got {fitting}. Name it (two for pairs of texts): "
                f"ModelTeacher(model, processor, inputs={fitting[0]!r})."
            )
        return replace(self, columns=tuple(fitting)) if fitting else None

    def batch(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The columns of a batch.

        Raises:
            ValueError: an example lacks a raw column, or has another kind of value in it.
        """
        if not self.columns:
            raise ValueError(
                "Expected the raw column that the teacher reads, got none. Name it: "
                "ModelTeacher(model, processor, inputs='text')."
            )
        values = [[self._value(example, name) for example in examples] for name in self.columns]
        found = {KEY: torch.from_numpy(np.stack([_key(row) for row in zip(*values, strict=True)]))}
        if not self.keys_only:
            found.update(self._processed(values))
        return {f"{self.prefix}{name}": value for name, value in found.items()}

    def _value(self, example: Any, name: str) -> Any:
        if not isinstance(example, Mapping) or example.get(name) is None:
            held = sorted(map(str, example)) if isinstance(example, Mapping) else type(example)
            raise ValueError(
                f"Expected the raw column {name!r}, which the teacher reads, in each example, got "
                f"{held}. Keep it in the training and evaluation data (dataset.map without "
                "remove_columns)."
            )
        return example[name]

    def _processed(self, values: list[list[Any]]) -> dict[str, Tensor]:
        if self.columns[0].startswith(self.prefix):
            return self._given(values)
        kind = processor_kind(self.processor)
        for name, column in zip(self.columns, values, strict=True):
            wrong = next((v for v in column if value_kind(v) not in READS[kind]), None)
            if wrong is not None:
                raise ValueError(
                    f"Expected {' or '.join(READS[kind])} in the column {name!r} for the teacher's "
                    f"{type(self.processor).__name__}, got a {type(wrong).__name__}. Name another "
                    "column: ModelTeacher(model, processor, inputs=…)."
                )
        if kind == TEXT:
            found = processed_texts(self.processor, values, self.max_length)
        elif kind == IMAGE:
            found = processed_images(self.processor, values[0], self.channels)
        else:
            found = processed_sounds(self.processor, values[0], resample=True)
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def _given(self, values: list[list[Any]]) -> dict[str, Tensor]:
        """Columns that the data have, padded by the tokenizer.

        Raises:
            ValueError: values of several sizes.
        """
        names = [name.removeprefix(self.prefix) for name in self.columns]
        if hasattr(self.processor, "pad") and "input_ids" in names:
            columns = dict(zip(names, values, strict=True))
            return dict(self.processor.pad(columns, return_tensors="pt"))
        found = {}
        for name, column in zip(names, values, strict=True):
            tensors = [torch.as_tensor(value) for value in column]
            if len({tensor.shape for tensor in tensors}) > 1:
                raise ValueError(
                    f"Expected values of one size in the column {self.prefix}{name}, got "
                    f"{sorted({tuple(tensor.shape) for tensor in tensors})}. Give the teacher its "
                    "tokenizer, which pads them: ModelTeacher(model, tokenizer)."
                )
            found[name] = torch.stack(tensors)
        return found

    def positions(self, examples: Sequence[Mapping[str, Any]], batch: Batch) -> dict[str, Tensor]:
        """For lists of words: where the student has the first token of one, the teacher's position
        of its first token, ``(B, T)``; -1 elsewhere, and for words that one of both cuts off.

        Raises:
            ValueError: the student's tokens are not those of the words.
        """
        ids = batch.get("input_ids")
        if self.student is None or ids is None or not isinstance(ids, Tensor):
            return {}
        found = torch.full(ids.shape, -1)
        for row, example in enumerate(examples):
            words = self._value(example, self.columns[0])
            theirs = _first_tokens(self.processor, words, self.max_length)
            mask = batch.get("attention_mask")
            real = torch.ones_like(ids[row]) if mask is None else mask[row]
            places = real.nonzero().flatten()
            own = ids[row, places].tolist()
            for word, place in _first_tokens(self.student, words, len(own), own).items():
                found[row, places[place]] = theirs.get(word, -1)
        return {f"{self.prefix}{POSITIONS}": found}

    # ---- in a step -------------------------------------------------------------------------------

    def own(self, batch: Batch, label_keys: Collection[str], who: str) -> dict[str, Any]:
        """The teacher's own batch; decoder inputs and labels are those of the student.

        Raises:
            ValueError: the batch lacks its columns.
        """
        aside = {f"{self.prefix}{name}" for name in (KEY, POSITIONS)}
        own = {
            name.removeprefix(self.prefix): value
            for name, value in batch.items()
            if name.startswith(self.prefix) and name not in aside
        }
        if not own:
            raise ValueError(
                f"Expected columns {self.prefix}… in the batch for {who}, got "
                f"{sorted(batch)}. Train with DistillationTrainer, or wrap the data collator: "
                "with_own_inputs(data_collator, teacher)."
            )
        pairs = self._pairs(batch)
        if pairs is not None:
            own = {name: value.flatten(0, 1) for name, value in own.items()}
        by_item = f"{self.prefix}{POSITIONS}" in batch or pairs is not None
        labels = () if by_item else label_keys
        own |= {n: v for n, v in batch.items() if n.startswith("decoder_") or n in labels}
        return own

    def rows(self, batch: Batch, items: BatchItems) -> Tensor:
        """Mask of the rows of the teacher's own batch that count."""
        pairs, rows = self._pairs(batch), items.masks["samples"]
        return rows if pairs is None else rows.repeat_interleave(pairs[1])

    def _pairs(self, batch: Batch) -> tuple[int, int] | None:
        """Number of texts, and of the candidates of each; None: they have no lists of them."""
        ids = batch.get(f"{self.prefix}input_ids")
        listed = isinstance(ids, Tensor) and ids.dim() == 3
        return (len(ids), ids.shape[1]) if isinstance(ids, Tensor) and listed else None

    def of_student(self, signal: Signal, batch: Batch, items: BatchItems, who: str) -> Signal:
        """The signal with a row for each of the student's items.

        Raises:
            ValueError: outputs at positions that are not those of the student.
        """
        positions = batch.get(f"{self.prefix}{POSITIONS}")
        pairs = self._pairs(batch)
        if pairs is not None:
            signal = _scores(signal, pairs, who)
        logits, mask = signal.logits, items.masks.get("items")
        if positions is not None and logits is not None:
            index = positions.clamp(min=0)[..., None].expand(-1, -1, logits.shape[-1])
            signal = replace(signal, logits=logits.gather(1, index))
        elif logits is not None and mask is not None and logits.shape[:-1] != mask.shape:
            raise ValueError(
                f"Expected one row of logits for each of the student's items {tuple(mask.shape)} "
                f"from {who}, which reads inputs of its own, got {tuple(logits.shape)}. Positions "
                "of two tokenizations or frame rates do not match: choose a teacher that reads the "
                "student's inputs."
            )
        texts = f"{self.prefix}input_ids" in batch
        if signal.hidden_states and texts:
            kept = {g: v for g, v in signal.hidden_states.items() if all(x.dim() == 2 for x in v)}
            if not kept:
                raise ValueError(
                    f"Expected one vector per example from {who}, which has another tokenizer, got "
                    f"hidden states at its own tokens ({', '.join(signal.hidden_states)}). Compare "
                    "its logits, or embeddings of two encoders "
                    "(HiddenStates(groups=('embedding',)))."
                )
            signal = replace(signal, hidden_states=kept)
        if any(value.dim() > 2 for value in signal.modules.values()) and texts:
            raise ValueError(
                f"Expected modules with one vector per example from {who}, which has another "
                "tokenizer, got outputs at its own tokens. Name a pooler, or compare its logits."
            )
        return signal


def _scores(signal: Signal, pairs: tuple[int, int], who: str) -> Signal:
    """The signal of a cross-encoder with the scores of a text's candidates in one row.

    Raises:
        ValueError: not one logit for each pair.
    """
    logits = signal.logits
    if logits is None or logits.numel() != math.prod(pairs) or signal.hidden_states:
        got = "hidden states" if signal.hidden_states else None
        raise ValueError(
            f"Expected one logit for each pair of a text and a candidate from {who}, got "
            f"{got or (None if logits is None else tuple(logits.shape))}. Choose a cross-encoder: "
            "a sequence classifier with num_labels=1, and an objective on logits."
        )
    return replace(signal, logits=logits.reshape(pairs), kind="softmax")


def own_inputs(
    processor: Any,
    columns: Sequence[str],
    task_model: TaskModel,
    max_length: int | None = None,
) -> OwnInputs:
    """The own inputs of a model.

    Args:
        processor: Its tokenizer, image processor or feature extractor.
        columns: The raw columns; empty: found in the data.
        task_model: The model.
        max_length: See `OwnInputs`.
    """
    limit = max_length or token_limit(processor, position_limit(task_model.model))
    channels = int(getattr(task_model.config, "num_channels", None) or 3)
    return OwnInputs(processor, tuple(columns), limit, channels)


def _first_tokens(
    tokenizer: Any, words: Sequence[str], limit: int | None, ids: Sequence[int] | None = None
) -> dict[int, int]:
    """Word -> place of its first token."""
    options = {} if limit is None else {"truncation": True, "max_length": limit}
    found = tokenizer(list(words), is_split_into_words=True, **options)
    if ids is not None and list(found["input_ids"]) != list(ids):
        raise ValueError(
            f"Expected the student's tokens of the words {list(words[:4])}…, got others "
            f"({list(ids[:6])}… in the batch, {list(found['input_ids'][:6])}… by its tokenizer). "
            "Tokenize the words with tokenizer(words, is_split_into_words=True) and pass that "
            "tokenizer to the trainer (processing_class=…)."
        )
    first: dict[int, int] = {}
    for place, word in enumerate(found.word_ids()):
        if word is not None:
            first.setdefault(word, place)
    return first


def _key(values: Sequence[Any]) -> np.ndarray:
    """A hash of raw values, as two int64."""
    digest = xxhash.xxh3_128()
    for value in values:
        kind = value_kind(value)
        digest.update(str(kind).encode())
        if kind in (TEXT, WORDS):
            for word in [value] if kind == TEXT else value:
                digest.update(f"{len(word)}:{word}".encode())
        elif kind is None and not isinstance(value, np.ndarray | Tensor):
            digest.update(json.dumps(value, sort_keys=True, default=str).encode())
        else:
            rate = value["sampling_rate"] if kind == AUDIO else getattr(value, "mode", "")
            array = np.asarray(value["array"] if kind == AUDIO else value)
            digest.update(f"{rate} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), np.int64)
