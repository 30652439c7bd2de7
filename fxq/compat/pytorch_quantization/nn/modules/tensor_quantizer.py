"""TensorQuantizer: fxq's, with the switches, setters, learned clip and text of pytorch-quantization.

What differs from :class:`fxq.TensorQuantizer`: ``learn_amax`` learns a clip (PACT) in the submodule ``clip``;
``scale_amax`` scales the range where it is used, so that the stored ``_amax`` stays as it was calibrated; integer
codes (``fake_quant=False``) have the narrow range; ``pre_quant_scale`` multiplies the input first (SmoothQuant).
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxq.calib import Calibrator
from fxq.compat.pytorch_quantization.calib import HistogramCalibrator, MaxCalibrator
from fxq.compat.pytorch_quantization.descriptor import ScaledQuantDescriptor, as_door_descriptor
from fxq.compat.pytorch_quantization.export_patch import ExportSwitch
from fxq.compat.pytorch_quantization.nn.modules.clip import Clip
from fxq.compat.pytorch_quantization.nn.modules.settable_quantizer import SettableQuantizer
from fxq.errors import CalibrationError, DescriptorError, RangeError, RangeShapeError
from fxq.nn.make_calibrator import make_calibrator
from fxq.nn.quantizer_text import describe_range
from fxq.quant.affine import symmetric_quant
from fxq.quant.descriptor import QuantDescriptor, integer_bounds

__all__ = ["TensorQuantizer"]


class TensorQuantizer(SettableQuantizer, metaclass=ExportSwitch):
    """Observe, clip and quantize a tensor, each of which can be switched.

    Args:
        quant_desc: how the tensor is quantized, of fxq.compat or of fxq.
        disabled: forward is the identity, but for ``pre_quant_scale``.
        if_quant: quantize.
        if_clip: clip before quantizing; needs ``learn_amax``, which turns it on by itself.
        if_calib: show the inputs to the calibrator.

    ``TensorQuantizer.use_fb_fake_quant = True`` makes ``torch.onnx.export`` take models of fxq.compat as the original
    did; see :mod:`fxq.compat.pytorch_quantization.export_patch`.

    Raises:
        DescriptorError: ``if_clip`` without ``learn_amax``, or a descriptor that has no calibrator.
    """

    _enable_onnx_export = False

    def __init__(
        self,
        quant_desc: QuantDescriptor = ScaledQuantDescriptor(),  # noqa: B008 - frozen
        disabled: bool = False,
        if_quant: bool = True,
        if_clip: bool = False,
        if_calib: bool = False,
    ) -> None:
        if not isinstance(quant_desc, QuantDescriptor):
            raise DescriptorError(f"a quantizer takes a QuantDescriptor, got {quant_desc!r}")
        descriptor = as_door_descriptor(quant_desc)
        # fxq's own meaning of both differs.
        super().__init__(descriptor.replace(learn_amax=False, scale_amax=None), disabled, if_quant, False, if_calib)
        self._learn_amax, self._scale_amax = bool(descriptor.learn_amax), descriptor.scale_amax
        self._scale: Tensor | None = None
        self._is_fixed = descriptor.amax is not None
        self._calibrator = _make_calibrator(descriptor)
        if descriptor.learn_amax:
            start = np.float32(1) if descriptor.amax is None else descriptor.amax
            self.clip = Clip(-start, start, learn_min=True, learn_max=True)
            self.enable_clip()
        if if_clip:
            self.enable_clip()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``inputs``, scaled, observed, clipped and quantized as switched; same shape and dtype."""
        if self.pre_quant_scale is not None:
            inputs = inputs * self.pre_quant_scale.to(inputs.dtype)
        if self._learn_amax and torch.onnx.is_in_onnx_export() and self._if_quant and not self._disabled:
            inputs = self.clip(inputs)  # as _quantize does it; fxq writes the quantization alone
        return super().forward(inputs)

    def enable_clip(self) -> None:
        """Clip to the learned range in forward, and let it learn."""
        self._switch_clip(True)

    def disable_clip(self) -> None:
        """Stop the learning; quantization still clips, as its range is that of the clip."""
        self._switch_clip(False)

    def enable_calib(self) -> None:
        """Show the inputs to the calibrator."""
        if self._calibrator is None:
            raise DescriptorError(
                f"{self.owner} has no calibrator: Calibrator was not created, cannot enable calibration."
            )
        super().enable_calib()

    def load_calib_amax(self, method: str | None = None, strict: bool = True, **options: Any) -> None:
        """Store the range that the calibrator gives; arguments as in fxq. A range given in the descriptor is replaced.

        Raises:
            CalibrationError: there is no calibrator, it saw nothing, or it cannot give this range.
        """
        if self._calibrator is None:
            raise CalibrationError(f"Calibrator not created. {self.owner} measures each input")
        if strict and self.compute_calib_range(method, **options) is None:
            raise CalibrationError(
                f"Calibrator returned None. This usually happens when calibrator hasn't seen any tensor: feed data to "
                f"{self.owner} between enable_calib() and load_calib_amax(). Passing 'strict=False' to "
                "`load_calib_amax()` will ignore the error."
            )
        super().load_calib_amax(method, strict, **options)

    def init_learn_amax(self) -> None:
        """Start the learned clip at the stored range, the largest one of several.

        Raises:
            CalibrationError: nothing is learned, or there is no stored range.
        """
        if not self._learn_amax:
            raise CalibrationError("Called init_learn_amax with learn_amax=False.")
        if self.amax is None:
            raise CalibrationError(f"{self.owner} has no range to start from: load_calib_amax() first")
        with torch.no_grad():
            self.clip.clip_value_min.copy_(-self.amax.max())
            self.clip.clip_value_max.copy_(self.amax.max())

    def use_calibrator(self, name: str) -> None:
        """Observe with another kind of calibrator, any that a descriptor may name; what was observed is forgotten."""
        super().use_calibrator(name)
        self._calibrator = _make_calibrator(self._descriptor)

    @property
    def calibrator(self) -> Calibrator | None:
        """What fxq.calibrate may fit: the calibrator, None when the descriptor gave the range."""
        return None if self._is_fixed else self._calibrator

    @property
    def has_range(self) -> bool:
        """Is a range stored or learned?"""
        return self._learn_amax or super().has_range

    @property
    def amax(self) -> Tensor | None:
        """The stored range, as calibrated or assigned; None without one. Assign a number, a list, an array or a tensor.

        Raises:
            RangeShapeError: on assignment of another shape than the stored one.
            RangeError: on assignment of None, of a negative value, or of a shape that fits no tensor.
        """
        return self._buffers["_amax"]

    @amax.setter
    def amax(self, value: Any) -> None:
        if value is None:
            raise RangeError(f"{self.owner}: setting amax to None is meaningless; call reset_amax() to forget it")
        stored = self._buffers["_amax"]
        if stored is not None and tuple(np.shape(value)) != tuple(stored.shape):
            raise RangeShapeError(
                f"Changing shape when setting amax is not allowed: {self.owner} holds {tuple(stored.shape)}, got "
                f"{tuple(np.shape(value))}; call reset_amax() first"
            )
        self._store(value)

    @property
    def scale(self) -> Tensor | None:  # type: ignore[override]  # None before the first integer codes
        """What inputs are multiplied with; of integer codes the one used last, None before the first."""
        return self.inverse_scale if self.fake_quant else self._scale

    def extra_repr(self) -> str:
        """Return such as ``8bit fake per-tensor amax=2.6400 calibrator=MaxCalibrator(track_amax=False) quant``."""
        if self._disabled:
            return "disabled"
        amax = self.amax
        words = {
            "unsigned": self.unsigned,
            f"{self.num_bits}bit": True,
            "narrow": self.narrow_range,
            "fake": self.fake_quant,
            "per-tensor" if self.axis is None else f"axis={self.axis}": True,
            "amax=dynamic" if amax is None else describe_range((amax,)): True,
            f"*{self._scale_amax}": self._scale_amax is not None,
            "pre_quant_scale": self.pre_quant_scale is not None,
            "learned": self._learn_amax,
            f"calibrator={self._calibrator}": self._calibrator is not None,
            "quant": self._if_quant,
            "clip": self._if_clip,
            "calib": self._if_calib,
        }
        return " ".join(word for word, is_shown in words.items() if is_shown)

    def _switch_clip(self, is_on: bool) -> None:
        if not self._learn_amax:
            raise DescriptorError(f"learn_amax is False. Cannot switch the clip of {self.owner}.")
        self._if_clip = is_on
        self.clip.requires_grad_(is_on)

    def _get_amax(self, inputs: Tensor) -> Tensor:
        return self._bounds_for(inputs)[0].detach()

    def _stored(self) -> tuple[Tensor, ...]:
        if self._learn_amax:
            return (torch.maximum(-self.clip.clip_value_min, self.clip.clip_value_max).detach(),)
        factor = self._scale_amax
        return tuple(bound if factor is None else bound * factor for bound in super()._stored())

    def _bounds_for(self, inputs: Tensor) -> tuple[Tensor, ...]:
        bounds = super()._bounds_for(inputs)
        if self.has_range or self._scale_amax is None:
            return bounds
        return tuple(bound * self._scale_amax for bound in bounds)

    def _store(self, *values: Any) -> None:
        if self._descriptor.axis is None and len(values) == 1 and math.prod(np.shape(values[0])) > 1:
            # The original lets any range broadcast; here its axis is known, and a flat one lies along the last.
            wide = [dim for dim, size in enumerate(np.shape(values[0])) if size != 1]
            axis = -1 if np.ndim(values[0]) == 1 else tuple(wide)
            self._descriptor = self._descriptor.replace(axis=axis)
        super()._store(*values)

    def _clip(self, inputs: Tensor, bounds: tuple[Tensor, ...]) -> Tensor:
        return self.clip(inputs)  # type: ignore[no-any-return]

    def _quantize(self, inputs: Tensor, bounds: tuple[Tensor, ...]) -> Tensor:
        if self._learn_amax and not self._if_clip:
            inputs = self.clip(inputs)
        if self.fake_quant:
            return super()._quantize(inputs, bounds)
        codes = integer_bounds(self.num_bits, self.unsigned, narrow_range=True)  # type: ignore[arg-type]
        outputs, self._scale = symmetric_quant(inputs, bounds[0].detach(), codes)
        return outputs


def _make_calibrator(descriptor: QuantDescriptor) -> Calibrator | None:
    if descriptor.is_dynamic:
        return None
    if descriptor.symmetric and descriptor.block_size is None:
        if descriptor.calibrator == "max":
            return MaxCalibrator(descriptor.num_bits, descriptor.axis, descriptor.unsigned)
        if descriptor.calibrator not in ("minmax", "moving_average"):
            return HistogramCalibrator(descriptor.num_bits, descriptor.axis, descriptor.unsigned)
    return make_calibrator(descriptor)
