"""QuantDescriptor: how one tensor is quantized, as plain data.

Integer bounds follow the ONNX QuantizeLinear specification; the narrow range leaves out the lowest code, so that
the bounds are symmetric.
"""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import tomli_w

from fxq.errors import DescriptorError

MIN_BITS, MAX_BITS = 2, 16
CALIBRATORS = ("max", "minmax", "moving_average", "histogram", "percentile", "mse", "entropy")


@dataclass(frozen=True)
class QuantDescriptor:
    """How a tensor is quantized. Immutable, hashable, compared by value.

    Args:
        num_bits: 2 to 16.
        axis: dimensions that KEEP their own range (negative allowed), None for one range for the tensor.
        unsigned: codes start at 0.
        narrow_range: leave out the lowest signed code; None stands for False.
        symmetric: zero point 0 and range [-amax, amax]; False for an affine range [low, high].
        calibrator: what observes the tensor, one of CALIBRATORS.
        amax: a fixed range, a number or one per channel; then nothing is calibrated.
        learn_amax: the range is a parameter (LSQ), initialised from amax or calibration.
        fake_quant: return quantized-and-dequantized values; False returns the integer codes.
        scale_amax: factor on the calibrated amax.
        name: for people.

    Raises:
        DescriptorError: a value is out of range or two values contradict each other.
    """

    num_bits: int = 8
    axis: int | tuple[int, ...] | None = None
    unsigned: bool = False
    narrow_range: bool | None = None
    symmetric: bool = True
    calibrator: str = "max"
    amax: float | tuple[float, ...] | None = None
    learn_amax: bool = False
    fake_quant: bool = True
    scale_amax: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", _as_axis(self.axis))
        object.__setattr__(self, "amax", _as_amax(self.amax))
        if isinstance(self.num_bits, bool) or not isinstance(self.num_bits, int):
            raise DescriptorError(f"num_bits must be an integer from {MIN_BITS} to {MAX_BITS}, got {self.num_bits!r}")
        if not MIN_BITS <= self.num_bits <= MAX_BITS:
            raise DescriptorError(f"num_bits must be from {MIN_BITS} to {MAX_BITS}, got {self.num_bits}")
        if self.calibrator not in CALIBRATORS:
            raise DescriptorError(f"unknown calibrator {self.calibrator!r}; choose one of {', '.join(CALIBRATORS)}")
        if self.unsigned and self.narrow_range:
            raise DescriptorError("narrow_range leaves out the lowest signed code; unsigned codes have none: drop one")
        if self.scale_amax is not None and not (math.isfinite(self.scale_amax) and self.scale_amax > 0):
            raise DescriptorError(f"scale_amax must be a positive number, got {self.scale_amax}")
        if not self.symmetric and self.amax is not None:
            raise DescriptorError("amax describes a symmetric range; an affine descriptor is calibrated instead")
        if not self.symmetric and self.learn_amax:
            raise DescriptorError("learn_amax learns a symmetric range; use symmetric=True or calibrate instead")
        if isinstance(self.amax, tuple) and len(self.axes) != 1:
            raise DescriptorError(
                f"amax has {len(self.amax)} values and axis is {self.axis}: give one axis, or assign a tensor "
                "to TensorQuantizer.amax"
            )

    @property
    def bounds(self) -> tuple[int, int]:
        """Lowest and highest integer code."""
        return integer_bounds(self.num_bits, self.unsigned, bool(self.narrow_range))

    @property
    def axes(self) -> tuple[int, ...]:
        """The kept dimensions as a tuple, empty for per tensor."""
        if self.axis is None:
            return ()
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        try:
            return dataclasses.replace(self, **changes)
        except TypeError as error:
            raise DescriptorError(f"{error}; the fields are {', '.join(_FIELDS)}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from the defaults, as plain data."""
        values = {name: getattr(self, name) for name in _FIELDS if getattr(self, name) != _FIELDS[name].default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Build a descriptor from plain data; a field that does not exist is a DescriptorError."""
        unknown = sorted(set(fields) - set(_FIELDS))
        if unknown:
            raise DescriptorError(f"unknown descriptor field {unknown[0]!r}; the fields are {', '.join(_FIELDS)}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls(**values)

    def to_toml(self) -> str:
        """Return the descriptor as TOML text."""
        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Build a descriptor from TOML text."""
        try:
            fields = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise DescriptorError(f"the descriptor is not valid TOML: {error}") from error
        return cls.from_dict(fields)

    def __str__(self) -> str:
        kind = f"{'u' if self.unsigned else ''}int{self.num_bits}"
        scheme = "" if self.symmetric else " affine"
        return f"{kind}{scheme} per {'tensor' if self.axis is None else f'channel (axis {self.axis})'}"


_FIELDS = {field.name: field for field in dataclasses.fields(QuantDescriptor)}


def integer_bounds(num_bits: int, unsigned: bool, narrow_range: bool) -> tuple[int, int]:
    """Return the lowest and highest code: hi = 2^(bits - 1 + unsigned) - 1.

    Raises:
        DescriptorError: ``num_bits`` is no integer from 2 to 16.
    """
    if isinstance(num_bits, bool) or not isinstance(num_bits, int) or not MIN_BITS <= num_bits <= MAX_BITS:
        raise DescriptorError(f"num_bits must be an integer from {MIN_BITS} to {MAX_BITS}, got {num_bits!r}")
    hi = 2 ** (num_bits - 1 + int(unsigned)) - 1
    if unsigned:
        return 0, hi
    return (-hi if narrow_range else -hi - 1), hi


def _as_axis(axis: Any) -> int | tuple[int, ...] | None:
    if axis is None or (isinstance(axis, int) and not isinstance(axis, bool)):
        return axis
    if isinstance(axis, list | tuple) and axis and all(type(dim) is int for dim in axis):
        return tuple(axis) if len(axis) > 1 else axis[0]
    raise DescriptorError(f"axis must be None, an integer or a tuple of integers, got {axis!r}")


def _as_amax(amax: Any) -> float | tuple[float, ...] | None:
    if amax is None:
        return None
    if hasattr(amax, "tolist"):
        amax = amax.tolist()
    values = amax if isinstance(amax, list | tuple) else [amax]
    if len(values) == 1:
        amax = values[0]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) or not values:
        raise DescriptorError(f"amax must be a number or a flat list of numbers, got {amax!r}")
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise DescriptorError(f"amax must be finite and not negative, got {amax!r}")
    return tuple(float(value) for value in values) if isinstance(amax, list | tuple) else float(amax)


QUANT_DESC_8BIT_PER_TENSOR = QuantDescriptor(num_bits=8)
QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR = QuantDescriptor(num_bits=8, unsigned=True)
QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL = QuantDescriptor(num_bits=8, axis=0)
QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL = QuantDescriptor(num_bits=8, axis=0)
QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL = QuantDescriptor(num_bits=8, axis=0)
QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW = QuantDescriptor(num_bits=8, axis=0)
# A transposed convolution keeps its output channels in dimension 1.
QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL = QuantDescriptor(num_bits=8, axis=1)
QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL = QuantDescriptor(num_bits=8, axis=1)
QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL = QuantDescriptor(num_bits=8, axis=1)
