"""QuantDescriptor: how one tensor is quantized, as plain data.

Integer bounds follow the ONNX QuantizeLinear specification; the narrow range leaves out the lowest code, so that
the bounds are symmetric. float8 e4m3 (Micikevicius et al. 2022, arXiv:2209.05433) is written ``num_bits=(4, 3)``,
exponent and mantissa bits, as in pytorch-quantization; its bounds are its largest numbers, -448 and 448.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Self

import tomli_w

from fxq.errors import DescriptorError, DescriptorTypeError
from fxq.literal import did_you_mean
from fxq.quant.registry import fit_names, is_fit
from fxq.toml_text import parse_toml

MIN_BITS, MAX_BITS = 2, 16
MAX_BLOCK_BITS = 8  # ONNX has blocks of 4 and 8 bits
BLOCK_MULTIPLE = 16  # the kernels that read blocks need it: ONNX Runtime's MatMulNBits takes 16, 32, 64 and up
# Beside these, any calibration method names a histogram that is fitted by it.
CALIBRATORS = ("max", "minmax", "moving_average", "histogram", "dynamic")
LEARNED = ("lsq", "pact")
E4M3 = (4, 3)
LARGEST_E4M3 = 448


@dataclass(frozen=True)
class QuantDescriptor:
    """How a tensor is quantized. Immutable, hashable, compared by value.

    Args:
        num_bits: 2 to 16, or (4, 3) for float8 e4m3.
        axis: dimensions that KEEP their own range (negative allowed), None for one range for the tensor.
        unsigned: codes start at 0.
        narrow_range: leave out the lowest signed code; None stands for False.
        symmetric: zero point 0 and range [-amax, amax]; False for an affine range [low, high].
        calibrator: what observes the tensor, one of ``calibrator_names()``; "dynamic" observes nothing and stores no
            range, so that each input is quantized with its own.
        amax: a fixed symmetric range, a number or one per channel; then nothing is calibrated.
        learn_amax: the range is a parameter, initialised from amax or calibration, that training learns: "lsq", which
            True stands for, by its step (arXiv:1902.08153); "pact" by its clip (arXiv:1805.06085).
        fake_quant: return quantized-and-dequantized values; False returns the integer codes.
        scale_amax: factor on the range, whether fixed here, measured or calibrated, but not on one assigned later.
        name: for people.
        block_size: weights of shape (out, in) only, with axis=0: every ``block_size`` inputs of a row have a range of
            their own, and amax has shape (out, ceil(in / block_size)). A multiple of 16.
        range: a fixed affine range (low, high) for the whole tensor; then nothing is calibrated.

    Raises:
        DescriptorError: a value is out of range or two values contradict each other.
    """

    num_bits: int | tuple[int, int] = 8
    axis: int | tuple[int, ...] | None = None
    unsigned: bool = False
    narrow_range: bool | None = None
    symmetric: bool = True
    calibrator: str = "max"
    amax: float | tuple[float, ...] | None = None
    learn_amax: bool | str = False
    fake_quant: bool = True
    scale_amax: float | None = None
    name: str | None = None
    block_size: int | None = None
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self._check_types()
        object.__setattr__(self, "num_bits", _as_num_bits(self.num_bits))
        object.__setattr__(self, "axis", _as_axis(self.axis))
        object.__setattr__(self, "amax", _as_amax(self.amax))
        object.__setattr__(self, "range", _as_range(self.range))
        object.__setattr__(self, "learn_amax", _as_learned(self.learn_amax))
        if self.calibrator not in CALIBRATORS and not is_fit(self.calibrator):
            raise DescriptorError(
                f"unknown calibrator {self.calibrator!r}; choose one of {', '.join(calibrator_names())}"
            )
        if self.unsigned and self.narrow_range:
            raise DescriptorError("narrow_range leaves out the lowest signed code; unsigned codes have none: drop one")
        if self.scale_amax is not None and not (is_finite(self.scale_amax) and self.scale_amax > 0):
            raise DescriptorError(f"scale_amax must be a positive number, got {self.scale_amax}")
        if not self.symmetric and self.amax is not None:
            raise DescriptorError("amax describes a symmetric range; give an affine descriptor range=(low, high)")
        if self.symmetric and self.range is not None:
            raise DescriptorError("range is affine: add symmetric=False, or give amax instead")
        if self.range is not None and self.axis is not None:
            raise DescriptorError(f"a fixed range is one for the whole tensor; drop range or axis={self.axis}")
        if not self.symmetric and self.learn_amax:
            raise DescriptorError("learn_amax learns a symmetric range; use symmetric=True or calibrate instead")
        if isinstance(self.amax, tuple) and len(self.axes) != 1:
            raise DescriptorError(
                f"amax has {len(self.amax)} values and axis is {self.axis}: give one axis, or assign a tensor "
                "to TensorQuantizer.amax"
            )
        if self.is_float8:
            self._check_float8()
        if self.block_size is not None:
            self._check_blocks(self.block_size)
        if self.is_dynamic and (self.is_fixed or self.learn_amax):
            given = "learn_amax" if self.learn_amax else "range" if self.amax is None else "amax"
            raise DescriptorError(f'calibrator="dynamic" stores no range: drop {given}, or choose another calibrator')

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A model has one for each tensor, and nothing in it is ever modified."""
        return self

    def _check_types(self) -> None:
        """Check the fields that are kept as they are given."""
        for name in ("unsigned", "symmetric", "fake_quant", "narrow_range"):
            given = getattr(self, name)
            if not (isinstance(given, bool) or (given is None and name == "narrow_range")):
                raise DescriptorTypeError(f"{name} must be True or False, got {given!r}")
        if not isinstance(self.calibrator, str):
            raise DescriptorTypeError(f"calibrator must be a name such as 'max', got {self.calibrator!r}")
        if not isinstance(self.name, str | None):
            raise DescriptorTypeError(f"name must be a text or None, got {self.name!r}")
        if isinstance(self.scale_amax, bool) or not isinstance(self.scale_amax, Real | None):
            raise DescriptorTypeError(f"scale_amax must be a positive number, got {self.scale_amax!r}")

    def _check_float8(self) -> None:
        forbidden = {
            "unsigned": self.unsigned,
            "narrow_range": self.narrow_range,
            "symmetric=False": not self.symmetric,
            "fake_quant=False": not self.fake_quant,
            "learn_amax": bool(self.learn_amax),
            'calibrator="entropy"': self.calibrator == "entropy",
        }
        for option, is_given in forbidden.items():
            if is_given:
                raise DescriptorError(f"float8 e4m3 (num_bits={E4M3}) has no integer codes: it cannot have {option}")

    def _check_blocks(self, block_size: int) -> None:
        if type(block_size) is not int or block_size < BLOCK_MULTIPLE or block_size % BLOCK_MULTIPLE:
            raise DescriptorError(f"block_size must be a positive multiple of {BLOCK_MULTIPLE}, got {block_size!r}")
        if self.axis != 0:
            raise DescriptorError(
                f"block_size={block_size} needs axis=0, the output channels of a weight (blocks run along its inputs, "
                f"dimension 1), got axis={self.axis}"
            )
        if self.is_float8 or self.num_bits > MAX_BLOCK_BITS:  # type: ignore[operator]  # a tuple is float8
            raise DescriptorError(
                f"block_size={block_size} needs num_bits from {MIN_BITS} to {MAX_BLOCK_BITS}, got {self.num_bits}"
            )
        if self.unsigned or not self.symmetric:
            raise DescriptorError(
                "blocks have signed symmetric codes: drop block_size, or unsigned and symmetric=False"
            )
        if self.amax is not None or self.learn_amax:
            given = "amax" if self.amax is not None else "learn_amax"
            raise DescriptorError(f"the range of each block is measured: drop block_size or {given}")
        if self.calibrator != "max":
            raise DescriptorError(
                f'blocks are calibrated by calibrator="max", got {self.calibrator!r}: a block is too small to leave '
                "values out of its range"
            )

    @property
    def bounds(self) -> tuple[int, int]:
        """Lowest and highest integer code; for float8 the lowest and highest number."""
        if isinstance(self.num_bits, tuple):
            return -LARGEST_E4M3, LARGEST_E4M3
        return integer_bounds(self.num_bits, self.unsigned, bool(self.narrow_range))

    @property
    def is_float8(self) -> bool:
        """Is the format float8 e4m3?"""
        return isinstance(self.num_bits, tuple)

    @property
    def is_dynamic(self) -> bool:
        """Is each input quantized with its own range, and none stored?"""
        return self.calibrator == "dynamic"

    @property
    def is_fixed(self) -> bool:
        """Is the range given here, so that nothing is calibrated?"""
        return self.amax is not None or self.range is not None

    @property
    def axes(self) -> tuple[int, ...]:
        """The kept dimensions as a tuple, empty for per tensor."""
        if self.axis is None:
            return ()
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed; itself where they are so already."""
        if all(_is_given(vars(self).get(name, _FIELDS), value) for name, value in changes.items()):
            return self
        try:
            return dataclasses.replace(self, **changes)
        except TypeError as error:
            raise DescriptorError(f"{error}; the fields are {', '.join(_FIELDS)}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from the defaults, as plain data."""
        values = {name: value for name, value in vars(self).items() if value != _FIELDS[name].default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Build a descriptor from plain data; a field that does not exist is a DescriptorError."""
        unknown = sorted(set(fields) - set(_FIELDS))
        if unknown:
            hint = did_you_mean(unknown[0], _FIELDS, f"the fields are {', '.join(_FIELDS)}")
            raise DescriptorError(f"unknown descriptor field {unknown[0]!r}; {hint}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls(**values)

    def to_toml(self) -> str:
        """Return the descriptor as TOML text."""
        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Build a descriptor from TOML text."""
        return cls.from_dict(parse_toml(text, "the descriptor", DescriptorError))

    def __str__(self) -> str:
        kind = "float8 e4m3" if self.is_float8 else f"{'u' if self.unsigned else ''}int{self.num_bits}"
        scheme = "" if self.symmetric else " affine"
        shares = "tensor" if self.axis is None else f"channel (axis {self.axis})"
        if self.block_size is not None:
            shares = f"block of {self.block_size}"
        return f"{'dynamic ' if self.is_dynamic else ''}{kind}{scheme} per {shares}"


_FIELDS = {field.name: field for field in dataclasses.fields(QuantDescriptor)}


def _is_given(known: Any, value: Any) -> bool:
    return type(known) is type(value) and not isinstance(value, tuple | list) and bool(known == value)  # 1 is no True


def calibrator_names() -> tuple[str, ...]:
    """Return what ``QuantDescriptor.calibrator`` may name: kinds of calibrators, and calibration methods."""
    return tuple(dict.fromkeys((*CALIBRATORS, *fit_names())))


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


def is_finite(number: float) -> bool:
    """Return whether a number is one as a float: an integer of Python may be too large."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _as_num_bits(num_bits: Any) -> int | tuple[int, int]:
    if isinstance(num_bits, list | tuple):
        if tuple(num_bits) == E4M3:
            return E4M3
        raise DescriptorError(f"the only floating-point format is e4m3, num_bits={E4M3}, got {num_bits!r}")
    if isinstance(num_bits, bool) or not isinstance(num_bits, int):
        raise DescriptorError(f"num_bits must be an integer from {MIN_BITS} to {MAX_BITS}, or {E4M3}, got {num_bits!r}")
    if not MIN_BITS <= num_bits <= MAX_BITS:
        raise DescriptorError(f"num_bits must be from {MIN_BITS} to {MAX_BITS}, got {num_bits}")
    return num_bits


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
    if not all(is_finite(value) and value >= 0 for value in values):
        raise DescriptorError(f"amax must be finite and not negative, got {amax!r}")
    return tuple(float(value) for value in values) if isinstance(amax, list | tuple) else float(amax)


def _as_learned(given: Any) -> bool | str:
    if given is True:
        return LEARNED[0]
    if given is False or given in LEARNED:
        return given  # type: ignore[no-any-return]  # False or a name
    names = " or ".join(map(repr, LEARNED))
    kind = DescriptorError if isinstance(given, str) else DescriptorTypeError
    raise kind(
        f"learn_amax is {names}, True for {LEARNED[0]!r}, or False for a range that is not learned, got {given!r}"
    )


def _as_range(bounds: Any) -> tuple[float, float] | None:
    if bounds is None:
        return None
    is_pair = isinstance(bounds, list | tuple) and len(bounds) == 2
    if not is_pair or not all(type(bound) in (int, float) and is_finite(bound) for bound in bounds):
        raise DescriptorError(f"range is a pair of finite numbers (low, high), got {bounds!r}")
    low, high = (float(bound) for bound in bounds)
    if not low < high:
        raise DescriptorError(f"range is empty: low {low:g} is not below high {high:g}")
    return low, high


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
