"""Every error that fxq raises, one ladder under FxqError.

An error says what failed, where (module path or node), and what to do about it. Where the standard library or
pytorch-quantization has a type for the mistake, the error is an instance of that type as well.
"""

from fxq.literal import literal


class FxqError(Exception):
    """Base of all errors of fxq; ``except fxq.FxqError`` catches whatever fxq refuses."""

    def __str__(self) -> str:
        return literal(super().__str__(), kept="\n\t")


class DescriptorError(FxqError, ValueError):
    """A QuantDescriptor, or an argument that stands for one, is out of range."""


class DescriptorTypeError(DescriptorError, TypeError):
    """A QuantDescriptor was given an argument that does not exist, or one of a wrong type."""


class RangeError(FxqError, ValueError):
    """A quantization range (amax, or low and high) is negative, empty, not finite or wrongly shaped."""


class RangeShapeError(RangeError, RuntimeError):
    """A range of another shape was assigned where a range is stored already."""


class UnsignedInputError(FxqError, TypeError):
    """A negative value reached an unsigned quantizer."""


class CalibrationError(FxqError, RuntimeError):
    """Calibration saw no data or unusable data, or was asked for a range it cannot give."""


class InputError(FxqError, TypeError):
    """Example inputs, a calibration batch or the inputs of a file do not fit the model."""


class TraceError(FxqError, RuntimeError):
    """A model could not be traced into an FX graph.

    ``path``: of the innermost module that does not trace, "" for the model itself; None where that is not known.
    ``reason``: the message without advice.
    """

    def __init__(self, message: str, path: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.reason = message if reason is None else reason


class GraphError(FxqError, RuntimeError):
    """A graph breaks the rules of its stage."""


class PassError(FxqError, RuntimeError):
    """A pass failed, changed numbers it promised to keep, or left a graph that breaks its stage's rules."""


class PluginError(FxqError, RuntimeError):
    """A plugin does not load, registers nothing, or takes a name that is taken."""


class RecipeError(FxqError, ValueError):
    """A recipe names something that does not exist or cannot be written as text."""


class RecipeDescriptorError(RecipeError, DescriptorError):
    """A descriptor in a recipe is out of range, or has a field that does not exist."""


class TargetError(FxqError, ValueError):
    """A target does not exist, or cannot run what was asked of it."""


class StageError(FxqError, RuntimeError):
    """A model is at the wrong stage for the call, such as one that was already prepared."""


class ExportError(FxqError, RuntimeError):
    """An ONNX file could not be written, breaks a rule, or does not compute what the model computes."""


class SavedModelError(FxqError, ValueError):
    """A model cannot be saved, or a saved one is truncated, foreign, of another model or of a newer fxq."""


class OnnxFileError(FxqError, ValueError):
    """An ONNX file cannot be read, is not whole, or holds nothing to verify or to time."""


class AccuracyError(FxqError, RuntimeError):
    """A quantized model is further from the float model than was asked for (``strict=True``)."""


class RuntimeUnavailableError(FxqError, ImportError):
    """A runtime does not exist, is not installed, or cannot do here what was asked of it."""


class RuntimeRefusedError(FxqError, RuntimeError):
    """A runtime does not take or does not run a file; the message holds its own words."""


class RuntimeCrashedError(FxqError, RuntimeError):
    """A runtime ended its process, or did not come to an end; what it was doing is lost, and nothing else."""


class CompatError(FxqError, ImportError):
    """A name or option of another tool has no equivalent here; the message says what to use."""


class MetricError(FxqError, ValueError):
    """A metric raised, gave no number, or does not depend on the model that it is given."""


class MissingExtraError(FxqError, ImportError):
    """An optional dependency is not installed; the message says how to install it."""


class ModelError(FxqError, ValueError):
    """The command line could not load a model, its weights or its data."""
