"""ScaledChannels: a factor for each channel, where no layer before it can absorb one."""

import torch
from torch import Tensor, nn


class ScaledChannels(nn.Module):
    """Multiply by a factor for each channel.

    Args:
        factor_c: (channels,), or with dimensions of size 1 behind it where positions follow: (channels, 1, 1).
    """

    factor: Tensor

    def __init__(self, factor_c: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor_c.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * factor``, in the dtype of ``x``."""
        return x * self.factor.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the number of channels and the extremes of the factors."""
        low, high = torch.aminmax(self.factor)
        return f"{len(self.factor)}, {float(low):.3g} to {float(high):.3g}"
