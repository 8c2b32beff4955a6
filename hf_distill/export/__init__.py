"""ONNX and int8 of a finished student, each compared with it before it is kept."""

from hf_distill.export.onnx import export_onnx, quantize_int8
from hf_distill.hub.exported import Exported, ExportError, read_exports

__all__ = ["ExportError", "Exported", "export_onnx", "quantize_int8", "read_exports"]
