"""Dynamic int8 of an exported student: int8 weights, activations quantised as they come."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_distill.evaluation.examples import Examples
from hf_distill.export.onnx import facts_of, quiet
from hf_distill.export.parity import compare
from hf_distill.export.student import read_student
from hf_distill.hub.exported import (
    FILES,
    INT8,
    ONNX,
    SINGLE_FILE,
    Exported,
    ExportError,
    check_packages,
    keep,
    parts,
    read_exports,
    staging,
)


def quantize_int8(
    folder: str | os.PathLike[str],
    *,
    examples: Examples | Sequence[Any] | None = None,
    embeddings: bool = False,
    reduce_range: bool = False,
) -> Exported:
    """Write ``onnx/model_int8.onnx`` of a student that `export_onnx` has exported.

    The weights of linear layers become int8, with one scale per output channel; activations are
    quantised batch by batch, so that no calibration is needed. The file is compared with the
    student in PyTorch on the examples; give labelled ones of the task, since random
    ones are not informative about the loss of accuracy.

    Args:
        folder: The finished student.
        examples: See `export_onnx`.
        embeddings: Whether the tables of embeddings get 8 bits too; in small models of text they
            are most of the file.
        reduce_range: Whether to use 7 bits, for CPUs without VNNI, on which sums of 8-bit products
            can overflow.

    Raises:
        ExportError: the model has no linear layers, or the file gives no numbers.
        FileNotFoundError: nothing is exported yet.
        ImportError: the extra ``export`` is not installed.
        ValueError: the student or its export has changed since; or see `export_onnx`.
    """
    check_packages()
    root = Path(folder)
    source = root / FILES[ONNX]
    if not any(row["format"] == ONNX for row in read_exports(root)):
        raise FileNotFoundError(
            f"Expected an exported student, got none in {root / FILES[ONNX]}. Export it first: "
            "export_onnx(folder), or hf-distill export DIR."
        )
    student = read_student(root, examples)
    with staging(root) as staged:
        path = staged / Path(FILES[INT8]).name
        _quantise(source, path, embeddings, reduce_range)
        parity = compare(student, path)
        if not np.isfinite(parity.max_difference):
            raise ExportError(f"Expected numbers from the int8 file, got {parity.max_difference}.")
        row = facts_of(student, path, parity, INT8)
        keep(root, staged, row)
    return row


def _quantise(source: Path, path: Path, embeddings: bool, reduce_range: bool) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    size = sum(file.stat().st_size for file in parts(source))
    with quiet():
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul", "Gemm", *(["Gather"] if embeddings else [])],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            use_external_data_format=size > SINGLE_FILE,
        )
    nodes = onnx.load(path, load_external_data=False).graph.node
    if not any(node.op_type in ("MatMulInteger", "DequantizeLinear") for node in nodes):
        raise ExportError(
            "Expected a model with linear layers, got none that can be quantised. Use the float "
            "ONNX file."
        )
