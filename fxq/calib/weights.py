"""Ranges of a weight by any method, each channel from a histogram of its own.

A histogram calibrator is per tensor, because activations would need a histogram a channel for all batches. A weight
is one tensor that is there at once. Source: pytorch-quantization 2.2, calibrate_weights.
"""

import torch
from torch import Tensor

from fxq.calib.histogram import METHODS, HistogramCalibrator
from fxq.errors import CalibrationError
from fxq.quant.descriptor import QuantDescriptor


def fit_weight_range(
    weight: Tensor, descriptor: QuantDescriptor, method: str, percentile: float = 99.99, num_bins: int = 2048
) -> tuple[Tensor, ...]:
    """Return (amax,), or (low, high) if the descriptor is affine; its one kept axis stays, the others have size 1.

    Args:
        weight: any shape.
        descriptor: how it is quantized; its own calibrator is not looked at.
        method: "max", "percentile", "mse" or "entropy".
        percentile: of method "percentile".
        num_bins: bins of each channel's histogram.

    Raises:
        CalibrationError: the method does not exist, the weight holds NaN or infinity, or the descriptor has blocks or
            several axes, for which there is only "max" (the calibrator of its quantizer).
    """
    if method not in METHODS:
        raise CalibrationError(f"unknown calibration method {method!r}; choose one of {', '.join(METHODS)}")
    if descriptor.block_size is not None or len(descriptor.axes) > 1:
        raise CalibrationError(f"a {descriptor} weight is fitted by the largest value only: leave the method out")
    if not descriptor.axes:
        return _fit(weight, descriptor, method, percentile, num_bins)
    axis = descriptor.axes[0] % weight.dim()
    fitted = [_fit(channel, descriptor, method, percentile, num_bins) for channel in weight.unbind(axis)]
    shape = [1] * weight.dim()
    shape[axis] = -1
    return tuple(torch.stack(bounds).reshape(shape) for bounds in zip(*fitted, strict=True))


def _fit(
    weight: Tensor, descriptor: QuantDescriptor, method: str, percentile: float, num_bins: int
) -> tuple[Tensor, ...]:
    calibrator = HistogramCalibrator(
        descriptor.num_bits, unsigned=descriptor.unsigned, num_bins=num_bins, symmetric=descriptor.symmetric
    )
    calibrator.collect(weight.detach())
    low_and_high = calibrator.compute_range(method, percentile)
    if low_and_high is None:  # an empty weight
        low_and_high = (weight.new_zeros((), dtype=torch.float32),) * 2
    return low_and_high[1:] if descriptor.symmetric else low_and_high
