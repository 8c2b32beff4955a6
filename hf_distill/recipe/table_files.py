"""Tables in local files, read by the builders of datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value, load_dataset

from hf_distill.recipe import media_folders as media
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError, told

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
"""Ending of a table -> the builder of datasets that reads it."""


def read_table(files: Sequence[Path], data: Data, paths: bool = True) -> Dataset:
    """One table of files of one format; ``paths``: columns of images and sounds hold paths."""
    endings = sorted({path.suffix.lower() for path in files})
    if len(endings) != 1 or endings[0] not in FORMATS:
        raise RecipeError(
            f"`data.source`: expected files of one of the formats {', '.join(FORMATS)}, or images "
            f"or sounds alone, got {', '.join(endings)}. A glob chooses some of them: "
            "`data.source: folder/*.csv`."
        )
    builder, options = FORMATS[endings[0]], dict[str, Any]()
    if builder == "csv":
        options = _csv_options(files[0], endings[0], data)
    names = ", ".join(path.name for path in files[:3])
    try:
        table: Any = load_dataset(
            builder, data_files={"train": [str(path) for path in files]}, split="train", **options
        )
    except Exception as error:
        raise RecipeError(_unread(names, endings[0], error)) from error
    if builder == "text":
        table = table.filter(_not_blank, input_columns="text", batched=True, desc="Blank lines")
    large = [name for name, kind in table.features.items() if kind == Value("large_string")]
    if large:  # of pandas; everything else expects plain strings
        table = table.cast(Features({**table.features, **dict.fromkeys(large, Value("string"))}))
    return _with_paths(table, files[0].parent, data) if paths else table


def _unread(names: str, ending: str, error: BaseException) -> str:
    """Message of the first error in a chain, which alone names the reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    remedy = "Correct the file."
    if isinstance(error, UnicodeDecodeError):
        remedy = "Save the file as UTF-8."
    elif "CastError" in type(error).__name__ or "column" in str(error).lower():
        remedy = "Give all files of a split the same columns, with values of one kind."
    return f"`data.source`: {names} cannot be read as {ending}: {told(error)}. {remedy}"


def _csv_options(file: Path, ending: str, data: Data) -> dict[str, Any]:
    """Separator, and texts as they are: ``NA``, ``None`` and ``007`` are texts too."""
    separator = "\t"
    if ending == ".csv":
        with file.open(encoding="utf-8", errors="replace") as lines:
            header = lines.readline()
        separator = "," if "," in header else max(",;\t|", key=header.count)
    columns = [getattr(data, key) for key in vars(data) if key.startswith("text_")]
    converters = {name: str for name in columns if name is not None}
    return {
        "sep": separator,
        "keep_default_na": False,
        "na_values": [""],
        "converters": converters,
    }


def _not_blank(texts: Sequence[str]) -> list[bool]:
    return [bool(text.strip()) for text in texts]


def _with_paths(table: Dataset, folder: Path, data: Data) -> Dataset:
    """The table with files in place of their paths, which are relative to the table."""
    columns = {data.image_column: "image", data.audio_column: "audio"}
    suffixes = {"image": media.IMAGES, "audio": media.SOUNDS}
    for column, kind in columns.items():
        if column not in table.column_names or not is_text(table.features[column]):
            continue
        values = table[column][:]
        first = next((value for value in values if value), "")
        if first.lower().endswith(suffixes[kind]):
            paths = [folder / (value or "missing") for value in values]
            table = media.with_media(table, column, paths, kind)
    return table


def is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")
