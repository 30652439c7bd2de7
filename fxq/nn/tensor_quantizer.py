"""TensorQuantizer: the module that observes a tensor, then quantizes it.

The numbers are those of :mod:`fxq.quant.affine` and, for a learned range, :mod:`fxq.quant.learned`. The range is
stored (calibrated, assigned or learned) or, while there is none, dynamic: each input is quantized with its own. With
``calibrator="dynamic"`` it is never stored. Where it tracks, it is stored anew in each call.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from fxq.calib import Calibrator
from fxq.errors import CalibrationError, InputError
from fxq.nn.make_calibrator import default_method, make_calibrator
from fxq.nn.onnx_form import is_exported, onnx_form
from fxq.nn.quantizer_text import describe_format, describe_range
from fxq.nn.range_tracking import TrackedRange
from fxq.nn.ranges import align, measure_amax, measure_range
from fxq.quant.affine import (
    affine_quant,
    affine_scale_and_zero_point,
    fake_affine_quant,
    fake_symmetric_quant,
    symmetric_quant,
)
from fxq.quant.descriptor import QuantDescriptor
from fxq.quant.float8 import fake_scaled_e4m3
from fxq.quant.learned import learned_clip, learned_fake_quant


class TensorQuantizer(TrackedRange):
    """Observe, clip and quantize a tensor, each of which can be switched.

    The range stays float32 whatever the model is cast to, and follows the input to its device. A stored range is
    checked when it is stored and never again: an unsigned quantizer codes a negative input as 0 then, and raises
    UnsignedInputError only while its range is dynamic.

    Args:
        descriptor: how the tensor is quantized. ``fake_quant=False`` returns the integer codes as floats. With
            ``learn_amax`` the range becomes a parameter as soon as it is known: make the optimizer after that.
        disabled: forward is the identity.
        if_quant: quantize.
        if_clip: clip to the range before quantizing; it is then the clip that a learned range learns by.
        if_calib: show the inputs to the calibrator.
    """

    def __init__(
        self,
        descriptor: QuantDescriptor = QuantDescriptor(),  # noqa: B008 - frozen
        disabled: bool = False,
        if_quant: bool = True,
        if_clip: bool = False,
        if_calib: bool = False,
    ) -> None:
        super().__init__(descriptor)
        self._disabled, self._if_quant, self._if_clip, self._if_calib = disabled, if_quant, if_clip, if_calib
        self._calibrator = None if _needs_no_calibrator(descriptor) else make_calibrator(descriptor)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``inputs``, observed, clipped and quantized as switched; same shape and dtype.

        Raises:
            InputError: the input is not floating point.
            RangeError: the stored range does not fit the input's shape.
            UnsignedInputError: a negative input while the range is unsigned and dynamic.
            CalibrationError: torch.onnx.export runs it, and it has no range.
        """
        if self._disabled:
            return inputs
        if not inputs.is_floating_point():
            raise InputError(f"{self.owner} got {inputs.dtype}; quantize floating-point tensors, or disable() it")
        exported = is_exported()
        if self._if_calib and self._calibrator is not None and not exported:
            self._observe(self._calibrator, inputs.detach())
        if not (self._if_clip or self._if_quant):
            return inputs
        if exported:
            self._check_exportable()
        bounds = self._tracked(inputs.detach()) if self.is_tracking and not exported else None
        bounds = self._bounds_for(inputs) if bounds is None else bounds
        outputs = self._clip(inputs, bounds) if self._if_clip else inputs
        if exported and self._if_quant and not self.is_dynamic:
            return onnx_form(outputs, self.qparams(), self.fake_quant)
        return self._quantize(outputs, bounds) if self._if_quant else outputs

    def enable(self) -> None:
        """Undo :meth:`disable`."""
        self._disabled = False

    def disable(self) -> None:
        """Make forward the identity: nothing is observed, clipped or quantized."""
        self._disabled = True

    def enable_quant(self) -> None:
        """Quantize in forward."""
        self._if_quant = True

    def disable_quant(self) -> None:
        """Stop quantizing in forward; observing and clipping are not affected."""
        self._if_quant = False

    def enable_clip(self) -> None:
        """Clip to the range in forward."""
        self._if_clip = True

    def disable_clip(self) -> None:
        """Stop clipping in forward."""
        self._if_clip = False

    def enable_calib(self) -> None:
        """Show the inputs to the calibrator; no effect on a fixed or dynamic range, which has none."""
        self._if_calib = True

    def disable_calib(self) -> None:
        """Stop observing; what the calibrator saw is kept."""
        self._if_calib = False

    def load_calib_amax(self, method: str | None = None, strict: bool = True, **options: Any) -> None:
        """Store the range that the calibrator fits, times ``scale_amax``; a fixed or dynamic range stays as it is.

        Args:
            method: by default the one that the descriptor names, "max" for "histogram".
            strict: with False, a calibrator that saw nothing leaves the range as it is, with a warning.
            **options: of the method, such as ``percentile``.

        Raises:
            CalibrationError: the calibrator saw nothing, or cannot give this range.
        """
        if self._calibrator is None:
            return
        found = self.compute_calib_range(method, **options)
        if found is None:
            message = f"{self.owner} saw no data: feed batches between enable_calib() and load_calib_amax()"
            if strict:
                raise CalibrationError(message)
            warnings.warn(message, stacklevel=2)
            return
        self._store(*found)

    load_calib_range = load_calib_amax

    def compute_calib_range(self, method: str | None = None, **options: Any) -> tuple[Tensor, ...] | None:
        """Return (amax,), or (low, high) if affine, as :meth:`load_calib_amax` would store it; None without data.

        Raises:
            CalibrationError: the range is fixed or dynamic, or the calibrator cannot give this range.
        """
        if self._calibrator is None:
            raise CalibrationError(
                f"{self.owner} has a {'dynamic' if self.is_dynamic else 'fixed'} range, no calibrator"
            )
        try:
            found = self._calibrator.fit(method or default_method(self._descriptor), **options)
        except CalibrationError as error:
            raise CalibrationError(f"{self.owner}: {error}") from error
        if found is None:
            return None
        factor = self._descriptor.scale_amax or 1.0
        return tuple(bound * factor for bound in (found[1:] if self._descriptor.symmetric else found))

    def use_calibrator(self, name: str) -> None:
        """Observe with another kind of calibrator, any that a descriptor may name; what was observed is forgotten."""
        self._descriptor = self._descriptor.replace(calibrator=name)
        self._calibrator = None if _needs_no_calibrator(self._descriptor) else make_calibrator(self._descriptor)
        if self.is_dynamic:
            self.reset_amax()

    @property
    def calibrator(self) -> Calibrator | None:
        """What observes the tensor; None when the range is fixed or dynamic."""
        return self._calibrator

    @property
    def is_enabled(self) -> bool:
        """Is forward more than the identity?"""
        return not self._disabled

    @property
    def is_quant_enabled(self) -> bool:
        """Does forward quantize, once enabled?"""
        return self._if_quant

    @property
    def is_clip_enabled(self) -> bool:
        """Does forward clip, once enabled?"""
        return self._if_clip

    @property
    def is_calib_enabled(self) -> bool:
        """Does forward observe, once enabled?"""
        return self._if_calib

    def extra_repr(self) -> str:
        """Return such as ``8bit fake per-tensor amax=2.6400 calibrator=MaxCalibrator quant``."""
        words = [describe_format(self._descriptor), describe_range(self._stored())]
        if self.learn_amax:
            words.append(
                "learned" if self._descriptor.learn_amax == "lsq" else f"learned by {self._descriptor.learn_amax}"
            )
        if self._descriptor.scale_amax is not None:
            words.append(f"scale_amax={self._descriptor.scale_amax:g}")
        if self._calibrator is not None:
            words.append(f"calibrator={type(self._calibrator).__name__}")
        switches = {"clip": self._if_clip, "quant": self._if_quant, "calib": self._if_calib}
        switches |= {"track": self.is_tracking, "frozen": self.is_frozen}
        on = [name for name, is_on in switches.items() if is_on]
        return " ".join([*words, *(["disabled"] if self._disabled else on)])

    def _observe(self, calibrator: Calibrator, inputs: Tensor) -> None:
        try:
            calibrator.observe(inputs)
        except CalibrationError as error:
            raise CalibrationError(f"{self.owner}: {error}") from error

    def _check_exportable(self) -> None:
        if not (self.has_range or self.is_dynamic):
            raise CalibrationError(
                f"{self.owner} has no range, which would be measured on the example inputs: calibrate and load amax "
                "before exporting to ONNX, or disable() it"
            )

    def _bounds_for(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return (amax,) or (low, high), stored or measured on ``inputs``, in a shape that broadcasts against it."""
        if self.has_range:
            return self._aligned(inputs)
        descriptor = self._descriptor
        if descriptor.symmetric:
            amax = measure_amax(inputs, descriptor, self.owner)
            measured: tuple[Tensor, ...] = (align(amax, inputs, descriptor, self.owner),)
        else:
            measured = measure_range(inputs, descriptor.axes, self.owner)
        factor = descriptor.scale_amax
        return measured if factor is None else tuple(bound * factor for bound in measured)

    def _clip(self, inputs: Tensor, bounds: tuple[Tensor, ...]) -> Tensor:
        if len(bounds) == 2:
            return learned_clip(inputs, *bounds)
        low = torch.zeros_like(bounds[0]) if self.unsigned else bounds[0].neg()
        return learned_clip(inputs, low, bounds[0])

    def _quantize(self, inputs: Tensor, bounds: tuple[Tensor, ...]) -> Tensor:
        if len(bounds) == 2:
            return self._quantize_affine(inputs, *bounds)
        amax = bounds[0]
        if self._descriptor.is_float8:
            return fake_scaled_e4m3(inputs, amax)
        if not self.fake_quant:
            return symmetric_quant(inputs, amax.detach(), self._descriptor.bounds)[0]
        rule = self._descriptor.learn_amax
        if rule and not self._if_clip:
            return learned_fake_quant(inputs, amax, self._descriptor.bounds, str(rule))
        return fake_symmetric_quant(inputs, amax.detach(), self._descriptor.bounds, self.covers_input)

    def _quantize_affine(self, inputs: Tensor, low: Tensor, high: Tensor) -> Tensor:
        lo, hi = self._descriptor.bounds
        step, zero_point = affine_scale_and_zero_point(low, high, lo, hi)
        if self.fake_quant:
            return fake_affine_quant(inputs, step, zero_point, lo, hi)
        return affine_quant(inputs, step, zero_point, lo, hi).to(inputs.dtype)


def _needs_no_calibrator(descriptor: QuantDescriptor) -> bool:
    return descriptor.is_dynamic or (descriptor.is_fixed and not descriptor.learn_amax)
