"""Runtimes as data."""

from fxq.targets.builtin import DYNAMIC, ONNXRUNTIME, OPENVINO, TARGETS, TENSORRT, WEIGHT_ONLY
from fxq.targets.constraints import Constraint, Derived, Fixed, Same
from fxq.targets.file_rules import FileRules
from fxq.targets.formats import Formats
from fxq.targets.op_rule import OpRule
from fxq.targets.target import Target

__all__ = [
    "DYNAMIC",
    "ONNXRUNTIME",
    "OPENVINO",
    "TARGETS",
    "TENSORRT",
    "WEIGHT_ONLY",
    "Constraint",
    "Derived",
    "FileRules",
    "Fixed",
    "Formats",
    "OpRule",
    "Same",
    "Target",
]
