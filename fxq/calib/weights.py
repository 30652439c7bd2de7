"""Ranges of a weight by any method, each channel from a histogram of its own.

A histogram calibrator is per tensor, because activations would need a histogram a channel for all batches. A weight
is one tensor that is there at once. Source: pytorch-quantization 2.2, calibrate_weights.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fxq.calib.histogram import HistogramCalibrator
from fxq.errors import CalibrationError
from fxq.quant.descriptor import QuantDescriptor
from fxq.quant.registry import find_fit


def fit_weight_range(
    weight: Tensor, descriptor: QuantDescriptor, method: str, percentile: float = 99.99, num_bins: int = 2048
) -> tuple[Tensor, ...]:
    """Return (amax,), or (low, high) if the descriptor is affine; its one kept axis stays, the others have size 1.

    Args:
        weight: any shape.
        descriptor: how it is quantized; its own calibrator is not looked at.
        method: "max", "percentile", "mse", "entropy" or another of ``fxq.calib.fit_names()``.
        percentile: of method "percentile".
        num_bins: least number of bins of each channel's histogram.

    Raises:
        CalibrationError: the method does not exist, the weight holds NaN or infinity, or the descriptor has blocks or
            several axes, for which there is only "max" (the calibrator of its quantizer).
    """
    find_fit(method)
    if descriptor.block_size is not None or len(descriptor.axes) > 1:
        raise CalibrationError(f"a {descriptor} weight is fitted by the largest value only: leave the method out")
    options = {"percentile": percentile} if method == "percentile" else {}

    def fit(channel: Tensor) -> tuple[Tensor, ...]:
        calibrator = HistogramCalibrator(
            descriptor.num_bits, unsigned=descriptor.unsigned, num_bins=num_bins, symmetric=descriptor.symmetric
        )
        calibrator.observe(channel)
        low_and_high = calibrator.fit(method, **options)
        if low_and_high is None:  # an empty weight
            low_and_high = (weight.new_zeros((), dtype=torch.float32),) * 2
        return low_and_high[1:] if descriptor.symmetric else low_and_high

    return fit_channels(weight.detach(), descriptor.axes[0] if descriptor.axes else None, fit)


def fit_channels(weight: Tensor, axis: int | None, fit: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return the bounds that ``fit`` gives each channel along ``axis``, which stays while the others have size 1."""
    if axis is None:
        return fit(weight)
    shape = [1] * weight.dim()
    shape[axis] = -1
    fitted = [fit(channel) for channel in weight.unbind(axis)]
    return tuple(torch.stack(bounds).reshape(shape) for bounds in zip(*fitted, strict=True))
