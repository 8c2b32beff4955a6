"""Labels of a recipe's examples: one class, several classes, values, or a tag for each word."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, List, Value

from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError

NONE, CLASS, MULTI_LABEL, VALUE, TAGS = "none", "class", "multi_label", "value", "tags"
CHOICE, RELEVANCE = "choice", "relevance"
EXPECTED = {
    CLASS: "one class per example (a ClassLabel, a whole number or a name)",
    MULTI_LABEL: "a list of classes per example",
    VALUE: "a number per example",
    TAGS: "a list with one class for each word",
    CHOICE: "the number of the right choice, from 0",
    RELEVANCE: "a number per pair, or a list with a number for each candidate",
}
"""Kind of labels -> its description in messages."""


@dataclass(frozen=True)
class Labels:
    """Kind of the labels of a recipe's examples, and the names of the classes.

    Attributes:
        kind: A key of `EXPECTED`, or `NONE` where the examples have no column of labels.
        names: Class names in the order of their numbers.
        width: Values per example of `VALUE`.
        graded: True if the `RELEVANCE` is not always within 0 and 1.
    """

    kind: str = NONE
    names: list[str] = field(default_factory=list)
    width: int = 1
    graded: bool = False

    @property
    def head(self) -> dict[str, Any]:
        """Config settings of a model with a head for these labels."""
        if self.kind in (NONE, CHOICE):
            return {}
        if self.kind == VALUE or (self.kind == RELEVANCE and self.graded):
            return {"num_labels": self.width, "problem_type": "regression"}
        if self.kind == RELEVANCE:
            return {"num_labels": 1, "problem_type": "multi_label_classification"}
        problem = {CLASS: "single_label_classification", MULTI_LABEL: "multi_label_classification"}
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
            **({"problem_type": problem[self.kind]} if self.kind in problem else {}),
        }


def read_labels(
    found: DatasetDict, data: Data, kinds: Collection[str]
) -> tuple[DatasetDict, Labels]:
    """Encode the column of labels alike in every split.

    Args:
        found: The splits; ``train`` is among them.
        data: The section of the recipe.
        kinds: The kinds that the task can use; the first that fits the column is taken, or that of
            ``data.problem``.

    Raises:
        RecipeError: labels of none of these kinds, or without a number for each class.
    """
    column = data.label_column
    feature = found["train"].features[column]
    wanted = kinds if data.problem is None else [PROBLEMS[data.problem]]
    for kind in wanted:
        if kind in kinds and (encode := _ENCODERS[kind](feature)):
            return encode(found, data)
    expected = " or ".join(EXPECTED[kind] for kind in wanted if kind in kinds)
    if not expected:
        raise RecipeError(
            f"`data.problem`: {data.problem} is not for this task. Leave it out, or set `task`."
        )
    raise RecipeError(f"`data.label_column`: expected {expected} in {column!r}, got {feature}.")


PROBLEMS = {"single_label": CLASS, "multi_label": MULTI_LABEL, "regression": VALUE}
"""Value of ``data.problem`` -> kind of labels."""
Encode = Callable[[DatasetDict, Data], tuple[DatasetDict, Labels]]


def _as_class(feature: Any) -> Encode | None:
    return _classes if isinstance(feature, ClassLabel) or _is_class(feature) else None


def _is_class(feature: Any) -> bool:
    dtype = feature.dtype if isinstance(feature, Value) else ""
    return isinstance(feature, ClassLabel) or dtype.startswith(("int", "uint", "string", "bool"))


def _as_value(feature: Any) -> Encode | None:
    inner = feature.feature if isinstance(feature, List) else feature
    dtype = inner.dtype if isinstance(inner, Value) else ""
    return _values if dtype.startswith(("float", "double", "int", "uint")) else None


def _as_choice(feature: Any) -> Encode | None:
    dtype = "int64" if isinstance(feature, ClassLabel) else getattr(feature, "dtype", "")
    return _choices if str(dtype).startswith(("int", "uint")) else None


def _as_relevance(feature: Any) -> Encode | None:
    inner = feature.feature if isinstance(feature, List) else feature
    return _relevance if _as_value(inner) else None


def _as_lists(kind: str) -> Callable[[Any], Encode | None]:
    def fits(feature: Any) -> Encode | None:
        if not (isinstance(feature, List) and _is_class(feature.feature)):
            return None
        return lambda found, data: _lists(found, data, kind)

    return fits


_ENCODERS: dict[str, Callable[[Any], Encode | None]] = {
    CLASS: _as_class,
    VALUE: _as_value,
    MULTI_LABEL: _as_lists(MULTI_LABEL),
    TAGS: _as_lists(TAGS),
    CHOICE: _as_choice,
    RELEVANCE: _as_relevance,
}


def _classes(found: DatasetDict, data: Data) -> tuple[DatasetDict, Labels]:
    """Give every split one and the same `ClassLabel` column."""
    column = data.label_column
    feature = found["train"].features[column]
    if isinstance(feature, ClassLabel):
        return found, Labels(CLASS, list(feature.names))
    values = sorted({value for dataset in found.values() for value in dataset.unique(column)})
    names = _named(values, feature, column, data)
    encoded = found.map(
        lambda batch: {column: [names.index(str(value)) for value in batch[column]]}, batched=True
    )
    return encoded.cast_column(column, ClassLabel(names=names)), Labels(CLASS, names)


def _named(values: list[Any], feature: Any, column: str, data: Data) -> list[str]:
    """Names of the classes with these sorted values; a `RecipeError` for numbers with gaps."""
    if feature.dtype.startswith(("int", "uint")) and values != list(range(len(values))):
        if values[0] < 0:
            raise RecipeError(unlabelled(column, data))
        raise RecipeError(
            f"`data.label_column`: expected the classes 0 to {len(values) - 1} in {column!r}, got "
            f"{values[:10]}. Number them without gaps, or give names."
        )
    return [str(value) for value in values]


def _values(found: DatasetDict, data: Data) -> tuple[DatasetDict, Labels]:
    column = data.label_column
    feature = found["train"].features[column]
    if not isinstance(feature, List):
        return found.cast_column(column, Value("float32")), Labels(VALUE)
    widths = {len(row) for dataset in found.values() for row in dataset[column][:]}
    if len(widths) != 1:
        raise RecipeError(
            f"`data.label_column`: expected equally many numbers per example in {column!r}, got "
            f"{sorted(widths)[:5]}."
        )
    return found.cast_column(column, List(Value("float32"))), Labels(VALUE, width=widths.pop())


def _choices(found: DatasetDict, data: Data) -> tuple[DatasetDict, Labels]:
    return found.cast_column(data.label_column, Value("int64")), Labels(CHOICE)


def _relevance(found: DatasetDict, data: Data) -> tuple[DatasetDict, Labels]:
    """Relevance of pairs or of candidates, 0 for none."""
    column = data.label_column
    is_list = isinstance(found["train"].features[column], List)
    found = found.cast_column(column, List(Value("float32")) if is_list else Value("float32"))
    rows = [row for dataset in found.values() for row in dataset[column][:] if row is not None]
    values = [value for row in rows for value in row] if is_list else rows
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    if lowest < 0:
        raise RecipeError(
            f"`data.label_column`: expected relevances of 0 or more in {column!r}, got {lowest:g}. "
            "Give 0 to what is not relevant."
        )
    return found, Labels(RELEVANCE, graded=highest > 1)


def _lists(found: DatasetDict, data: Data, kind: str) -> tuple[DatasetDict, Labels]:
    """Lists of class numbers for words; 0 or 1 for each class of several."""
    column = data.label_column
    inner: Any = found["train"].features[column].feature
    if isinstance(inner, ClassLabel):
        names, number = list(inner.names), None
    else:
        rows = (row for dataset in found.values() for row in dataset[column][:])
        values = sorted({value for row in rows for value in row or ()})
        names = _named(values, inner, column, data)
        number = {name: index for index, name in enumerate(names)}

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        lists = batch[column]
        if number is not None:
            lists = [row and [number[str(value)] for value in row] for row in lists]
        if kind == MULTI_LABEL:
            every = range(len(names))
            lists = [None if row is None else [float(at in row) for at in every] for row in lists]
        return {column: lists}

    encoded = found.map(encode, batched=True, remove_columns=[column])
    held = Value("float32") if kind == MULTI_LABEL else Value("int64")
    return encoded.cast_column(column, List(held)), Labels(kind, names)


def unlabelled(column: str, data: Data) -> str:
    """The message for examples without a label."""
    return (
        f"`data.label_column`: {column!r} of {data.source} holds examples without a label. "
        "Name labelled splits (data.test_split: validation, where the test labels are withheld)."
    )


def labelled(dataset: Dataset, split: str, labels: Labels, data: Data) -> Dataset:
    """A split with its labels under the name ``labels``.

    Raises:
        RecipeError: examples without a label.
    """
    values = dataset[data.label_column][:]
    if any(value is None or (labels.kind in (CLASS, CHOICE) and value < 0) for value in values):
        raise RecipeError(f"split {split!r}: {unlabelled(data.label_column, data)}")
    if data.label_column == "labels":
        return dataset
    return dataset.rename_column(data.label_column, "labels")
