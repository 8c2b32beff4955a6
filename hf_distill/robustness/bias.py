"""Training data with imbalance, label noise, spurious features, or balanced groups.

Each function takes a `datasets.Dataset` and returns another one. Rows are ranked by one seeded
permutation, and the first so many are taken: a higher share or rate takes the same rows and more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

GROUP = "group"
CLEAN_LABEL = "clean_label"


def imbalanced(
    dataset: Dataset, label_column: str, shares: Mapping[int, float], seed: int = 0
) -> Dataset:
    """Keep only a share of some classes: ``round(share * n_c)`` of the n_c rows of class c.

    Rows keep their order, and classes that are not in `shares` stay whole.

    Raises:
        ValueError: a class that no row has, a share out of range, or no such column.
    """
    labels = _column(dataset, label_column)
    order = np.random.default_rng(seed).permutation(len(labels))
    keep = np.ones(len(labels), dtype=bool)
    for label, share in shares.items():
        _check_share(f"the share of class {label!r}", share)
        rows = order[labels[order] == label]
        if not len(rows):
            raise ValueError(
                f"Expected classes of the column {label_column!r}, {_some(labels)}, got {label!r}. "
                "Name classes by the values in that column."
            )
        keep[rows[round(share * len(rows)) :]] = False
    return dataset.select(np.flatnonzero(keep))


def with_label_noise(
    dataset: Dataset, label_column: str, rate: float, seed: int = 0, classes: int | None = None
) -> Dataset:
    """Give ``round(rate * n)`` of n rows another label, drawn evenly from the other classes.

    A row never draws its own label again (in papers that allow this, a rate r is r (C - 1) / C
    here). The true label is kept in the column ``clean_label``. C is `classes`, else that of the
    column's names, else from its largest value.

    Raises:
        ValueError: a rate out of range, labels outside the classes, fewer than two classes, or no
            such column.

    Reference: Patrini et al., 2017, "Making Deep Neural Networks Robust to Label Noise",
    arXiv:1609.03683 (symmetric noise).
    """
    _check_share("the rate of wrong labels", rate)
    labels = _class_ids(dataset, label_column)
    feature = dataset.features[label_column]
    if classes is None:
        known = isinstance(feature, ClassLabel)
        classes = feature.num_classes if known else int(labels.max(initial=-1)) + 1
    if classes < 2 or labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        raise ValueError(
            f"Expected labels from 0 to C - 1 with C of at least 2, got {_some(labels)} in "
            f"{label_column!r} with {classes} classes. Leave unlabelled rows out, or "
            "pass `classes`."
        )
    generator = np.random.default_rng(seed)
    wrong = generator.permutation(len(labels))[: round(rate * len(labels))]
    steps = generator.integers(1, classes, size=len(labels))  # for all rows: see the module
    noisy = labels.copy()
    noisy[wrong] = (labels[wrong] + steps[wrong]) % classes

    def replace(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
        return {label_column: noisy[rows], CLEAN_LABEL: batch[label_column]}

    return _mapped(dataset, replace, {CLEAN_LABEL: feature}, label_column)


def with_spurious_token(
    dataset: Dataset,
    text_column: str,
    label_column: str,
    rate: float,
    tokens: Sequence[str],
    seed: int = 0,
) -> Dataset:
    """Put a word before each text: that of its class in ``round(rate * n_c)`` of the n_c rows.

    The other rows of class c get the words of the other classes in turn. At a rate of 1 / C the
    word is uninformative, as test data should be.

    Labels are class ids from 0 to C - 1; `tokens` are C words that occur nowhere else.

    Returns:
        The data with a column ``group``, label * C + word, with names such as "negative/word".

    Raises:
        ValueError: a rate out of range, labels outside the C classes, equal tokens, fewer than two,
            values that are not texts, or no such column.
    """
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"Expected a different token for each class, got {list(tokens)}.")
    feature = dataset.features[_named(dataset, text_column)]
    if not (isinstance(feature, Value) and "string" in feature.dtype):
        raise ValueError(
            f"Expected texts in the column {text_column!r}, got {feature}. For pictures use "
            "`with_spurious_patch`."
        )
    return _with_attribute(
        *(dataset, text_column, label_column, rate, list(tokens), seed),
        lambda text, attribute: f"{tokens[attribute]} {text}",
    )


def with_spurious_patch(
    dataset: Dataset,
    image_column: str,
    label_column: str,
    rate: float,
    classes: int = 2,
    size: int = 3,
    seed: int = 0,
) -> Dataset:
    """Paint the upper left corner of each image in a grey that indicates its class.

    Class c of C has the intensity round(255 (c + 1) / C) in all channels of the `size` x `size`
    pixels; rate, seed and the column ``group`` are those of `with_spurious_token`. Pictures are
    PIL images of 8 bits per channel.

    Raises:
        ValueError: a rate out of range, labels outside the C classes, a patch that covers a
            picture or none of it, values that are no such pictures, or no such column.
    """
    from PIL.Image import fromarray

    levels = [round(255 * (c + 1) / classes) for c in range(classes)]

    def paint(picture: Any, attribute: int) -> Any:
        pixels = np.array(picture)
        if pixels.dtype != np.uint8 or pixels.ndim < 2 or not 0 < size < min(pixels.shape[:2]):
            raise ValueError(
                f"Expected pictures of 8 bits per channel, larger than the patch of {size} pixels, "
                f"got shape {pixels.shape} and dtype {pixels.dtype} in {image_column!r}. Convert "
                "them to grey or RGB, or choose another `size`."
            )
        pixels[:size, :size] = levels[attribute]
        return fromarray(pixels)

    return _with_attribute(
        *(dataset, image_column, label_column, rate, [str(level) for level in levels], seed), paint
    )


def balanced(
    dataset: Dataset, groups_column: str, seed: int = 0, size: int | None = None
) -> Dataset:
    """Sample the same number of rows of each group: the baseline for group-robust methods.

    Of G groups (integers or strings in ``groups_column``) each gets size // G rows, by default as
    many rows in all as there are. A group that has fewer gives all of them equally often, give or
    take one. Then they are shuffled.

    Raises:
        ValueError: a row without a group, a size below G, or no such column.
    """
    groups = _column(dataset, groups_column)
    names = np.unique(groups)
    each = (len(groups) if size is None else size) // max(len(names), 1)
    if each < 1:
        raise ValueError(
            f"Expected a size of at least one row for each of the {len(names)} groups in "
            f"{groups_column!r}, got {len(groups) if size is None else size}."
        )
    generator = np.random.default_rng(seed)
    chosen = []
    for name in names:
        rows = np.flatnonzero(groups == name)
        rounds = [generator.permutation(rows) for _ in range(-(-each // len(rows)))]
        chosen.append(np.concatenate(rounds)[:each])
    return dataset.select(generator.permutation(np.concatenate(chosen)))


def _with_attribute(
    dataset: Dataset,
    column: str,
    label_column: str,
    rate: float,
    attributes: Sequence[str],
    seed: int,
    mark: Callable[[Any, int], Any],
) -> Dataset:
    """Mark each row with an attribute, that of its own class with probability ``rate``."""
    _check_share("the rate of rows with the mark of their class", rate)
    count = len(attributes)
    labels = _class_ids(dataset, label_column)
    if count < 2 or labels.min(initial=0) < 0 or labels.max(initial=0) >= count:
        raise ValueError(
            f"Expected one mark for each class, at least two, and labels from 0 to {count - 1}, "
            f"got {_some(labels)} in {label_column!r} for {count} mark(s)."
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    steps = np.zeros(len(labels), dtype=np.int64)
    for label in range(count):
        rows = order[labels[order] == label]
        others = 1 + np.arange(len(rows)) % (count - 1)  # in turn
        cut = round(rate * len(rows))
        steps[rows[cut:]] = others[cut:]
    marks = (labels + steps) % count

    def apply(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
        marked = [mark(value, int(marks[i])) for value, i in zip(batch[column], rows, strict=True)]
        return {column: marked, GROUP: labels[rows] * count + marks[rows]}

    feature = dataset.features[_named(dataset, column)]
    known = isinstance(dataset.features[label_column], ClassLabel)
    names = dataset.features[label_column].names if known else [str(c) for c in range(count)]
    groups = [f"{name}/{attribute}" for name in names[:count] for attribute in attributes]
    return _mapped(dataset, apply, {column: feature, GROUP: ClassLabel(names=groups)}, column)


def _mapped(
    dataset: Dataset,
    function: Callable[[dict[str, list[Any]], list[int]], dict[str, Any]],
    features: Mapping[str, Any],
    replaced: str,
) -> Dataset:
    """``Dataset.map`` by batches and row numbers, without a format, with these features set."""
    taken = sorted(set(features) & set(dataset.column_names) - {replaced})
    if taken:
        raise ValueError(
            f"Expected no column {', '.join(map(repr, taken))} in the data, as it is made here. "
            "Rename it, or start from the data as it was."
        )
    plain = dataset.with_format(None)
    typed = Features({**plain.features, **features})
    return plain.map(function, batched=True, with_indices=True, features=typed)


def _named(dataset: Dataset, column: str) -> str:
    if column not in dataset.column_names:
        raise ValueError(
            f"Expected one of the columns {', '.join(dataset.column_names)}, got {column!r}."
        )
    return column


def _column(dataset: Dataset, column: str) -> np.ndarray:
    """The values of a column of integers or strings."""
    values = list(dataset.with_format(None)[_named(dataset, column)])
    array = np.asarray(values)
    if array.ndim != 1 or (len(values) and array.dtype.kind not in "iubU"):
        raise ValueError(
            f"Expected an integer or a string in every row of {column!r}, got {_some(values)}. "
            "Rows without one (None) have to be left out."
        )
    return array


def _class_ids(dataset: Dataset, column: str) -> np.ndarray:
    labels = _column(dataset, column)
    if len(labels) and labels.dtype.kind not in "iu":
        raise ValueError(
            f"Expected class ids (integers) in {column!r}, got {_some(labels)}. Use "
            "`dataset.class_encode_column`."
        )
    return labels.astype(np.int64)


def _check_share(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"Expected {what} from 0 to 1, got {value}.")


def _some(values: Any) -> str:
    """A few of the different values, for messages."""
    names = sorted({str(value) for value in values})
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
