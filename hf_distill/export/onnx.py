"""ONNX through PyTorch's exporter and dynamic int8, each compared with the student."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_distill.evaluation.examples import Examples
from hf_distill.export.parity import Parity, compare
from hf_distill.export.student import Student, read_student, sample
from hf_distill.hub import exported
from hf_distill.hub.exported import Exported, ExportError

OPSET = 20
_LEAST_OPSET = 18
_AXES = {0: "batch_size", 1: "sequence_length"}


def export_onnx(
    folder: str | os.PathLike[str],
    *,
    opset: int = OPSET,
    atol: float = 1e-4,
    examples: Examples | Sequence[Any] | None = None,
) -> Exported:
    """Write ``onnx/model.onnx`` of a finished student, in float32.

    The number of examples varies, and so does the length of texts and sounds where the processor
    does not fix it. Of a language model the graph is one forward pass without a cache. The metadata
    are in ``onnx/export.json``, see `read_exports`.

    Args:
        folder: The finished student with its tokenizer or processor.
        opset: Version of the standard operators, 18 or more.
        atol: Largest accepted difference of an output, on batches of several sizes and lengths.
        examples: Labelled ones, which add the accuracy of both; or raw texts, pictures
            (PIL, arrays) or sounds ({'array', 'sampling_rate'}); by default random ones.

    Raises:
        ExportError: PyTorch cannot export the model, or the outputs differ; nothing is kept.
        ImportError: the extra ``export`` is not installed.
        ValueError: no student that can be exported, or examples of another kind.
    """
    exported.check_packages()
    if opset < _LEAST_OPSET:
        raise ValueError(f"Expected an opset of at least {_LEAST_OPSET}, got {opset}.")
    root = Path(folder)
    exported.check_exports(root)
    student = read_student(root, examples)
    with exported.staging(root) as staged:
        path = staged / Path(exported.FILES[exported.ONNX]).name
        write_graph(student, path, opset)
        parity = compare(student, path)
        if not parity.max_difference <= atol:
            raise ExportError(
                f"Expected the exported graph to answer as the student does, within {atol:g}, got "
                f"a difference of {parity.max_difference:g} on {parity.examples} examples; nothing "
                "is kept. Where the outputs are large numbers, a larger atol may be right."
            )
        row = facts_of(student, path, parity, exported.ONNX)
        exported.keep(root, staged, row)
    return row


def quantize_int8(
    folder: str | os.PathLike[str],
    *,
    examples: Examples | Sequence[Any] | None = None,
    embeddings: bool = False,
    reduce_range: bool = False,
) -> Exported:
    """Write ``onnx/model_int8.onnx`` of a student that `export_onnx` has exported.

    The weights of linear layers become int8, with one scale per output channel; activations are
    quantised batch by batch, without calibration.

    Args:
        folder: The finished student.
        examples: See `export_onnx`; random ones are not informative about the loss of accuracy.
        embeddings: True: the tables of embeddings, most of a small model of text, get 8 bits too.
        reduce_range: True: use 7 bits, for CPUs without VNNI, on which sums of 8-bit products
            can overflow.

    Raises:
        ExportError: the model has no linear layers, or the file gives no numbers.
        FileNotFoundError: nothing is exported yet.
        ImportError: the extra ``export`` is not installed.
        ValueError: the student or its export has changed since; or see `export_onnx`.
    """
    exported.check_packages()
    root = Path(folder)
    source = root / exported.FILES[exported.ONNX]
    if not any(row["format"] == exported.ONNX for row in exported.read_exports(root)):
        raise FileNotFoundError(
            f"Expected an exported student, got none in {source}. Export it first: "
            "export_onnx(folder), or hf-distill export DIR."
        )
    student = read_student(root, examples)
    with exported.staging(root) as staged:
        path = staged / Path(exported.FILES[exported.INT8]).name
        _quantise(source, path, embeddings, reduce_range)
        parity = compare(student, path)
        if not np.isfinite(parity.max_difference):
            raise ExportError(f"Expected numbers from the int8 file, got {parity.max_difference}.")
        row = facts_of(student, path, parity, exported.INT8)
        exported.keep(root, staged, row)
    return row


def write_graph(student: Student, path: Path, opset: int) -> None:
    """Export the student's graph without any name or path of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    batch = sample(student)
    shapes = tuple(
        {axis: _AXES.get(axis, f"dimension_{axis}") for axis in (0, *student.axes[name])}
        for name in batch
    )
    with quiet(), sdpa_kernel(SDPBackend.MATH):
        try:
            program = torch.onnx.export(
                student.graph,
                tuple(batch.values()),
                input_names=list(batch),
                output_names=list(student.graph.outputs),
                dynamic_shapes=(shapes,),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
            model = type(student.subject.model).__name__
            raise ExportError(f"PyTorch cannot export {model} to ONNX: {_reason(error)}") from error
        assert program is not None  # it is with dynamo=True
        ClearMetadataAndDocStringPass()(program.model)
        size = sum(p.numel() * p.element_size() for p in student.graph.parameters())
        program.save(path, external_data=size > exported.SINGLE_FILE)
    if program.model.opset_imports.get("") != opset:
        raise ExportError(f"PyTorch {torch.__version__} cannot export opset {opset} here.")


def _quantise(source: Path, path: Path, embeddings: bool, reduce_range: bool) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    size = sum(file.stat().st_size for file in exported.parts(source))
    with quiet():
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul", "Gemm", *(["Gather"] if embeddings else [])],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            use_external_data_format=size > exported.SINGLE_FILE,
        )
    nodes = onnx.load(path, load_external_data=False).graph.node
    if not any(node.op_type in ("MatMulInteger", "DequantizeLinear") for node in nodes):
        raise ExportError(
            "Expected a model with linear layers, got none that can be quantised. Use the float "
            "ONNX file."
        )


def facts_of(student: Student, path: Path, parity: Parity, kind: str) -> Exported:
    """Metadata of a compared file."""
    import onnx

    graph = onnx.load(path, load_external_data=False)
    inputs = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in graph.graph.input
    }
    labelled = student.labels is not None
    return Exported(
        format=kind,
        file=exported.FILES[kind],
        size_bytes=sum(file.stat().st_size for file in exported.parts(path)),
        sha256=exported.sha256(*exported.parts(path)),
        opset=next(o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")),
        inputs=inputs,
        outputs=[value.name for value in graph.graph.output],
        max_difference=parity.max_difference,
        same_argmax=parity.same_argmax,
        examples=parity.examples,
        generated=student.generated,
        metric="accuracy" if labelled else None,
        value=parity.right / parity.examples if labelled else None,
        float_value=parity.float_right / parity.examples if labelled else None,
        versions=exported.versions(),
    )


def _reason(error: BaseException) -> str:
    """The first cause of an error of the exporter."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the log and the warnings of the exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
