"""Runtimes as data."""

from fxq.target.builtin import ONNXRUNTIME, OPENVINO, TARGETS, TENSORRT, get_target
from fxq.target.target import Target

__all__ = ["ONNXRUNTIME", "OPENVINO", "TARGETS", "TENSORRT", "Target", "get_target"]
