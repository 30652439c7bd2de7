"""Integer codes of a stored tensor ``w``, as a lowered graph holds them.

``q = clamp(round(w / step) + zero_point, lo, hi)``, in the smallest dtype that holds them.
"""

import dataclasses

import torch
from torch import Tensor

from fxq.nn import QParams
from fxq.quant import QUANTIZE
from fxq.quant.blocks import spread_blocks


def integer_codes(weight: Tensor, found: QParams) -> Tensor:
    """Return the codes of ``weight``, in the dtype and shape that they are stored in."""
    if found.block_size is None:
        codes: Tensor = QUANTIZE(weight, found.scale, found.zero_point, found.axis, found.lo, found.hi, found.dtype)
        return codes
    step = spread_blocks(found.scale, found.block_size, weight.shape[1])
    return torch.round(weight.float() / step).clamp_(found.lo, found.hi).to(found.dtype)


def bits_of(found: QParams) -> int | None:
    """Return the width of signed symmetric codes, None for any other format."""
    if found.dtype is not torch.int8 or bool(found.zero_point.any()):
        return None
    return found.hi.bit_length() + 1


def is_linear_weight(found: QParams, channel_axis: int = 0) -> bool:
    """Return whether DYNAMIC_LINEAR takes it: symmetric int8 with one step a channel, or one in all."""
    return bits_of(found) is not None and found.block_size is None and found.axis in (None, channel_axis)


def select_rows(found: QParams, rows: Tensor) -> QParams:
    """Return the parameters of the weight that has the given rows (dimension 0) of the one with parameters ``found``.

    Args:
        found: of a weight of two dimensions or more.
        rows: indices, in the order of the result.
    """
    has_scales_by_row = found.block_size is not None or found.axis in (0, -2)
    if not has_scales_by_row or not found.scale.dim():
        return found
    rows = rows.to(found.scale.device)
    return dataclasses.replace(found, scale=found.scale[rows], zero_point=found.zero_point[rows])
