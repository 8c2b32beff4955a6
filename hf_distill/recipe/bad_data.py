"""Checks of the examples of a recipe, once at its preparation."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, Dataset, DatasetDict, Image, Value

from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError, shown
from hf_distill.recipe.findings import Findings
from hf_distill.recipe.row_hashes import row_hashes
from hf_distill.utils.suggest import did_you_mean

BATCH = 10_000
WHOLE_LIMITS = ("max_train_examples", "max_eval_examples", "max_test_examples")


def is_media(feature: Any) -> bool:
    """True for a column of images or sounds."""
    return isinstance(feature, (Audio, Image))


def check_tables(
    loaded: DatasetDict, data: Data, inputs: Sequence[str], labelled: bool, findings: Findings
) -> DatasetDict:
    """The loaded splits, checked for missing labels, empty texts and duplicate ids.

    Columns that do not exist are reported elsewhere.

    Raises:
        RecipeError: bad examples, unless ``data.skip_bad`` leaves them out.
    """
    found = DatasetDict(loaded)
    used = [name for key, name in vars(data).items() if key.endswith("_split")]
    for split in [name for name in used if name in found]:
        dataset = found[split]
        if labelled:
            dataset = _with_labels(dataset, split, data.label_column, findings)
        for column in inputs:
            if isinstance(dataset.features.get(column), Value):
                dataset = _with_text(dataset, split, column, findings)
        found[split] = dataset
    return _without_duplicates(found, data, findings)


def _columns(dataset: Dataset, column: str) -> Iterator[pa.ChunkedArray]:
    """A column in parts, as arrow holds it."""
    for table in dataset.select_columns(column).with_format("arrow").iter(batch_size=BATCH):
        yield table.column(column)


def _rows(dataset: Dataset, column: str, test: Any) -> np.ndarray:
    """Rows for whose value the arrow function ``test`` is true or null."""
    parts = [pc.fill_null(test(values), True).to_numpy() for values in _columns(dataset, column)]
    return np.flatnonzero(np.concatenate(parts)) if parts else np.zeros(0, int)


def _with_labels(dataset: Dataset, split: str, column: str, findings: Findings) -> Dataset:
    feature = dataset.features.get(column)
    if feature is None:
        return dataset
    text = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    bad = _rows(dataset, column, _is_blank if text else pc.is_null)
    if isinstance(feature, Value) and feature.dtype.startswith("float"):
        bad = _rows(dataset, column, lambda values: pc.is_null(values, nan_is_null=True))
    expected, got = f"a label in every row of {column!r}", f"no label in {column!r}"
    remedy = "Label them, or name splits that have labels."
    kept = findings.without(dataset, split, bad, expected, got, remedy)
    return _whole(kept, column) if len(bad) else kept


def _whole(dataset: Dataset, column: str) -> Dataset:
    """Classes that were read as 1.0 because a label was missing, as whole numbers again."""
    feature = dataset.features[column]
    if not isinstance(feature, Value) or not feature.dtype.startswith("float"):
        return dataset
    values = np.asarray(dataset[column][:])
    if not np.array_equal(values, np.round(values)):
        return dataset
    return dataset.cast_column(column, Value("int64"))


def _is_blank(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.equal(pc.utf8_trim_whitespace(values), "")


def _with_text(dataset: Dataset, split: str, column: str, findings: Findings) -> Dataset:
    kind = dataset.features[column].dtype
    if kind == "null":
        bad = np.arange(len(dataset))
    elif kind in ("string", "large_string"):
        bad = _rows(dataset, column, _is_blank)
    else:
        raise RecipeError(
            f"`data`: expected texts in the column {column!r} of split {split!r}, got {kind}. Name "
            "the column with the texts."
        )
    expected, got = f"a text in every row of {column!r}", f"empty texts in {column!r}"
    return findings.without(dataset, split, bad, expected, got, "Fill them in.")


def _without_duplicates(found: DatasetDict, data: Data, findings: Findings) -> DatasetDict:
    """Of examples with the same id the first one, in the order test, validation, training."""
    column = data.id_column
    if column is None:
        return found
    seen: set[Any] = set()
    order = (data.test_split, data.validation_split, data.train_split)
    for split in [name for name in order if name is not None and name in found]:
        dataset = found[split]
        if column not in dataset.column_names:
            raise RecipeError(
                f"`data.id_column`: split {split!r} has no column {column!r}, but "
                f"{dataset.column_names}.{did_you_mean(column, dataset.column_names)}"
            )
        bad, named = [], []
        for row, value in enumerate(dataset[column][:]):
            if value in seen:
                bad.append(row)
                named.append(f"row {row + 1} ({shown(value)})")
            seen.add(value)
        expected, got = f"different ids in {column!r}", f"ids of other examples in {column!r}"
        remedy = "Correct the ids, or take `data.id_column` away."
        found[split] = findings.without(
            dataset, split, np.array(bad, int), expected, got, remedy, named
        )
    return found


def uses_all(data: Data) -> bool:
    """True if no random subset of a split is taken."""
    return all(getattr(data, key) is None for key in WHOLE_LIMITS)


def check_media(found: DatasetDict, inputs: Sequence[str], findings: Findings) -> DatasetDict:
    """The splits, checked for images and sounds that cannot be read, and for sounds of 0 s.

    Every file is decoded once; datasets caches the result.

    Raises:
        RecipeError: bad examples, unless ``data.skip_bad`` leaves them out.
    """
    for split, dataset in found.items():
        for column in inputs:
            feature = dataset.features.get(column)
            if is_media(feature):
                sound = isinstance(feature, Audio)
                dataset = _readable(dataset, split, column, sound, findings)
        found[split] = dataset
    return found


def _readable(
    dataset: Dataset, split: str, column: str, sound: bool, findings: Findings
) -> Dataset:
    raw = dataset.select_columns(column)
    raw = raw.cast_column(column, Audio(decode=False) if sound else Image(decode=False))
    checked = raw.map(
        _sound_problems if sound else _image_problems,
        batched=True,
        batch_size=64,
        input_columns=column,
        remove_columns=column,
        desc=f"Reading {column}",
    )
    problems = checked["problem"][:]
    bad = [row for row, problem in enumerate(problems) if problem]
    names = []
    for row in bad[:10]:
        value = raw[row][column]
        file = "" if value is None or not value["path"] else f" ({Path(value['path']).name})"
        names.append(f"row {row + 1}{file}, {problems[row]}")
    what = "sounds" if sound else "images"
    expected, got = f"{what} that can be read in {column!r}", f"unreadable {what} in {column!r}"
    return findings.without(
        dataset, split, np.array(bad, int), expected, got, "Repair or remove the files.", names
    )


def _image_problems(values: Sequence[Any]) -> dict[str, list[str]]:
    return {"problem": [_problem(value, _read_image) for value in values]}


def _sound_problems(values: Sequence[Any]) -> dict[str, list[str]]:
    return {"problem": [_problem(value, _read_sound) for value in values]}


def _problem(value: Mapping[str, Any] | None, read: Any) -> str:
    """Reason why a file cannot be read; empty: it can."""
    content = None if value is None else value["bytes"]
    path = None if value is None else value["path"]
    if content is None and path is None:
        return "no file"
    if content is None and not Path(str(path)).is_file():
        return "no such file"
    try:
        problem: str = read(str(path) if content is None else io.BytesIO(content))
    except Exception as error:  # decoders raise errors of many kinds
        return f"not readable as such a file ({type(error).__name__})"
    return problem


def _read_image(file: Any) -> str:
    from PIL import Image as Pillow

    with Pillow.open(file) as picture:
        picture.draft("RGB", (16, 16))  # of a JPEG all data are read, few are computed
        picture.load()
    return ""


def _read_sound(file: Any) -> str:
    import soundfile

    with soundfile.SoundFile(file) as sound:
        frames = sum(len(block) for block in sound.blocks(blocksize=1 << 16, dtype="float32"))
    return "" if frames else "a sound of 0 s"


def leaks(found: DatasetDict, train: str, inputs: Sequence[str]) -> Findings:
    """A warning, and a sentence for the card, about test examples that are training examples."""
    findings, test = Findings(), found["test"]
    known = [name for name in inputs if name in test.column_names]
    if not known:
        return findings
    common = np.flatnonzero(np.isin(row_hashes(test, known), row_hashes(found[train], known)))
    if not len(common):
        return findings
    first = test.select_columns(known).with_format("arrow")[int(common[0])].to_pylist()[0]
    value = first[known[0]]
    example = value.get("path") if isinstance(value, Mapping) else value
    count = f"{len(common):,} of the {len(test):,} test examples"
    findings.lines.append(
        f"warning: {count} are in the training set too, such as {shown(example)}: results on the "
        "test split are too good. Remove them from one of the two, or give all examples as one "
        "table: `data.split` keeps equal examples together."
    )
    findings.limitations.append(f"{count} have the same inputs as a training example.")
    return findings
