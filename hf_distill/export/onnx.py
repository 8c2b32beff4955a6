"""ONNX through PyTorch's exporter, kept only where it answers as the student does."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_distill.evaluation.examples import Examples
from hf_distill.export.parity import Parity, compare
from hf_distill.export.student import Student, read_student, sample
from hf_distill.hub.exported import (
    FILES,
    ONNX,
    SINGLE_FILE,
    Exported,
    ExportError,
    check_exports,
    check_packages,
    keep,
    parts,
    sha256,
    staging,
    versions,
)

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
    does not fix it. Of a language model the graph is one forward pass without a cache. File and
    student are run on the same examples, in batches of several sizes and lengths; above ``atol``
    nothing is kept. The metadata are in ``onnx/export.json``, see `read_exports`.

    Args:
        folder: The finished student with its tokenizer or processor.
        opset: Of the standard operators, 18 or more.
        atol: The largest difference of an output that is accepted.
        examples: Labelled ones, which add the accuracy of both; or raw texts, pictures
            (PIL, arrays) or sounds ({'array', 'sampling_rate'}); by default random ones.

    Raises:
        ExportError: PyTorch cannot export the model, or the file answers otherwise.
        ImportError: the extra ``export`` is not installed.
        ValueError: no student that can be exported, or examples of another kind.
    """
    check_packages()
    if opset < _LEAST_OPSET:
        raise ValueError(f"Expected an opset of at least {_LEAST_OPSET}, got {opset}.")
    root = Path(folder)
    check_exports(root)
    student = read_student(root, examples)
    with staging(root) as staged:
        path = staged / Path(FILES[ONNX]).name
        write_graph(student, path, opset)
        parity = compare(student, path)
        if not parity.max_difference <= atol:
            raise ExportError(
                f"Expected the exported graph to answer as the student does, within {atol:g}, got "
                f"a difference of {parity.max_difference:g} on {parity.examples} examples; nothing "
                "is kept. Where the outputs are large numbers, a larger atol may be right."
            )
        row = facts_of(student, path, parity, ONNX)
        keep(root, staged, row)
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
        program.save(path, external_data=size > SINGLE_FILE)
    if program.model.opset_imports.get("") != opset:
        raise ExportError(f"PyTorch {torch.__version__} cannot export opset {opset} here.")


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
        file=FILES[kind],
        size_bytes=sum(file.stat().st_size for file in parts(path)),
        sha256=sha256(*parts(path)),
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
        versions=versions(),
    )


def _reason(error: BaseException) -> str:
    """The first cause, without the exporter's advice on its own code around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own code and on packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
