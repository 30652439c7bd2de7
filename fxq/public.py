"""The public names: each is an attribute of ``fxq``, which imports this module at the first one that is used."""

from fxq import calib, nn, runtimes
from fxq.api import convert, export_onnx, prepare, quantize
from fxq.auto_quantize import auto_quantize
from fxq.auto_report import AutoQuantized
from fxq.calibration import calibrate, calibrate_weights, fit_ranges
from fxq.calibration_report import CalibrationReport
from fxq.comparison import compare
from fxq.comparison_report import Comparison, LayerComparison
from fxq.data import Data
from fxq.errors import (
    AccuracyError,
    CalibrationError,
    CompatError,
    DescriptorError,
    DescriptorTypeError,
    ExportError,
    FxqError,
    GraphError,
    InputError,
    MetricError,
    MissingExtraError,
    ModelError,
    OnnxFileError,
    PassError,
    PluginError,
    RangeError,
    RangeShapeError,
    RecipeDescriptorError,
    RecipeError,
    RuntimeCrashedError,
    RuntimeRefusedError,
    RuntimeUnavailableError,
    SavedModelError,
    StageError,
    TargetError,
    TraceError,
    UnsignedInputError,
)
from fxq.explain import explain
from fxq.graph import Rewriter, check_graph
from fxq.integer import export_integer, to_integer
from fxq.kinds import register_kind
from fxq.nn import TensorQuantizer
from fxq.passbase import Pass
from fxq.qat import freeze_batchnorm, freeze_ranges, qat_schedule
from fxq.quant import (
    QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW,
    QUANT_DESC_8BIT_PER_TENSOR,
    QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR,
    QConfig,
    QuantDescriptor,
    Rule,
    affine_tensor_quant,
    e4m3_quant,
    fake_affine_tensor_quant,
    fake_e4m3_quant,
    fake_tensor_quant,
    tensor_quant,
)
from fxq.quant.registry import register_fit
from fxq.recipe import Recipe, recipe
from fxq.recipe_parts import PassSpec
from fxq.registry import (
    find_lowering,
    get_target,
    integer_form,
    lowers,
    register_pass,
    register_target,
    registered_passes,
    registered_targets,
)
from fxq.reporting import Report, report
from fxq.saving.difference import diff
from fxq.saving.difference_report import Difference, Unlike, UnlikeRange, UnlikeWeight
from fxq.saving.load import load
from fxq.saving.save import save
from fxq.sensitivity import sensitivity
from fxq.sensitivity_report import GroupSensitivity, Sensitivity
from fxq.stage import Stage
from fxq.targets import Derived, FileRules, Fixed, Formats, OpRule, Same, Target
from fxq.tolerance import ANY, EXACT, LSB, ROUNDING, Tolerance
from fxq.tuning import Trial, Tuned, tune
from fxq.verification import BenchReport, BenchRow, Finding, VerifyReport, bench, verify

__all__ = [
    "ANY",
    "EXACT",
    "LSB",
    "QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW",
    "QUANT_DESC_8BIT_PER_TENSOR",
    "QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR",
    "ROUNDING",
    "AccuracyError",
    "AutoQuantized",
    "BenchReport",
    "BenchRow",
    "CalibrationError",
    "CalibrationReport",
    "Comparison",
    "CompatError",
    "Data",
    "Derived",
    "DescriptorError",
    "DescriptorTypeError",
    "Difference",
    "ExportError",
    "FileRules",
    "Finding",
    "Fixed",
    "Formats",
    "FxqError",
    "GraphError",
    "GroupSensitivity",
    "InputError",
    "LayerComparison",
    "MetricError",
    "MissingExtraError",
    "ModelError",
    "OnnxFileError",
    "OpRule",
    "Pass",
    "PassError",
    "PassSpec",
    "PluginError",
    "QConfig",
    "QuantDescriptor",
    "RangeError",
    "RangeShapeError",
    "Recipe",
    "RecipeDescriptorError",
    "RecipeError",
    "Report",
    "Rewriter",
    "Rule",
    "RuntimeCrashedError",
    "RuntimeRefusedError",
    "RuntimeUnavailableError",
    "Same",
    "SavedModelError",
    "Sensitivity",
    "Stage",
    "StageError",
    "Target",
    "TargetError",
    "TensorQuantizer",
    "Tolerance",
    "TraceError",
    "Trial",
    "Tuned",
    "Unlike",
    "UnlikeRange",
    "UnlikeWeight",
    "UnsignedInputError",
    "VerifyReport",
    "affine_tensor_quant",
    "auto_quantize",
    "bench",
    "calib",
    "calibrate",
    "calibrate_weights",
    "check_graph",
    "compare",
    "convert",
    "diff",
    "e4m3_quant",
    "explain",
    "export_integer",
    "export_onnx",
    "fake_affine_tensor_quant",
    "fake_e4m3_quant",
    "fake_tensor_quant",
    "find_lowering",
    "fit_ranges",
    "freeze_batchnorm",
    "freeze_ranges",
    "get_target",
    "integer_form",
    "load",
    "lowers",
    "nn",
    "prepare",
    "qat_schedule",
    "quantize",
    "recipe",
    "register_fit",
    "register_kind",
    "register_pass",
    "register_target",
    "registered_passes",
    "registered_targets",
    "report",
    "runtimes",
    "save",
    "sensitivity",
    "tensor_quant",
    "to_integer",
    "tune",
    "verify",
]
