"""MaxCalibrator: ``amax = max(|x|)`` over everything seen, per tensor or per channel.

|x| is never materialised: amax is the larger of -min(x) and max(x). Source: pytorch-quantization 2.2.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from fxq.calib.minmax import MinMaxCalibrator
from fxq.calib.state import check_tensor, or_nothing
from fxq.quant.blocks import block_amax


class MaxCalibrator(MinMaxCalibrator):
    """Keeps the largest |x| over all dimensions not in ``axis``.

    Args:
        num_bits, axis, unsigned, symmetric: those of :class:`Calibrator`.
        track_amax: keep the amax of each batch in ``amaxs``; the one option whose state grows with the batches.
        block_size: as in QuantDescriptor, for weights of shape (out, in) with ``axis=0``: amax has shape (out, blocks).
    """

    _option_names = (*MinMaxCalibrator._option_names, "track_amax", "block_size")

    def __init__(
        self,
        num_bits: int | tuple[int, int] = 8,
        axis: int | tuple[int, ...] | None = None,
        unsigned: bool = False,
        track_amax: bool = False,
        symmetric: bool = True,
        block_size: int | None = None,
    ) -> None:
        super().__init__(num_bits, axis, unsigned, symmetric)
        self._descriptor = self._descriptor.replace(block_size=block_size)
        self.track_amax = track_amax
        self.amaxs: list[Tensor] = []

    @property
    def block_size(self) -> int | None:
        """How many inputs of a row share a range; None without blocks."""
        return self._descriptor.block_size

    def _measured(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.block_size is None:
            return super()._measured(x)
        amax = block_amax(x, self.block_size)
        return -amax, amax

    def _update(self, low: Tensor, high: Tensor) -> None:
        super()._update(low, high)
        if self.track_amax:
            self.amaxs.append(torch.maximum(low.abs(), high.abs()))

    def _merge_state(self, other: Self, low: Tensor, high: Tensor) -> None:
        super()._update(low, high)
        self.amaxs.extend(amax.to(low.device) for amax in other.amaxs)

    def _observed(self) -> dict[str, Tensor]:
        return {**super()._observed(), "amaxs": torch.stack(self.amaxs) if self.amaxs else or_nothing(None)}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        super()._restore(state)
        amaxs, batches = state["amaxs"], len(state["amaxs"])
        check_tensor("amaxs", amaxs, torch.float32, (batches, *state["low"].shape) if batches else (0,))
        self.amaxs = list(amaxs)

    def reset(self) -> None:
        """Forget every batch."""
        super().reset()
        self.amaxs.clear()
