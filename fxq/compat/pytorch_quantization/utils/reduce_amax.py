"""reduce_amax: the largest |x| over some dimensions."""

import torch
from torch import Tensor

from fxq.errors import RangeError


@torch.no_grad()
def reduce_amax(input: Tensor, axis: int | tuple[int, ...] | list[int] | None = None, keepdims: bool = True) -> Tensor:
    """Return the largest |x| over the dimensions in ``axis``, all of them with None; no gradient.

    Args:
        input: any shape, not empty.
        axis: the dimensions to reduce, negative allowed.
        keepdims: they stay with size 1, unless a single value is left of several dimensions: that has shape ().

    Raises:
        RangeError: more axes than dimensions, or one that the tensor does not have.
    """
    magnitude = input.abs()
    if axis is None:
        return magnitude.amax()
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if len(axes) > input.dim():
        raise RangeError(f"Cannot reduce more axes than tensor's dim: axis {axes}, shape {tuple(input.shape)}")
    if any(not -input.dim() <= one < input.dim() for one in axes):
        raise RangeError(f"axis {axes} does not exist in a tensor of shape {tuple(input.shape)}")
    if not axes:
        return magnitude
    reduced = magnitude.amax(axes, keepdim=keepdims)
    return reduced.reshape(()) if reduced.numel() == 1 and not isinstance(axis, int) else reduced
