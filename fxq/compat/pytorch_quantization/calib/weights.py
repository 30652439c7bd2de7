"""calibrate_weights: ranges for all weights of a model, each channel fitted by its own histogram."""

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from fxq.calib.histogram import METHODS
from fxq.calib.weights import fit_weight_range
from fxq.errors import CalibrationError, InputError
from fxq.nn import TensorQuantizer
from fxq.quant.descriptor import QuantDescriptor


def calibrate_weights(
    model: nn.Module,
    method: str = "percentile",
    perchannel: bool = True,
    percentile: float = 99.99,
    num_bins: int = 2048,
) -> None:
    """Store a range in the weight quantizer of each module that has ``weight`` and ``weight_quantizer``.

    Args:
        model: changed in place.
        method: "max", "percentile", "mse" or "entropy", whatever calibrator the quantizers have.
        perchannel: a range for each output channel, which is dimension 1 of a transposed convolution; False for one.
        percentile: of method "percentile".
        num_bins: bins of the histograms.

    Raises:
        InputError: the method does not exist.
        CalibrationError: a weight holds NaN or infinity.
    """
    if method not in METHODS:
        raise InputError(f"Unsupported calibration method {method}: choose one of {', '.join(METHODS)}")
    for path, module in model.named_modules():
        weight, quantizer = getattr(module, "weight", None), getattr(module, "weight_quantizer", None)
        if not isinstance(weight, Tensor) or not isinstance(quantizer, TensorQuantizer):
            continue
        axis = (1 if isinstance(module, _ConvTransposeNd) else 0) if perchannel else None
        descriptor = QuantDescriptor(quantizer.num_bits, axis, quantizer.unsigned)
        try:
            (quantizer.amax,) = fit_weight_range(weight, descriptor, method, percentile, num_bins)
        except CalibrationError as error:
            raise CalibrationError(f"the weight of {path!r}: {error}") from error
