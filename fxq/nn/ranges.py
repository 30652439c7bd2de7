"""Ranges of a TensorQuantizer: checked when they are stored, shaped and measured when they are used.

A range is one bound or two: amax, or low and high. Each is float32 with shape () for the whole tensor, or one that
broadcasts against the input, such as (C, 1, 1, 1). With a single axis a flat (C,) is accepted too, for users who know
the channels but not the rank. With blocks it has shape (out, blocks). Nothing here reads a value of a tensor in the
forward pass, which would wait for the device, except the sign test of a dynamic unsigned range.
"""

from typing import Any

import torch
from torch import Tensor

from fxq.errors import RangeError, UnsignedInputError
from fxq.nn.onnx_form import is_exported
from fxq.quant.blocks import block_amax, block_shape, spread_blocks
from fxq.quant.descriptor import QuantDescriptor


def as_float32(value: Any) -> Tensor:
    """Return ``value`` (number, list, ndarray or tensor) in float32, where it is, or on the CPU.

    Whatever torch's default dtype and device are.
    """
    if isinstance(value, Tensor):
        return value.to(torch.float32)
    return torch.as_tensor(value, dtype=torch.float32, device="cpu")


def as_bound(value: Any, descriptor: QuantDescriptor, owner: str) -> Tensor:
    """Return ``value`` (number, list, ndarray or tensor) as a float32 bound with a valid shape.

    Raises:
        RangeError: a value is not finite, or the shape does not fit the descriptor.
    """
    # A range made under inference_mode could not be saved for a backward pass later.
    with torch.inference_mode(False):
        bound = as_float32(value).detach().clone()
    if not bound.is_meta and not bool(torch.isfinite(bound).all()):
        raise RangeError(f"the range of {owner} is not finite: check the data for infinities or NaN")
    if not is_bound_shape(bound, descriptor):
        raise RangeError(f"{owner} needs a range {expected_shape(descriptor)}, got shape {tuple(bound.shape)}")
    return bound if descriptor.axes else bound.reshape(())


def expected_shape(descriptor: QuantDescriptor) -> str:
    """Return the shape of a range in words, such as ``that varies along axis (0,) only``."""
    if descriptor.block_size is not None:
        return f"of shape (out, blocks), a value for each {descriptor.block_size} inputs of a row"
    return f"that varies along axis {descriptor.axis} only" if descriptor.axes else "of one value"


def is_bound_shape(bound: Tensor, descriptor: QuantDescriptor) -> bool:
    """Does the shape hold one value, or vary along the kept axes only? With blocks, is it a matrix?"""
    axes = descriptor.axes
    if descriptor.block_size is not None:
        return bound.dim() == 2
    if bound.numel() == 1:
        return True
    if bound.dim() == 1 and len(axes) == 1:
        return True
    if not all(-bound.dim() <= axis < bound.dim() for axis in axes):
        return False
    kept = {axis % bound.dim() for axis in axes}
    return all(size == 1 for dim, size in enumerate(bound.shape) if dim not in kept)


def align(bound: Tensor, inputs: Tensor, descriptor: QuantDescriptor, owner: str) -> Tensor:
    """Return ``bound`` in a shape that broadcasts against ``inputs``.

    Raises:
        RangeError: the channels or blocks of the range are not those of the input.
    """
    if descriptor.block_size is not None:
        if tuple(bound.shape) != block_shape(inputs, descriptor.block_size):
            raise _misfit(bound, inputs, owner)
        return spread_blocks(bound, descriptor.block_size, inputs.shape[1])
    if bound.numel() == 1:
        return bound.reshape(())
    axes = descriptor.axes
    if bound.dim() == 1 and len(axes) == 1 and -inputs.dim() <= axes[0] < inputs.dim():
        shape = [1] * inputs.dim()
        shape[axes[0]] = -1
        bound = bound.reshape(shape)
    sizes = zip(bound.shape, inputs.shape, strict=False)
    if bound.dim() != inputs.dim() or any(kept not in (1, size) for kept, size in sizes):
        raise _misfit(bound, inputs, owner)
    return bound


def _misfit(bound: Tensor, inputs: Tensor, owner: str) -> RangeError:
    return RangeError(
        f"{owner}: its range has shape {tuple(bound.shape)} and the input {tuple(inputs.shape)}; "
        "calibrate with such inputs, or call reset_amax()"
    )


def measure_amax(inputs: Tensor, descriptor: QuantDescriptor, owner: str) -> Tensor:
    """Return the largest |x| of the input as float32, as a range of its own: in the shape that is stored.

    Raises:
        UnsignedInputError: the descriptor is unsigned and an input is negative.
        RangeError: the input lacks one of the kept axes.
    """
    if descriptor.block_size is not None:
        return block_amax(inputs, descriptor.block_size)
    low, high = measure_range(inputs, descriptor.axes, owner)
    # An exporter has no values to test.
    if descriptor.unsigned and not is_exported() and bool((low < 0).any()):
        raise UnsignedInputError(
            f"Negative values encountered in unsigned quantization. {owner} takes values from 0 up: make it signed"
        )
    return torch.maximum(low.neg(), high)


def measure_range(inputs: Tensor, axes: tuple[int, ...], owner: str) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest x of the input as float32; dimensions not in ``axes`` stay with size 1.

    Raises:
        RangeError: the input lacks one of ``axes``.
    """
    inputs = inputs.detach()
    if inputs.numel() == 0:
        return inputs.new_zeros((), dtype=torch.float32), inputs.new_zeros((), dtype=torch.float32)
    if not axes:
        # torch's ONNX exporter knows min and max, and not what aminmax is made of.
        low, high = (inputs.min(), inputs.max()) if is_exported() else torch.aminmax(inputs)
        return low.float(), high.float()
    for axis in axes:
        if not -inputs.dim() <= axis < inputs.dim():
            raise RangeError(f"{owner} keeps axis {axis}, which an input of shape {tuple(inputs.shape)} lacks")
    kept = {axis % inputs.dim() for axis in axes}
    reduced = tuple(dim for dim in range(inputs.dim()) if dim not in kept)
    if not reduced:
        return inputs.float(), inputs.float()
    return inputs.amin(reduced, keepdim=True).float(), inputs.amax(reduced, keepdim=True).float()
