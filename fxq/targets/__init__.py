"""Runtimes as data."""

from fxq.targets.builtin import DYNAMIC, ONNXRUNTIME, OPENVINO, TARGETS, TENSORRT, WEIGHT_ONLY, get_target
from fxq.targets.target import Target

__all__ = [
    "DYNAMIC",
    "ONNXRUNTIME",
    "OPENVINO",
    "TARGETS",
    "TENSORRT",
    "WEIGHT_ONLY",
    "Target",
    "get_target",
]
