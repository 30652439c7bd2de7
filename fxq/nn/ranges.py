"""Ranges of a TensorQuantizer: checked when they are stored, shaped and measured when they are used.

A range is one bound or two: amax, or low and high. Each is float32 with shape () for the whole tensor, or one that
broadcasts against the input, such as (C, 1, 1, 1). With a single axis a flat (C,) is accepted too, for users who know
the channels but not the rank. Nothing here reads a value of a tensor in the forward pass, which would wait for the
device, except the sign test of a dynamic unsigned range.
"""

from typing import Any

import torch
from torch import Tensor

from fxq.errors import RangeError, UnsignedInputError


def as_bound(value: Any, axes: tuple[int, ...], owner: str) -> Tensor:
    """Return ``value`` (number, list, ndarray or tensor) as a float32 bound with a valid shape.

    Raises:
        RangeError: a value is not finite, or the shape does not fit ``axes``.
    """
    # A range made under inference_mode could not be saved for a backward pass later.
    with torch.inference_mode(False):
        bound = torch.as_tensor(value).detach().clone().to(torch.float32)
    if not bound.is_meta and not bool(torch.isfinite(bound).all()):
        raise RangeError(f"the range of {owner} is not finite: check the data for infinities or NaN")
    if not is_bound_shape(bound, axes):
        expected = f"that varies along axis {axes} only" if axes else "of one value"
        raise RangeError(f"{owner} needs a range {expected}, got shape {tuple(bound.shape)}")
    return bound.reshape(()) if not axes else bound


def is_bound_shape(bound: Tensor, axes: tuple[int, ...]) -> bool:
    """Does the shape hold one value, or vary along ``axes`` only?"""
    if bound.numel() == 1:
        return True
    if bound.dim() == 1 and len(axes) == 1:
        return True
    if not all(-bound.dim() <= axis < bound.dim() for axis in axes):
        return False
    kept = {axis % bound.dim() for axis in axes}
    return all(size == 1 for dim, size in enumerate(bound.shape) if dim not in kept)


def align(bound: Tensor, inputs: Tensor, axes: tuple[int, ...], owner: str) -> Tensor:
    """Return ``bound`` in a shape that broadcasts against ``inputs``.

    Raises:
        RangeError: the channels of the range are not those of the input.
    """
    if bound.numel() == 1:
        return bound.reshape(())
    if bound.dim() == 1 and len(axes) == 1 and -inputs.dim() <= axes[0] < inputs.dim():
        shape = [1] * inputs.dim()
        shape[axes[0]] = -1
        bound = bound.reshape(shape)
    sizes = zip(bound.shape, inputs.shape, strict=False)
    if bound.dim() != inputs.dim() or any(kept not in (1, size) for kept, size in sizes):
        raise RangeError(
            f"{owner}: its range has shape {tuple(bound.shape)} and the input {tuple(inputs.shape)}; "
            "calibrate with such inputs, or call reset_amax()"
        )
    return bound


def measure_amax(inputs: Tensor, axes: tuple[int, ...], unsigned: bool) -> Tensor:
    """Return the largest |x| of the input as float32, over the dimensions not in ``axes``, which stay with size 1.

    Raises:
        UnsignedInputError: ``unsigned`` and an input is negative.
    """
    low, high = measure_range(inputs, axes)
    if unsigned and bool((low < 0).any()):
        raise UnsignedInputError("Negative values encountered in unsigned quantization.")
    return torch.maximum(low.neg(), high)


def measure_range(inputs: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest x of the input as float32; shapes as in :func:`measure_amax`.

    Raises:
        RangeError: the input lacks one of ``axes``.
    """
    inputs = inputs.detach()
    if inputs.numel() == 0:
        return inputs.new_zeros((), dtype=torch.float32), inputs.new_zeros((), dtype=torch.float32)
    if not axes:
        low, high = torch.aminmax(inputs)
        return low.float(), high.float()
    for axis in axes:
        if not -inputs.dim() <= axis < inputs.dim():
            raise RangeError(f"axis {axis} does not exist in an input of shape {tuple(inputs.shape)}")
    kept = {axis % inputs.dim() for axis in axes}
    reduced = tuple(dim for dim in range(inputs.dim()) if dim not in kept)
    if not reduced:
        return inputs.float(), inputs.float()
    return inputs.amin(reduced, keepdim=True).float(), inputs.amax(reduced, keepdim=True).float()
