"""Labelled raw examples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from PIL import Image

from hf_distill.data.values import check_values, modality_of, picture

INPUTS = ("text", "sentence", "image", "img", "audio")
"""Input columns that are taken when none is named."""
LABELS = ("label", "labels")


@dataclass(frozen=True)
class Examples:
    """Raw examples with their classes, and perhaps a group for each.

    Args:
        values: Texts, pictures, sounds or rows of numbers; see `Predictor.logits`.
        labels: ``(N,)`` class ids.
        groups: ``(N,)`` names of groups; None: there are none.
        names: Of the classes, in the order of the ids; empty: unknown.

    Raises:
        ValueError: no examples, not one label and group for each, or examples without a label.
    """

    values: tuple[Any, ...]
    labels: np.ndarray
    groups: tuple[Any, ...] | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        labels, count = np.asarray(self.labels), len(self.values)
        if not count or labels.shape != (count,):
            raise ValueError(
                f"Expected at least one example and a label for each, got {count} examples and "
                f"labels of shape {labels.shape}."
            )
        if labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(
                f"Expected a class id of 0 or more for every example, got {labels.dtype} from "
                f"{labels.min()}: robustness cannot be measured without labels. Name a split that "
                "has them."
            )
        if self.groups is not None:
            without = sum(group is None or group != group for group in self.groups)
            if len(self.groups) != count or without:
                raise ValueError(
                    f"Expected a group for each of the {count} examples, got {len(self.groups)}, "
                    f"{without} of them empty. Give the others a group of their own."
                )
        check_values(self.values, self.modality)
        object.__setattr__(self, "labels", labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def modality(self) -> str:
        return modality_of(self.values[0])

    @cached_property
    def keys(self) -> list[str]:
        """A hash of the content of each example."""
        return [_content(value) for value in self.values]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the examples and labels, in their order."""
        pairs = zip(self.keys, self.labels.tolist(), strict=True)
        return _sha256("".join(f"{key}{label};" for key, label in pairs).encode())

    @property
    def groups_fingerprint(self) -> str | None:
        """A hash of the groups, in the order of the examples; None without groups."""
        return None if self.groups is None else _sha256(repr(self.groups).encode())

    def renamed(self, names: Sequence[str]) -> Examples:
        """Same examples with classes numbered in the order of these names; ValueError for other
        classes."""
        if not names or not self.names or tuple(names) == self.names:
            return self
        if not set(self.names) <= set(names):
            raise ValueError(
                f"Expected the classes {', '.join(names)}, got {', '.join(self.names)}. Give the "
                "classes of this set the same names."
            )
        places = np.array([list(names).index(name) for name in self.names])
        return replace(self, labels=places[self.labels], names=tuple(names))

    def sample(self, size: int, seed: int = 0) -> list[int]:
        """The places of some of the examples, chosen by seed and content.

        A smaller sample of the same seed is the beginning of a larger one.
        """
        ranks = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in self.keys]
        return sorted(range(len(self)), key=lambda i: (ranks[i], self.labels[i], i))[:size]

    def take(self, rows: Sequence[int]) -> Examples:
        """The examples at these places."""
        return replace(
            self,
            values=tuple(self.values[row] for row in rows),
            labels=self.labels[list(rows)],
            groups=self.groups and tuple(self.groups[row] for row in rows),
        )

    @classmethod
    def read(
        cls,
        dataset: Dataset,
        input_column: str | None = None,
        label_column: str | None = None,
        groups_column: str | None = None,
    ) -> Examples:
        """The examples of a split.

        By default the inputs are the first of `INPUTS` and the labels (class ids, or names) the
        first of `LABELS` that it has; a column that is not there raises a ValueError.
        """
        column = _column(dataset, input_column, INPUTS, "the examples (text, image, audio)")
        answer = _column(dataset, label_column, LABELS, "the labels")
        labels, names = _labels(dataset, answer)
        groups = None
        if groups_column is not None:
            groups = tuple(dataset[_column(dataset, groups_column, (), "the groups")][:])
        values = tuple(_plain(value) for value in dataset[column][:])
        return cls(values, labels, groups, names)


def _column(dataset: Dataset, name: str | None, usual: Sequence[str], what: str) -> str:
    found = name or next((one for one in usual if one in dataset.features), "")
    if found not in dataset.features:
        raise ValueError(
            f"Expected a column with {what}, {name or ' or '.join(usual)!r}, got "
            f"{dataset.column_names}. Name the column."
        )
    return found


def _labels(dataset: Dataset, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    feature, values = dataset.features[column], dataset[column][:]
    if any(value is None for value in values):
        raise ValueError(
            f"Expected a label for every example, got none for some in {column!r}: robustness "
            "cannot be measured without labels. Name a split that has them."
        )
    if isinstance(feature, ClassLabel):
        return np.asarray(values), tuple(feature.names)
    if values and isinstance(values[0], str):
        names = sorted(set(values))
        return np.array([names.index(value) for value in values]), tuple(names)
    labels = np.asarray(values)
    return (labels.astype(np.int64) if labels.dtype.kind == "b" else labels), ()


def _plain(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return picture(value)
    if isinstance(value, list) and modality_of(value) == "tabular":
        return np.asarray(value, dtype=np.float32)
    return value


def _content(value: Any) -> str:
    if isinstance(value, str):
        return _sha256(value.encode("utf-8", "surrogatepass"))
    array = np.asarray(value["array"] if isinstance(value, Mapping) else value)
    return _sha256(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
