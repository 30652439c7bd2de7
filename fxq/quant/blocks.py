"""Blocks: a weight of shape (out, in) with one range for every ``block_size`` inputs of a row.

The last block of a row may be short. Source: ONNX QuantizeLinear, blocked quantization along axis 1 (opset 21).
"""

import torch
from torch import Tensor

from fxq.errors import RangeError


def block_shape(weight: Tensor, block_size: int) -> tuple[int, int]:
    """Return (out, blocks), the shape of the ranges of ``weight``.

    Raises:
        RangeError: the weight is no matrix.
    """
    if weight.dim() != 2:
        raise RangeError(f"blocks need a weight of shape (out, in), got {tuple(weight.shape)}: drop block_size")
    return weight.shape[0], -(-weight.shape[1] // block_size)


def block_amax(weight: Tensor, block_size: int) -> Tensor:
    """Return the largest |x| of each block in float32, shape (out, blocks); errors of :func:`block_shape`."""
    out, blocks = block_shape(weight, block_size)
    short = blocks * block_size - weight.shape[1]
    padded = torch.nn.functional.pad(weight.detach().abs(), (0, short))  # a zero widens no block
    return padded.reshape(out, blocks, block_size).amax(2).float()


def spread_blocks(per_block: Tensor, block_size: int, inputs: int) -> Tensor:
    """Return (out, blocks) values repeated for each input of their block, shape (out, inputs)."""
    return per_block.repeat_interleave(block_size, 1)[:, :inputs]
