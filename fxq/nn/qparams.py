"""What a lowering needs of a quantizer: scale, zero point and codes, as ONNX QuantizeLinear takes them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class QParams:
    """``q = clamp(round(x / scale) + zero_point, lo, hi)``, ``x' = (q - zero_point) * scale``.

    Args:
        scale: float32, shape () per tensor, (channels,) per channel or (out, blocks) with blocks.
        zero_point: int32 of the same shape.
        lo, hi: lowest and highest code; the lowest and highest number of float8.
        axis: the channel dimension, None per tensor; with blocks 1, the dimension that they run along.
        dtype: the smallest of int8, uint8, int16 and uint16 that holds lo..hi, or float8_e4m3fn.
        block_size: how many inputs of a row share a scale, None without blocks.
    """

    scale: Tensor
    zero_point: Tensor
    lo: int
    hi: int
    axis: int | None
    dtype: torch.dtype
    block_size: int | None = None


def storage_dtype(num_bits: int | tuple[int, int], unsigned: bool) -> torch.dtype:
    """Return the dtype that codes of ``num_bits`` are stored in."""
    if isinstance(num_bits, tuple):
        return torch.float8_e4m3fn
    if num_bits <= 8:
        return torch.uint8 if unsigned else torch.int8
    return torch.uint16 if unsigned else torch.int16
