"""The calibrator that a descriptor asks for."""

from collections.abc import Mapping
from types import MappingProxyType

from fxq.calib import (
    Calibrator,
    HistogramCalibrator,
    MaxCalibrator,
    MinMaxCalibrator,
    MovingAverageMinMaxCalibrator,
)
from fxq.errors import DescriptorError
from fxq.quant.descriptor import CALIBRATORS, QuantDescriptor


def make_calibrator(descriptor: QuantDescriptor) -> Calibrator:
    """Return a new calibrator of the kind that ``descriptor.calibrator`` names; a method names a histogram.

    Raises:
        DescriptorError: a histogram method with an axis, or a dynamic descriptor, which observes nothing.
    """
    if descriptor.is_dynamic:
        raise DescriptorError(f"{descriptor}: each input is quantized with its own range, so nothing calibrates it")
    if descriptor.block_size is not None:
        return MaxCalibrator(num_bits=descriptor.num_bits, axis=descriptor.axis, block_size=descriptor.block_size)
    return _KINDS.get(descriptor.calibrator, HistogramCalibrator)(
        num_bits=descriptor.num_bits,
        axis=descriptor.axis,
        unsigned=descriptor.unsigned,
        symmetric=descriptor.symmetric,
    )


def default_method(descriptor: QuantDescriptor) -> str:
    """Return the method that a calibrator of ``descriptor`` fits with when none is asked for."""
    return "max" if descriptor.calibrator in CALIBRATORS else descriptor.calibrator


_KINDS: Mapping[str, type[Calibrator]] = MappingProxyType(
    {
        "max": MaxCalibrator,
        "minmax": MinMaxCalibrator,
        "moving_average": MovingAverageMinMaxCalibrator,
    }
)
