"""Lowered graph to checked QDQ ONNX."""

from fxq.export.exporter import export_onnx
from fxq.export.options import ExportOptions, ExportReport, ExportRules, OutputParity

__all__ = ["ExportOptions", "ExportReport", "ExportRules", "OutputParity", "export_onnx"]
