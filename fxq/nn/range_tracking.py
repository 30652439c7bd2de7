"""TrackedRange: a range that follows what is quantized while it is trained, until it is frozen.

Two rules, by the calibrator of the descriptor. "max" and "minmax": the range is that of the last input, which a weight
is to be fully inside of. "moving_average": ``range += 0.01 * (range of the input - range)`` in each call in training
mode, none in evaluation: for activations. Sources: Jacob et al. 2018, arXiv:1712.05877, section 3.1; Krishnamoorthi
2018, arXiv:1806.08342, section 3.2.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fxq.nn.range_holder import RangeHolder
from fxq.nn.ranges import align, measure_range
from fxq.nn.recomputing import is_recomputing
from fxq.quant.blocks import block_amax

_LAST_INPUT, _AVERAGE = ("max", "minmax"), "moving_average"
_AVERAGING = 0.01  # as of MovingAverageMinMaxCalibrator


class TrackedRange(RangeHolder):
    """A range that may follow its inputs, and be frozen."""

    _if_track, _is_frozen = False, False

    def enable_tracking(self) -> None:
        """Let the range follow what is quantized; no effect on a fixed, dynamic or learned one.

        Nor on one that is fitted by a method ("mse", ...). A range that is assigned later ends it.
        """
        descriptor = self._descriptor
        is_free = not (descriptor.is_dynamic or descriptor.is_fixed or descriptor.learn_amax)
        self._if_track = is_free and descriptor.calibrator in (*_LAST_INPUT, _AVERAGE)

    def disable_tracking(self) -> None:
        """Keep the range as it is."""
        self._if_track = False

    def freeze(self, frozen: bool = True) -> None:
        """Keep the range as it is until ``freeze(False)``, whether it tracks or is learned."""
        self._is_frozen = frozen
        for bound in self.bounds:
            if isinstance(bound, nn.Parameter):
                bound.requires_grad_(not frozen)

    @property
    def is_tracking(self) -> bool:
        """Does the range follow what is quantized?"""
        return self._if_track and not self._is_frozen

    @property
    def is_frozen(self) -> bool:
        """Does the range stay as it is, whatever is trained?"""
        return self._is_frozen

    @property
    def covers_input(self) -> bool:
        """Does the range, which tracks, hold all of the input that it was just given?"""
        is_largest = self._descriptor.calibrator == "max" and not self.unsigned
        return self.is_tracking and is_largest and (self._descriptor.scale_amax or 1.0) >= 1.0

    def _tracked(self, inputs: Tensor) -> tuple[Tensor, ...] | None:
        """Store the range that follows ``inputs``; return it as it broadcasts, None where it stays as it is."""
        is_average = self._descriptor.calibrator == _AVERAGE
        if is_average and (not self.training or is_recomputing()):
            return None
        found = self._measured(inputs)
        if is_average and self.has_range:
            found = tuple(
                kept.lerp(bound, _AVERAGING) for kept, bound in zip(self._aligned(inputs), found, strict=True)
            )
        with torch.no_grad():
            for name, bound in zip(self._range_names, found, strict=True):
                kept = getattr(self, name)
                if kept is None or kept.numel() != bound.numel():
                    setattr(self, name, bound.clone())
                else:
                    kept.copy_(bound.reshape(kept.shape))
        return tuple(align(bound, inputs, self._descriptor, self.owner) for bound in found)

    def _measured(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return (amax,), or (low, high), of ``inputs``, in the shape that is stored."""
        descriptor = self._descriptor
        factor = descriptor.scale_amax or 1.0
        if descriptor.block_size is not None:
            return (block_amax(inputs, descriptor.block_size) * factor,)
        low, high = measure_range(inputs, descriptor.axes, self.owner)
        if not descriptor.symmetric:
            return low * factor, high * factor
        return ((high.clamp(min=0) if self.unsigned else torch.maximum(low.neg(), high)) * factor,)

    def _assigned(self, *values: Any) -> None:
        super()._assigned(*values)
        self.disable_tracking()
