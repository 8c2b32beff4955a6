"""Local files as the data of a recipe: tables, saved data sets, folders of images and sounds."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, DatasetDict, Value, load_from_disk

from hf_distill.recipe import media_folders as media
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError, refusing, shown
from hf_distill.recipe.sections import path_of
from hf_distill.recipe.table_files import FORMATS, is_text, read_table

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing"),
}
"""Split -> the words for it in the names of files and folders."""
_WILD = re.compile(r"[*?\[]")
_NO_DATA = ("readme", "license", "licence")


def is_local(source: str | Mapping[str, Any], folder: Path) -> bool:
    """True for files on this machine: a mapping of splits, a path, a glob, or the name of a file or
    folder beside the recipe."""
    if not isinstance(source, str):
        return True
    known = (*FORMATS, *media.IMAGES, *media.SOUNDS)
    if source.startswith((".", "/", "~")) or _WILD.search(source):
        return True
    if source.lower().endswith(known):
        return True
    try:
        return bool(source) and (folder / source).exists()
    except (OSError, ValueError):  # no name that a file could have
        return False


def title_of(source: str | Mapping[str, Any]) -> str:
    """A name of the data for the card, without folders."""
    if isinstance(source, str) and not _WILD.search(source):
        return Path(source).stem.replace("_", " ") or "local files"
    return "local files"


def load_files(data: Data, folder: Path) -> DatasetDict:
    """Splits of local files.

    Splits are those of a mapping, of a saved `DatasetDict`, or of the names of files and folders;
    otherwise all files are one table, ``train``.

    Args:
        data: The section of the recipe, for ``source`` and the names of columns.
        folder: Folder of the recipe, from which paths are read.

    Raises:
        RecipeError: no such file, files of several formats or of none that is known, or a file
            that cannot be read.
    """
    source = data.source
    if isinstance(source, str):
        return DatasetDict(_of_path(source, folder, data))
    if not source:
        raise RecipeError("`data.source`: expected a file for each split, got an empty section.")
    found = {}
    for split, given in source.items():
        patterns = [given] if isinstance(given, str) else given
        if not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
            raise RecipeError(
                f"`data.source.{split}`: expected a path or a list of paths, got {shown(given)}."
            )
        found[split] = [_files(one, folder, f"data.source.{split}") for one in patterns]
    return DatasetDict(_read(found, data))


def undecoded(loaded: DatasetDict) -> DatasetDict:
    """The splits with sounds as bytes or paths, which datasets decodes by torchcodec only."""
    for split, dataset in loaded.items():
        for name, feature in (dataset.features or {}).items():
            if isinstance(feature, Audio) and feature.decode:
                rate = feature.sampling_rate
                kept = Audio(sampling_rate=rate, decode=False)
                dataset = dataset.cast_column(name, kept)
        loaded[split] = dataset
    return loaded


Files = tuple[list[Path], Path]
"""Files, and the folder that their names are relative to."""


def _of_path(source: str, folder: Path, data: Data) -> dict[str, Dataset]:
    files, root = _files(source, folder, "data.source")
    if _is_saved(root):
        with refusing(f"`data.source`: {root} cannot be loaded"):
            saved = load_from_disk(str(root))
        return dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
    kind = media.kind_of(files)
    if len(files) == 1:
        return _read({"train": [(files, root)]}, data)
    named = [_split_of(path.relative_to(root), kind is not None) for path in files]
    if None in named and any(named):
        if kind is None:
            without = [path for path, split in zip(files, named, strict=True) if split is None]
            raise RecipeError(
                f"`data.source`: expected a split (train, validation or test) in the name of every "
                f"file of {source}, or of none, got {len(without)} without, such as "
                f"{without[0].name}. Name the files: `data.source: {{train: …, test: …}}`."
            )
        named = [None] * len(files)  # "train" is the name of a class beside "car" and "bus"
    splits: dict[str, list[Files]] = {}
    for split in (None, *WORDS):
        if split not in named:
            continue
        own = [path for path, one in zip(files, named, strict=True) if one == split]
        base = root
        if split is not None and kind is not None:
            base = root / own[0].relative_to(root).parts[0]
            if not all(path.is_relative_to(base) for path in own):
                raise RecipeError(
                    f"`data.source`: expected one folder for the split {split}, got several in "
                    f"{source}. Name them: `data.source: {{{split}: [folder, folder]}}`."
                )
        splits[split or "train"] = [(own, base)]
    return _read(splits, data)


def _is_saved(root: Path) -> bool:
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def _split_of(path: Path, by_folder: bool) -> str | None:
    """The split that a path names; of images and sounds their outermost folder alone."""
    names = list(path.parts[:1] if len(path.parts) > 1 else ())
    if not by_folder:
        names = [*path.parts[:-1], path.stem]
    for name in names:
        words = {*re.split(r"[^a-z]+", name.lower())}
        found = [split for split, known in WORDS.items() if words & {*known}]
        if len(found) == 1:
            return found[0]
    return None


def _files(pattern: str, folder: Path, key: str) -> Files:
    """The files of a path, glob or folder, in the order of their names."""
    with refusing(f"`{key}`: {shown(pattern)} is no path"):
        path = folder / path_of(pattern)
        exists, is_folder = path.exists(), path.is_dir()
    root = path if is_folder else path.parent
    if exists:
        files = _below(path) if is_folder else [path]
    elif wild := _WILD.search(str(path)):
        root = Path(f"{str(path)[: wild.start()]}_").parent
        matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        files = sorted({file for one in matches for file in (_below(one) or [one])})
        files = [file for file in files if file.is_file()]
    else:
        raise RecipeError(
            f"`{key}`: there is no file or folder {path}. Paths are read from the recipe's folder."
        )
    if not files:
        raise RecipeError(f"`{key}`: expected files, got none for {path}. Correct the path.")
    return files, root


def _below(folder: Path) -> list[Path]:
    """All files below a folder but hidden ones, and texts about the data."""
    if not folder.is_dir():
        return []
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [
        path
        for path in found
        if not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
        and not path.stem.lower().startswith(_NO_DATA)
    ]


def _read(splits: Mapping[str, Sequence[Files]], data: Data) -> dict[str, Dataset]:
    """Read every split: tables, or files of images or sounds."""
    every = [path for parts in splits.values() for files, _ in parts for path in files]
    kind = media.kind_of(every)
    if kind is not None:
        return _media(splits, kind, data)
    found = {}
    for split, parts in splits.items():
        if len(parts) == 1 and _is_saved(parts[0][1]):
            with refusing(f"`data.source.{split}`: {parts[0][1]} cannot be loaded"):
                saved: Any = load_from_disk(str(parts[0][1]))
            if not isinstance(saved, Dataset):
                raise RecipeError(
                    f"`data.source.{split}`: expected one data set, got the splits "
                    f"{sorted(saved)}. Give the folder as `data.source`."
                )
            found[split] = saved
        else:
            found[split] = read_table([path for files, _ in parts for path in files], data)
    return _alike(found, data)


def _media(splits: Mapping[str, Sequence[Files]], kind: str, data: Data) -> dict[str, Dataset]:
    column = data.image_column if kind == "image" else data.audio_column
    found, plain = {}, {}
    for split, parts in splits.items():
        files = [path for own, _ in parts for path in own]
        listed = [path for path in files if path.name in media.METADATA]
        if len(listed) > 1:
            raise RecipeError(
                f"`data.source`: expected one file of metadata in the split {split}, got "
                f"{len(listed)}. Join them, with paths relative to the joined file."
            )
        if listed:
            table = read_table(listed, data, paths=False)
            found[split] = media.of_metadata(table, listed[0], kind, column)
        else:
            plain[split] = parts
    named = [media.classes_of(files, root) for parts in plain.values() for files, root in parts]
    names = sorted({name for one in named for name in one if name is not None})
    for split, parts in plain.items():
        if len(parts) > 1 and names:
            raise RecipeError(
                f"`data.source.{split}`: expected one folder with a folder per class, got "
                f"{len(parts)}."
            )
        files = [path for own, _ in parts for path in own]
        columns = (column, data.label_column)
        found[split] = media.of_classes(files, parts[0][1], names, kind, columns)
    return {split: found[split] for split in splits}


def _alike(found: dict[str, Dataset], data: Data) -> dict[str, Dataset]:
    """Splits whose label columns are of one type: ``3`` and ``"3"`` are one class."""
    column = data.label_column
    kinds = [table.features[column] for table in found.values() if column in table.column_names]
    if len({str(kind) for kind in kinds}) < 2 or not all(isinstance(k, Value) for k in kinds):
        return found
    if not any(is_text(kind) for kind in kinds):
        return found
    return {split: _as_text(table, column) for split, table in found.items()}


def _as_text(table: Dataset, column: str) -> Dataset:
    if column not in table.column_names:
        return table
    return table.cast_column(column, Value("string"))
