"""Metadata of exported files, atomic updates of ``onnx/``, and the table of a student's card."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_distill.hub.leaks import read_text
from hf_distill.utils.files import write_json, write_text
from hf_distill.utils.folders import contents, held, refuse_foreign_files

from .card import BEGIN, END
from .check import validate
from .prose import templates

ONNX, INT8 = "ONNX", "ONNX int8"
FILES = {ONNX: "onnx/model.onnx", INT8: "onnx/model_int8.onnx"}
"""Format -> its file below the student's folder; weights above `SINGLE_FILE` lie in FILE.data."""
FACTS = "onnx/export.json"
SINGLE_FILE = 1_800_000_000
"""Bytes of weights that fit into one ONNX file, which protobuf limits to 2 GiB."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "adapter_model.*")
_STAGING = ".onnx-"
_HEADING = "## Other formats\n"
_SECTION = re.compile(rf"^{re.escape(_HEADING)}.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_BEFORE = re.compile(r"^## (?:Robustness|Distillation|Data|Training)$|\Z", re.MULTILINE)


class ExportError(RuntimeError):
    """A student that cannot be exported, or a file that does not answer as the student does."""


@dataclass(frozen=True)
class Exported:
    """One exported file and how it compares with the student in PyTorch, in float32.

    Attributes:
        format: ``ONNX`` or ``ONNX int8``.
        file: Relative to the student's folder; ``size_bytes`` includes external weights.
        sha256: Hash of the file, followed by that of external weights.
        opset: Of the standard operators.
        inputs: Name -> dimensions: a number, or the name of one that varies; ``outputs``: names.
        max_difference: The largest absolute difference of an output, padding left out.
        same_argmax: The share of equal decisions (class, token, position); None: no classes.
        examples: Number of examples that were compared; ``generated``: they were random.
        metric: ``accuracy``, where labels were given; ``value`` of this file, ``float_value`` of
            the student in PyTorch.
        versions: Package -> version.
    """

    format: str
    file: str
    size_bytes: int
    sha256: str
    opset: int
    inputs: dict[str, list[int | str]]
    outputs: list[str]
    max_difference: float
    same_argmax: float | None
    examples: int
    generated: bool
    metric: str | None
    value: float | None
    float_value: float | None
    versions: dict[str, str]

    def describe(self) -> dict[str, Any]:
        """The attributes as plain values, without those that are None."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


def check_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"Exporting needs {', '.join(PACKAGES)}, and {', '.join(missing)} cannot be imported. "
            "Install them: pip install 'hf_distill[export]'."
        )


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", *PACKAGES)}


def read_exports(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Metadata of a student's exported files (`Exported.describe`), for its card; none without
    files. ValueError where the student or a file has changed since."""
    root = Path(folder)
    try:
        facts = json.loads((root / FACTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    again = f"Export again: hf-distill export {root}"
    if facts["weights"] != weights_of(root):
        raise ValueError(
            f"Expected {root / FACTS} to be of the weights in {root}, and they have changed since "
            f"the export. {again}"
        )
    rows: list[dict[str, Any]] = facts["exports"]
    for row in rows:
        path = root / row["file"]
        if not path.is_file() or sha256(*parts(path)) != row["sha256"]:
            raise ValueError(f"Expected {path} as it was exported, got none or another. {again}")
    return rows


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Temporary folder next to ``onnx/``; removes those of killed exports. FolderError: another
    export is at work, or see `check_exports`."""
    with held(folder):
        check_exports(folder)
        for old in folder.glob(f"{_STAGING}*"):
            if not contents(old, ("*.onnx", "*.onnx.data", "*.json")):  # else it is no export's
                shutil.rmtree(old)
        with tempfile.TemporaryDirectory(prefix=_STAGING, dir=folder) as staged:
            yield Path(staged)


def check_exports(folder: Path) -> None:
    """Raise FolderError where ONNX files would be replaced that were not exported here."""
    files = [Path(name).name for name in FILES.values()]
    names = [*files, *(f"{name}.data" for name in files)]
    record = folder / FACTS
    refuse_foreign_files(record.parent, names, record.name, {"weights", "exports"})


def keep(folder: Path, staged: Path, row: Exported) -> None:
    """Move compared files and their metadata to ``onnx/``.

    The metadata are removed first and written last, so that they are never of other files. A new
    float file takes the place of all, also of what was quantised from the old one.
    """
    rows = [row.describe()]
    if row.format != ONNX:
        rows = [*(old for old in read_exports(folder) if old["format"] != row.format), *rows]
    facts = folder / FACTS
    facts.parent.mkdir(exist_ok=True)
    facts.unlink(missing_ok=True)
    for name in FILES if row.format == ONNX else (row.format,):
        for old in parts(folder / FILES[name]):
            old.unlink(missing_ok=True)
    for path in staged.iterdir():
        os.replace(path, facts.parent / path.name)
    write_json(facts, {"weights": weights_of(folder), "exports": rows})


def weights_of(folder: Path) -> dict[str, str]:
    """The student's files of weights -> hash, in any format that they are loaded from."""
    found = {path for pattern in _WEIGHTS for path in folder.glob(pattern)}
    return {path.name: sha256(path) for path in sorted(found)}


def parts(path: Path) -> list[Path]:
    return [path, *path.parent.glob(f"{path.name}.data")]


def sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def add_exports(folder: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> Path | None:
    """Put a table of exported files into the card of a student, in place of the one it has.

    ``rows`` are those of `StudentCard.exports`. Returns the card's path, or None without a
    generated card; ValueError if the card is not in UTF-8, or would not be valid.
    """
    path = Path(folder) / "README.md"
    text = read_text(str(path), path.read_bytes()) if path.is_file() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        return None
    head, rest = text.split(BEGIN)
    ours, tail = rest.split(END)
    ours = _SECTION.sub("", ours)
    section = templates().get_template("exports.md").render(exports=list(rows)).strip()
    place = _BEFORE.search(ours)
    assert place is not None  # the end is always one
    before, after = ours[: place.start()].rstrip(), ours[place.start() :].strip()
    ours = "\n".join([before, "", section, "", *([after, ""] if after else [])])
    text = head + BEGIN + re.sub(r"\n{3,}", "\n\n", ours) + END + tail
    validate(text)
    write_text(path, text)
    return path
