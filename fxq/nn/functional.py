"""Functions that a lowered graph calls where torch.nn.functional has no single one."""

from typing import Any

from torch import Tensor
from torch.nn import functional

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def padded_conv(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, pads: tuple[int, ...], padding_mode: str, **options: Any
) -> Tensor:
    """Return the convolution of ``inputs``, padded with something else than zeros.

    Args:
        inputs: (batch, in_channels, ...) or (in_channels, ...).
        weight: (out_channels, in_channels / groups, ...); its rank tells the number of spatial dimensions.
        bias: (out_channels,) or None.
        pads: as torch.nn.functional.pad takes them, last dimension first.
        padding_mode: "reflect", "replicate" or "circular".
        **options: stride, dilation and groups of the convolution.
    """
    padded = functional.pad(inputs, pads, mode=padding_mode)
    convolved: Tensor = CONVOLUTIONS[weight.dim() - 2](padded, weight, bias, **options)
    return convolved
