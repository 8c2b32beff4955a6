"""Names and order of the classes that a recipe gives: `data.labels`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, List

from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError, shown
from hf_distill.recipe.findings import Findings
from hf_distill.utils.suggest import did_you_mean

FIRST = 5
"""Number of bad examples that a message shows."""


def named(loaded: DatasetDict, data: Data, findings: Findings) -> DatasetDict:
    """The splits with the classes named by ``data.labels``.

    Texts, and the classes of a `ClassLabel` with these names, are found by name, whole numbers by
    name where all names are numbers and by place otherwise. Lists of labels are lists of classes.

    Raises:
        RecipeError: a label outside the names, or two equal names.
    """
    names = data.labels
    if names is None:
        return loaded
    if not names or len(set(names)) != len(names):
        raise RecipeError(f"`data.labels`: expected different names, got {shown(names)}.")
    found = DatasetDict()
    for split, dataset in loaded.items():
        found[split] = dataset
        if data.label_column in dataset.column_names:
            found[split] = _renamed(dataset, split, data, names, findings)
    return found


def _renamed(
    dataset: Dataset, split: str, data: Data, names: list[str], findings: Findings
) -> Dataset:
    column = data.label_column
    feature = dataset.features[column]
    nested = hasattr(feature, "feature")
    inner = feature.feature if nested else feature
    known = _places(inner, names)
    values = dataset[column][:]
    bad = [row for row, value in enumerate(values) if not _fits(value, known, nested)]
    if bad:
        seen = list(dict.fromkeys(shown(values[row]) for row in bad))
        dataset = findings.without(
            dataset,
            split,
            np.array(bad),
            f"labels of {column!r} among `data.labels` ({shown(names)})",
            f"other labels, {', '.join(seen[:FIRST])}",
            f"Add them to `data.labels`, or correct them.{_hint(values[bad[0]], names)}",
        )
    if isinstance(inner, ClassLabel) and inner.names == names:
        return dataset
    label: Any = ClassLabel(names=names)
    features = Features({**dataset.features, column: List(label) if nested else label})

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {column: [_encoded(value, known) for value in batch[column]]}

    return dataset.map(encode, batched=True, features=features, desc="Labels")


def _places(feature: Any, names: list[str]) -> dict[Any, int]:
    """Value of the column -> place in the names."""
    if isinstance(feature, ClassLabel):
        if set(feature.names) & set(names):
            old = enumerate(feature.names)
            return {place: names.index(name) for place, name in old if name in names}
        return {place: place for place in range(len(names))}
    by_name = {name: place for place, name in enumerate(names)}
    if feature.dtype.startswith(("int", "uint")):
        if all(name.lstrip("-").isdecimal() for name in names):
            return {int(name): place for name, place in by_name.items()}
        return {place: place for place in range(len(names))}
    if feature.dtype == "bool":
        lower = {name.lower(): place for name, place in by_name.items()}
        return {flag: lower.get(str(flag).lower(), int(flag)) for flag in (False, True)}
    return by_name


def _fits(value: Any, known: Mapping[Any, int], nested: bool) -> bool:
    if nested:
        return value is not None and all(one in known for one in value)
    return value in known


def _encoded(value: Any, known: Mapping[Any, int]) -> Any:
    return [known[one] for one in value] if isinstance(value, list) else known[value]


def _hint(value: Any, names: list[str]) -> str:
    first = next(iter(value), "") if isinstance(value, list) else value
    return did_you_mean(str(first), names)
