"""Lowered graph to checked QDQ ONNX."""

from fxq.compare.parity import OutputParity
from fxq.export.exporter import export_onnx
from fxq.export.options import ExportOptions, ExportReport

__all__ = ["ExportOptions", "ExportReport", "OutputParity", "export_onnx"]
