"""RangeHolder: the stored range of a quantizer, its state dict, and the scale and zero point that follow from it.

The state dict has ``_amax`` (the key of pytorch-quantization) for a symmetric descriptor, ``_low`` and ``_high`` for
an affine one, and none of them while no range is stored.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from fxq.errors import CalibrationError, DescriptorError, RangeError, TargetError
from fxq.nn.qparams import QParams, storage_dtype
from fxq.nn.range_state import fitted_ranges
from fxq.nn.ranges import align, as_bound, as_float32
from fxq.quant.affine import (
    SMALLEST_AMAX,
    affine_scale_and_zero_point,
    is_zero_range,
    symmetric_inverse_scale,
    symmetric_scale,
)
from fxq.quant.descriptor import QuantDescriptor


class RangeHolder(nn.Module):
    """The range of one tensor: buffers, or parameters with ``descriptor.learn_amax``.

    Always float32, whatever the model is cast to. Checked when it is stored, never in forward.

    Attributes:
        began_at_zero: the range that was stored last was 0: what it quantizes was 0 throughout.
    """

    began_at_zero = False

    def __init__(self, descriptor: QuantDescriptor) -> None:
        super().__init__()
        if not isinstance(descriptor, QuantDescriptor):
            raise DescriptorError(f"a quantizer takes a QuantDescriptor, got {descriptor!r}")
        self._descriptor = descriptor
        self._range_names = ("_amax",) if descriptor.symmetric else ("_low", "_high")
        for name in self._range_names:
            if descriptor.learn_amax:
                self.register_parameter(name, None)
            else:
                self.register_buffer(name, None)
        if descriptor.amax is not None:
            self.amax = as_float32(descriptor.amax) * (descriptor.scale_amax or 1.0)
        if descriptor.range is not None:
            low, high = descriptor.range
            self.range = low * (descriptor.scale_amax or 1.0), high * (descriptor.scale_amax or 1.0)

    @property
    def descriptor(self) -> QuantDescriptor:
        """How the tensor is quantized."""
        return self._descriptor

    @property
    def num_bits(self) -> int | tuple[int, int]:
        """Bits of a code; (4, 3) for float8 e4m3."""
        return self._descriptor.num_bits

    @property
    def axis(self) -> int | tuple[int, ...] | None:
        """The dimensions that keep their own range."""
        return self._descriptor.axis

    @property
    def unsigned(self) -> bool:
        """Do the codes start at 0?"""
        return self._descriptor.unsigned

    @property
    def narrow_range(self) -> bool:
        """Is the lowest signed code left out?"""
        return bool(self._descriptor.narrow_range)

    @property
    def fake_quant(self) -> bool:
        """Are the outputs dequantized again?"""
        return self._descriptor.fake_quant

    @property
    def learn_amax(self) -> bool:
        """Is the range a parameter?"""
        return bool(self._descriptor.learn_amax)

    @property
    def is_dynamic(self) -> bool:
        """Is each input quantized with its own range, and none ever stored?"""
        return self._descriptor.is_dynamic

    @property
    def maxbound(self) -> int:
        """The highest code; the largest number of float8."""
        return self._descriptor.bounds[1]

    @property
    def has_range(self) -> bool:
        """Is a range stored?"""
        first, last = self._range_names[0], self._range_names[-1]
        held = self._buffers if first in self._buffers else self._parameters  # nn.Module's getattr takes longer to ask
        return held.get(first) is not None and held.get(last) is not None

    @property
    def amax(self) -> Tensor | None:
        """The largest representable |x|, None without a stored range. Assign a number, a list, an ndarray or a tensor.

        Raises:
            RangeError: on assignment of a negative value, of a shape that does not fit, or where no amax is stored.
        """
        if not self.has_range:
            return None
        bounds = self._stored()
        return bounds[0] if len(bounds) == 1 else torch.maximum(bounds[0].abs(), bounds[1].abs())

    @amax.setter
    def amax(self, value: Any) -> None:
        if not self._descriptor.symmetric:
            raise RangeError(f"{self.owner} is affine and has no amax: assign range = (low, high)")
        if value is None:
            raise RangeError(f"{self.owner}: amax is a number or a tensor; call reset_amax() to forget it")
        self._assigned(value)

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest representable value. Assigning to a symmetric quantizer takes the larger magnitude.

        Raises:
            CalibrationError: there is no stored range.
            RangeError: on assignment of a range that is empty, not finite or wrongly shaped.
        """
        bounds = self._required()
        if len(bounds) == 2:
            return bounds[0], bounds[1]
        return (torch.zeros_like(bounds[0]) if self.unsigned else bounds[0].neg()), bounds[0]

    @range.setter
    def range(self, value: tuple[Any, Any]) -> None:
        low, high = (as_float32(bound) for bound in value)
        if bool((low > high).any()):
            raise RangeError(f"the range of {self.owner} is empty: low > high")
        self._assigned(*((torch.maximum(low.abs(), high.abs()),) if self._descriptor.symmetric else (low, high)))

    @property
    def bounds(self) -> tuple[Tensor, ...]:
        """The stored tensors themselves: (amax,), (low, high) of an affine range, () without a range.

        A learned one has a dimension at least, for FSDP shards no scalars.
        """
        return tuple(getattr(self, name) for name in self._range_names) if self.has_range else ()

    @property
    def scale(self) -> Tensor:
        """The step between two codes, as ONNX and torch count it. CalibrationError without a range."""
        return self._scale_and_zero_point()[0]

    @property
    def inverse_scale(self) -> Tensor:
        """What inputs are multiplied with: hi / amax, or 1 / scale. CalibrationError without a range."""
        if self._descriptor.symmetric:
            return symmetric_inverse_scale(self._required()[0].detach(), self.maxbound)
        return self.scale.reciprocal()

    @property
    def zero_point(self) -> Tensor:
        """The code of 0, int32; 0 for a symmetric quantizer. CalibrationError without a range."""
        return self._scale_and_zero_point()[1].to(torch.int32)

    @property
    def is_zero(self) -> Tensor:
        """Which ranges hold nothing but 0, so that their step counts as 1: bool, in the shape of the range.

        Raises:
            CalibrationError: there is no stored range.
        """
        bounds = [bound.detach() for bound in self._required()]
        if len(bounds) == 1:
            return bounds[0] <= SMALLEST_AMAX
        return is_zero_range(bounds[0], bounds[1])

    @property
    def owner(self) -> str:
        """The quantizer as messages name it."""
        return f"quantizer {self._descriptor.name!r}" if self._descriptor.name else f"a {self._descriptor} quantizer"

    def reset_amax(self) -> None:
        """Forget the stored range; the next input is quantized with its own."""
        for name in self._range_names:
            setattr(self, name, None)

    def qparams(self) -> QParams:
        """Return scale, zero point, codes, axis, dtype and block size, as QuantizeLinear takes them.

        Raises:
            CalibrationError: there is no stored range.
            TargetError: the range varies along more than one axis.
        """
        lo, hi = self._descriptor.bounds
        scale, zero_point = self._scale_and_zero_point()
        axis = self._channel_axis(scale)
        shape: tuple[int, ...] = () if axis is None else (-1,)
        if self._descriptor.block_size is not None:
            axis, shape = 1, tuple(scale.shape)
        return QParams(
            scale=scale.reshape(shape),
            zero_point=zero_point.reshape(shape).to(torch.int32),
            lo=lo,
            hi=hi,
            axis=axis,
            dtype=storage_dtype(self.num_bits, self.unsigned),
            block_size=self._descriptor.block_size,
        )

    def _stored(self) -> tuple[Tensor, ...]:
        return self.bounds if self._descriptor.axes else tuple(bound.reshape(()) for bound in self.bounds)

    def _required(self) -> tuple[Tensor, ...]:
        if self.is_dynamic:
            raise CalibrationError(f"{self.owner} stores no range: each input is quantized with its own")
        if not self.has_range:
            raise CalibrationError(f"{self.owner} has no range yet: calibrate it, or assign its amax or range")
        return self._stored()

    def _aligned(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the stored bounds, shaped for ``inputs``; they move to its device once."""
        bounds = self._stored()
        if bounds and bounds[0].device != inputs.device:
            self._apply(lambda tensor: tensor.to(inputs.device))
            bounds = self._stored()
        return tuple(align(bound, inputs, self._descriptor, self.owner) for bound in bounds)

    def _assigned(self, *values: Any) -> None:
        """Keep what the user, or a method of calibration, says."""
        self._store(*values)

    def _store(self, *values: Any) -> None:
        """Check and keep (amax,) or (low, high); a parameter keeps its identity, so that an optimizer keeps it."""
        if self.is_dynamic:
            raise RangeError(f'{self.owner} stores no range: choose a calibrator other than "dynamic" to give it one')
        bounds = [as_bound(value, self._descriptor, self.owner) for value in values]
        if self._descriptor.symmetric and bool((bounds[0] < 0).any()):
            raise RangeError(f"Negative values in amax of {self.owner}")
        self.began_at_zero = not any(bound.is_meta or bool(bound.any()) for bound in bounds)
        for name, bound in zip(self._range_names, bounds, strict=True):
            kept = getattr(self, name, None)
            if isinstance(kept, nn.Parameter) and kept.shape in (bound.shape, (1, *bound.shape)):
                with torch.no_grad():
                    kept.copy_(bound)
            else:
                setattr(self, name, self._as_stored(bound))

    def _as_stored(self, bound: Tensor) -> Tensor:
        """Return a parameter of a learned range."""
        return nn.Parameter(bound if bound.dim() else bound.reshape(1)) if self.learn_amax else bound

    def _scale_and_zero_point(self) -> tuple[Tensor, Tensor]:
        bounds = [bound.detach() for bound in self._required()]
        if len(bounds) == 2:
            return affine_scale_and_zero_point(bounds[0], bounds[1], *self._descriptor.bounds)
        scale = symmetric_scale(bounds[0], self.maxbound)
        return scale, torch.zeros_like(scale, dtype=torch.int32)

    def _channel_axis(self, bound: Tensor) -> int | None:
        if bound.numel() == 1:
            return None
        axes = self._descriptor.axes
        if len(axes) != 1:
            raise TargetError(
                f"{self.owner} keeps axes {axes}; QuantizeLinear has one axis at most: use a descriptor with one axis"
            )
        # A flat range does not know the rank of its tensor; QuantizeLinear takes negative axes.
        return axes[0] if bound.dim() == 1 else axes[0] % bound.dim()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_float32(tensor: Tensor) -> Tensor:
            # half() must not cost the range its precision: a scale of 10 bits moves codes.
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_float32, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(  # noqa: PLR0913 - the signature of torch.nn.Module
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if any(message.startswith(prefix) for message in error_msgs):
            return  # the module around, which knows the weight, has refused the range
        kept = {name: getattr(self, name, None) for name in self._range_names}
        found, errors = fitted_ranges(state_dict, prefix, kept, self._descriptor)
        if errors:
            error_msgs.extend(errors)
            return
        for name, loaded in found.items():
            # A quantizer without a range takes the shape (and, having none, the device) of the loaded one.
            if kept[name] is None:
                setattr(self, name, self._as_stored(loaded.clone()))
            state_dict[prefix + name] = loaded.reshape(getattr(self, name).shape)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
