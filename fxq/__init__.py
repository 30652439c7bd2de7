"""fxq: a torch.fx graph-rewriting quantization compiler. A trained model goes in, a fused int8 ONNX file comes out."""

from fxq import calib, nn
from fxq.api import convert, export_onnx, prepare, quantize
from fxq.calibration import calibrate, calibrate_weights, fit_ranges
from fxq.errors import (
    CalibrationError,
    DescriptorError,
    ExportError,
    FxqError,
    GraphError,
    InputError,
    ModelError,
    PassError,
    PluginError,
    RangeError,
    RecipeError,
    StageError,
    TargetError,
    TraceError,
    UnsignedInputError,
)
from fxq.explain import explain
from fxq.graph import Rewriter, check_graph
from fxq.nn import TensorQuantizer
from fxq.passbase import Pass
from fxq.quant import QConfig, QuantDescriptor, Rule, fake_tensor_quant, tensor_quant
from fxq.recipe import PassSpec, Recipe, recipe
from fxq.registry import register_pass, registered_passes
from fxq.stage import Stage
from fxq.target import Target, get_target

__all__ = [
    "CalibrationError",
    "DescriptorError",
    "ExportError",
    "FxqError",
    "GraphError",
    "InputError",
    "ModelError",
    "Pass",
    "PassError",
    "PassSpec",
    "PluginError",
    "QConfig",
    "QuantDescriptor",
    "RangeError",
    "Recipe",
    "RecipeError",
    "Rewriter",
    "Rule",
    "Stage",
    "StageError",
    "Target",
    "TargetError",
    "TensorQuantizer",
    "TraceError",
    "UnsignedInputError",
    "calib",
    "calibrate",
    "calibrate_weights",
    "check_graph",
    "convert",
    "explain",
    "export_onnx",
    "fake_tensor_quant",
    "fit_ranges",
    "get_target",
    "nn",
    "prepare",
    "quantize",
    "recipe",
    "register_pass",
    "registered_passes",
    "tensor_quant",
]
