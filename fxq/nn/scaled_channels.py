"""ScaledChannels: a factor and an offset for each channel, where no layer before it can absorb them."""

import torch
from torch import Tensor, nn


class ScaledChannels(nn.Module):
    """Multiply by a factor for each channel, and add an offset where there is one.

    Args:
        factor_c: (channels,), or with dimensions of size 1 behind it where positions follow: (channels, 1, 1).
        offset_c: in the same shape.
    """

    factor: Tensor
    offset: Tensor | None

    def __init__(self, factor_c: Tensor, offset_c: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("factor", factor_c.detach().clone())
        self.register_buffer("offset", None if offset_c is None else offset_c.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * factor + offset``, in the dtype of ``x``."""
        scaled = x * self.factor.to(x.dtype)
        return scaled if self.offset is None else scaled + self.offset.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the number of channels and the extremes of the factors."""
        low, high = torch.aminmax(self.factor)
        return f"{len(self.factor)}, {float(low):.3g} to {float(high):.3g}"
