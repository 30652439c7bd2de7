"""ScaledQuantDescriptor: fxq's QuantDescriptor with the arguments, properties and text of pytorch-quantization."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import yaml
from numpy.typing import NDArray

from fxq.errors import DescriptorError, DescriptorTypeError
from fxq.quant.descriptor import E4M3, QuantDescriptor

# The class has a method called dict.
_Plain = dict[str, Any]
_FIELDS = {field.name: field.default for field in dataclasses.fields(QuantDescriptor)}


class ScaledQuantDescriptor(QuantDescriptor):
    """How a tensor is quantized: a :class:`fxq.QuantDescriptor`, so immutable, hashable and compared by value.

    Args:
        num_bits: 2 to 16, or (4, 3) for float8 e4m3.
        name: for people.
        **kwargs: fake_quant, axis, amax (a number, list or array), learn_amax, scale_amax, unsigned, narrow_range and
            calib_method, which fxq calls ``calibrator``; further fields of :class:`fxq.QuantDescriptor` too. Several
            values of amax without an axis vary along the one dimension of the array that is not 1, the last one of a
            flat list: the dimension that they broadcast along.

    Raises:
        DescriptorTypeError: an argument is of a wrong type or does not exist; it is a TypeError too.
        DescriptorError: a value is out of range.
    """

    def __init__(self, num_bits: int | tuple[int, int] = 8, name: str | None = None, **kwargs: Any) -> None:
        if not isinstance(num_bits, int) and num_bits not in (E4M3, list(E4M3)):
            raise DescriptorTypeError(f"num_bits must be a positive integer or the tuple {E4M3}, not {num_bits!r}")
        if name is not None and not isinstance(name, str):
            raise DescriptorTypeError(f"name must be a string or None, not {type(name).__name__}")
        if "calib_method" in kwargs:
            kwargs["calibrator"] = kwargs.pop("calib_method")
        unused = sorted(set(kwargs) - set(_FIELDS))
        if unused:
            raise DescriptorTypeError(f"Unused keys: {unused}; the keys are {', '.join(_FIELDS)} and calib_method")
        for flag in ("unsigned", "learn_amax", "fake_quant"):  # the original takes whatever is true or false
            if flag in kwargs:
                kwargs[flag] = bool(kwargs[flag])
        if kwargs.get("learn_amax") and kwargs.get("axis") is not None:
            raise DescriptorTypeError(
                f"axis is ignored and must be None when learn_amax is true, got {kwargs['axis']}: a learned clip has "
                "one range"
            )
        if kwargs.get("amax") is not None:
            kwargs["amax"], kwargs["axis"] = _flat_amax(kwargs["amax"], kwargs.get("axis"))
        super().__init__(num_bits=num_bits, name=name, **kwargs)

    @property
    def calib_method(self) -> str:
        """What observes the tensor; fxq calls it ``calibrator``."""
        return self.calibrator

    @property  # type: ignore[override]  # the original gives an array
    def amax(self) -> NDArray[np.float32] | None:
        """The fixed range as a float32 array, None without one."""
        kept = vars(self)["amax"]
        return None if kept is None else np.array(kept, dtype=np.float32)

    @amax.setter
    def amax(self, value: Any) -> None:
        vars(self)["amax"] = value

    def dict(self) -> _Plain:
        """Return num_bits, name and all that differs from the defaults: ``QuantDescriptor(**d.dict()) == d``."""
        fields: _Plain = {"num_bits": self.num_bits, "name": self.name}
        for field, value in self.to_dict().items():
            fields["calib_method" if field == "calibrator" else field] = value
        if isinstance(self.num_bits, tuple):
            fields["num_bits"] = self.num_bits
        return fields

    def to_dict(self) -> _Plain:
        """Return the fields that differ from the defaults, as plain data."""
        changed = {name: value for name, value in vars(self).items() if value != _FIELDS[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}

    def to_yaml(self) -> str:
        """Return the descriptor as YAML."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in self.dict().items()}
        return str(yaml.dump(fields, width=120))

    @classmethod
    def from_yaml(cls, yaml_str: str) -> Self:
        """Build a descriptor from what :meth:`to_yaml`, or the original's, wrote.

        Raises:
            DescriptorError: the text is not YAML, or no descriptor.
        """
        try:
            fields = yaml.safe_load(yaml_str)
        except yaml.YAMLError as error:
            raise DescriptorError(f"the descriptor is not valid YAML: {error}") from error
        if not isinstance(fields, Mapping):
            raise DescriptorError(f"the descriptor must be a mapping in YAML, got {fields!r}")
        values: _Plain = {name: tuple(v) if isinstance(v, list) and name != "amax" else v for name, v in fields.items()}
        return cls(**values)

    def __eq__(self, other: object) -> bool:
        # Not dataclass's: it compares the arrays of amax.
        return vars(self) == vars(other) if isinstance(other, ScaledQuantDescriptor) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).items()))


def as_door_descriptor(descriptor: QuantDescriptor) -> ScaledQuantDescriptor:
    """Return a descriptor of fxq as one of fxq.compat, unchanged if it is one."""
    if isinstance(descriptor, ScaledQuantDescriptor):
        return descriptor
    return ScaledQuantDescriptor(**vars(descriptor))


def _flat_amax(amax: Any, axis: Any) -> tuple[float | list[float], Any]:
    """Return amax as a number or flat list, in float32 as the original, and the axis that its values vary along."""
    if isinstance(amax, bool) or not isinstance(amax, float | int | list | tuple | np.ndarray | np.number):
        raise DescriptorTypeError(f"amax must be float, list or ndarray, not {type(amax).__name__}")
    array = np.array(amax, dtype=np.float32)
    if array.size == 1:
        return float(array.reshape(())), axis
    wide = [dim for dim, size in enumerate(array.shape) if size != 1]
    if len(wide) > 1:
        raise DescriptorError(
            f"amax has shape {array.shape}: a descriptor takes a range along one axis; assign this array to "
            "TensorQuantizer.amax instead"
        )
    if axis is None:
        axis = -1 if array.ndim == 1 else wide[0]
    return array.reshape(-1).tolist(), axis


QUANT_DESC_8BIT_PER_TENSOR = ScaledQuantDescriptor(num_bits=8)
QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR = ScaledQuantDescriptor(num_bits=8, unsigned=True)
QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL = ScaledQuantDescriptor(num_bits=8, axis=0)
QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL = ScaledQuantDescriptor(num_bits=8, axis=0)
QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL = ScaledQuantDescriptor(num_bits=8, axis=0)
QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW = ScaledQuantDescriptor(num_bits=8, axis=0)
QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL = ScaledQuantDescriptor(num_bits=8, axis=1)
QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL = ScaledQuantDescriptor(num_bits=8, axis=1)
QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL = ScaledQuantDescriptor(num_bits=8, axis=1)
