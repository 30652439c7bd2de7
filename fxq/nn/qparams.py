"""What a lowering needs of a quantizer: step, zero point and codes, as ONNX QuantizeLinear takes them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class QParams:
    """``q = clamp(round(x / step) + zero_point, lo, hi)``, ``x' = (q - zero_point) * step``.

    Args:
        step: float32, shape () per tensor or (channels,) per channel.
        zero_point: int32 of the same shape.
        lo, hi: lowest and highest code.
        axis: the channel dimension, None per tensor.
        dtype: the smallest of int8, uint8, int16 and uint16 that holds lo..hi.
    """

    step: Tensor
    zero_point: Tensor
    lo: int
    hi: int
    axis: int | None
    dtype: torch.dtype


def storage_dtype(num_bits: int, unsigned: bool) -> torch.dtype:
    """Return the integer dtype that codes of ``num_bits`` are stored in."""
    if num_bits <= 8:
        return torch.uint8 if unsigned else torch.int8
    return torch.uint16 if unsigned else torch.int16
