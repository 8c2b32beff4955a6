"""Folders of images and of sounds: a class per folder, or a file of metadata."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Audio, ClassLabel, Dataset, Features, Image, Value

from hf_distill.recipe.errors import RecipeError

IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".au")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
"""Column of metadata with the file, relative to the metadata."""


def kind_of(files: Sequence[Path]) -> str | None:
    """``image`` or ``audio`` for files of one of them with nothing but metadata beside them."""
    others = [path for path in files if path.name not in METADATA]
    for kind, suffixes in (("image", IMAGES), ("audio", SOUNDS)):
        if others and all(path.suffix.lower() in suffixes for path in others):
            return kind
    return None


def classes_of(files: Sequence[Path], root: Path) -> list[str | None]:
    """The class of every file: the first folder below ``root``; None for all without folders.

    Raises:
        RecipeError: some files are in a folder and others are not.
    """
    parts = [path.relative_to(root).parts for path in files]
    found = [part[0] if len(part) > 1 else None for part in parts]
    without = [path for path, name in zip(files, found, strict=True) if name is None]
    if without and len(without) < len(files):
        raise RecipeError(
            f"`data.source`: expected every file of {root.name} in a folder with the name of its "
            f"class, got {len(without)} outside of one, such as {without[0].name}. Move them, or "
            f"list all files in a {METADATA[0]} with a column {FILE_NAME!r}."
        )
    return found


def of_classes(
    files: Sequence[Path], root: Path, names: Sequence[str], kind: str, columns: tuple[str, str]
) -> Dataset:
    """Files in folders of their classes, whose ``names`` are those of all splits.

    ``columns`` are those of the file and of the class, which is left out without names.
    """
    media, label = columns
    rows: list[dict[str, Any]] = [{} for _ in files]
    features = Features()
    if names:
        features[label] = ClassLabel(names=list(names))
        rows = [{label: name} for name in classes_of(files, root)]
    return with_files(rows, features, media, list(files), kind)


def of_metadata(table: Dataset, file: Path, kind: str, column: str) -> Dataset:
    """The files that a table of metadata lists, with its other columns.

    Raises:
        RecipeError: no column `FILE_NAME`.
    """
    if FILE_NAME not in table.column_names:
        raise RecipeError(
            f"`data.source`: expected a column {FILE_NAME!r} in {file.name}, got "
            f"{table.column_names}. It holds the path of each file, relative to {file.name}."
        )
    paths = [file.parent / str(name) for name in table[FILE_NAME][:]]
    return with_media(table.remove_columns(FILE_NAME), column, paths, kind)


def with_media(table: Dataset, column: str, paths: Sequence[Path], kind: str) -> Dataset:
    """A table with a column of files in place of, or beside, its columns."""
    if column in table.column_names:
        table = table.remove_columns(column)
    rows = table.to_list() if table.column_names else [{} for _ in paths]
    return with_files(rows, Features(table.features), column, paths, kind)


def with_files(
    rows: list[dict[str, Any]], features: Features, column: str, paths: Sequence[Path], kind: str
) -> Dataset:
    """Rows with a file each; size and time of the files are part of the data set's fingerprint.

    Sounds stay undecoded: `hf_distill.data.audio.read_audio` reads them, where datasets would need
    torchcodec.
    """
    given = [{**row, column: str(path)} for row, path in zip(rows, paths, strict=True)]
    made: Any = Dataset.from_generator(
        _rows,
        features=Features({**features, column: Value("string")}),
        gen_kwargs={"rows": given, "stamps": [_stamp(path) for path in paths]},
    )
    return made.cast_column(column, Audio(decode=False) if kind == "audio" else Image())


def _rows(rows: list[dict[str, Any]], stamps: list[Any]) -> Iterator[dict[str, Any]]:
    """The rows; the stamps are read by the cache of datasets alone."""
    yield from rows


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:  # named later, with all others that cannot be read
        return None
    return facts.st_mtime_ns, facts.st_size
