"""A student with its ONNX file: tracing takes most of the time of these tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with its ONNX file; what an export that was killed has left is there, too."""
    from exported_students import labelled, saved  # skips a module where ONNX is not installed

    from hf_distill.export import export_onnx

    folder = saved(tmp_path_factory.mktemp("exported") / "student", "sequence_classification")
    (folder / ".onnx-killed").mkdir()
    (folder / ".onnx-killed/model.onnx").write_bytes(b"half")
    export_onnx(folder, opset=18, examples=labelled(12))
    return folder


@pytest.fixture
def student(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, for a test that writes into it."""
    return Path(shutil.copytree(exported, tmp_path / "student"))
