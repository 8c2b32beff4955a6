"""Splits that are made of one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value

from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError, shown
from hf_distill.recipe.row_hashes import row_hashes
from hf_distill.recipe.split_section import SplitSection
from hf_distill.utils.suggest import did_you_mean


def divided(
    loaded: DatasetDict, data: Data, inputs: Sequence[str], local: bool
) -> tuple[DatasetDict, Data, list[str]]:
    """Splits with those added that the source lacks, the settings that name them, and a line about
    what was set aside.

    Examples are drawn in equal shares from all classes. Examples with the same inputs, or the same
    value of ``by``, stay in one split.

    Args:
        loaded: Splits of the source.
        data: The recipe's section; without ``split`` only local files are divided.
        inputs: Input columns.
        local: True for local files.

    Raises:
        RecipeError: too few examples or groups, or no column ``by``.
    """
    section = data.split or (SplitSection() if local else None)
    if section is None or data.train_split not in loaded:
        return loaded, data, []
    names = {"test": data.test_split, "validation": data.validation_split or "validation"}
    wanted = {key: getattr(section, key) for key in names}
    missing = {
        key: share
        for key, share in wanted.items()
        if share and (names[key] not in loaded or getattr(data, f"{key}_split") is None)
    }
    table, given = loaded[data.train_split], dict(loaded)
    if section.by is not None:
        for split, dataset in given.items():
            _check_column(dataset, split, section.by)
    lines = _crossing(given, section.by)
    if missing:
        units = _units(table, inputs, section.by)
        parts = _drawn(units, _classes_of(table, data.label_column), missing, section)
        given[data.train_split] = table.select(parts.pop("train"))
        for key, rows in parts.items():
            given[names[key]] = table.select(rows)
        lines.append(_told(parts, len(table), section))
        data = dataclasses.replace(data, validation_split=names["validation"])
        if "validation" not in missing and names["validation"] not in given:
            data = dataclasses.replace(data, validation_split=None)
    return DatasetDict(given), data, lines


def _told(parts: dict[str, np.ndarray], total: int, section: SplitSection) -> str:
    how = "" if section.by is None else f", no value of {section.by!r} in two splits"
    counts = " and ".join(f"{len(rows):,} for {key}" for key, rows in parts.items())
    return f"of {total:,} examples {counts} set aside (`data.split`, seed {section.seed}{how})"


def _check_column(dataset: Dataset, split: str, by: str) -> None:
    known = dataset.column_names
    if by not in known:
        raise RecipeError(
            f"`data.split.by`: split {split!r} has no column {by!r}, but {known}."
            f"{did_you_mean(by, known)}"
        )


def _crossing(given: dict[str, Dataset], by: str | None) -> list[str]:
    """A warning about groups that the source itself divides over splits."""
    if by is None or len(given) < 2:
        return []
    seen: dict[Any, int] = {}
    for dataset in given.values():
        for value in dataset.unique(by):
            seen[value] = seen.get(value, 0) + 1
    both = [value for value, count in seen.items() if count > 1]
    if not both:
        return []
    return [
        f"warning: {len(both)} values of {by!r} (`data.split.by`) are in more than one split of "
        f"the source, such as {shown(both[0])}. Give all examples as one table to divide them."
    ]


def _units(table: Dataset, inputs: Sequence[str], by: str | None) -> np.ndarray:
    """Number ``(N,)`` of the group of each row."""
    values = np.array([repr(v) for v in table[by][:]]) if by else row_hashes(table, inputs)
    numbers: np.ndarray = np.unique(values, return_inverse=True)[1]
    return numbers


def _classes_of(table: Dataset, column: str) -> np.ndarray:
    """Number ``(N,)`` of the class of each row; all 0 without one class per row."""
    feature = table.features.get(column)
    plain = isinstance(feature, ClassLabel) or (
        isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "string", "bool"))
    )
    if not plain:
        return np.zeros(len(table), int)
    names, numbers = np.unique([str(v) for v in table[column][:]], return_inverse=True)
    if len(names) * 2 > len(table):  # values, not classes
        return np.zeros(len(table), int)
    return np.asarray(numbers)


def _drawn(
    units: np.ndarray, classes: np.ndarray, shares: dict[str, float], section: SplitSection
) -> dict[str, np.ndarray]:
    """Rows of every new split, and of ``train``: units evenly spaced in an order by class and size,
    so that all classes have their share up to one unit."""
    count = int(units.max()) + 1 if len(units) else 0
    if count <= len(shares):
        what = "examples with different inputs" if section.by is None else f"values of {section.by}"
        raise RecipeError(
            f"`data.split`: expected more than {len(shares)} {what} to divide, got {count}."
            + (" Name another column." if section.by else " Add examples, or name the splits.")
        )
    table = np.zeros((count, int(classes.max()) + 1), np.int64)
    np.add.at(table, (units, classes), 1)
    noise = np.random.default_rng(section.seed)
    order = np.lexsort((noise.permutation(count), table.sum(1), table.argmax(1)))
    parts: dict[str, np.ndarray] = {}
    for key, share in shares.items():
        number = min(max(1, round(share * count)), len(order) - 1)
        places = ((np.arange(number) + noise.random()) * len(order) / number).astype(int)
        chosen = np.zeros(count, bool)
        chosen[order[places]] = True
        parts[key] = np.flatnonzero(chosen[units])
        order = np.delete(order, places)
    left = np.zeros(count, bool)
    left[order] = True
    return {"train": np.flatnonzero(left[units]), **parts}
