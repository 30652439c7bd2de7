"""Descriptors and the functions that quantize a tensor, under the names of pytorch-quantization.

The classes that end in Function are what their ``apply`` is; the numbers are those of :mod:`fxq.quant`. Affine:
``step = (max - min) / (2^bits - 1)``, ``z = round(min / step) + 2^(bits - 1)``,
``x' = (clamp(round(x / step) - z) + z) * step``; unlike :mod:`fxq.quant.affine`, the range need not hold 0.
"""

from typing import Any

import torch
from torch import Tensor

from fxq.compat.pytorch_quantization.descriptor import (
    QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW,
    QUANT_DESC_8BIT_PER_TENSOR,
    QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR,
    ScaledQuantDescriptor,
)
from fxq.errors import DescriptorError, RangeError
from fxq.quant import affine
from fxq.quant.descriptor import E4M3, integer_bounds
from fxq.quant.float8 import fake_e4m3_quant

QuantDescriptor = ScaledQuantDescriptor

__all__ = [
    "QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL",
    "QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW",
    "QUANT_DESC_8BIT_PER_TENSOR",
    "QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR",
    "FakeAffineTensorQuantFunction",
    "FakeTensorQuantFunction",
    "LegacyFakeTensorQuantFunction",
    "QuantDescriptor",
    "ScaledE4M3Function",
    "ScaledQuantDescriptor",
    "TensorQuantFunction",
    "fake_affine_tensor_quant",
    "fake_tensor_quant",
    "legacy_fake_tensor_quant",
    "scaled_e4m3",
    "tensor_quant",
]


def tensor_quant(
    inputs: Tensor,
    amax: Tensor | float,
    num_bits: int = 8,
    unsigned: bool = False,
    narrow_range: bool = True,
    *,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the integer codes of ``inputs``, in its dtype or ``output_dtype``, and their scale, in its dtype.

    Raises:
        UnsignedInputError: ``unsigned`` and an input is negative.
        RangeError: ``amax`` is negative, does not broadcast, or has a scale that float16 cannot hold.
    """
    codes, scale = affine.tensor_quant(inputs, amax, num_bits, unsigned, narrow_range)
    if inputs.dtype == torch.float16 and bool((scale > torch.finfo(torch.float16).max).any()):
        raise RangeError(f"scale is too large for FP16 with amax={amax}: quantize a float32 tensor")
    return codes if output_dtype is None else codes.to(output_dtype), scale.to(inputs.dtype)


def fake_tensor_quant(
    inputs: Tensor,
    amax: Tensor | float,
    num_bits: int = 8,
    unsigned: bool = False,
    narrow_range: bool = True,
    *,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return ``inputs`` quantized and dequantized, in its dtype or ``output_dtype``.

    Raises:
        UnsignedInputError: ``unsigned`` and an input is negative.
        RangeError: ``amax`` is negative or does not broadcast.
    """
    outputs = affine.fake_tensor_quant(inputs, amax, num_bits, unsigned, narrow_range)
    return outputs if output_dtype is None else outputs.to(output_dtype)


def fake_affine_tensor_quant(
    inputs: Tensor, min_range: Tensor | float, max_range: Tensor | float, num_bits: int = 8
) -> Tensor:
    """Return ``inputs`` quantized and dequantized over [min_range, max_range]; the gradient is 0 outside of it.

    Raises:
        RangeError: the range is empty or not finite.
    """
    low = torch.as_tensor(min_range, dtype=torch.float32, device=inputs.device).detach()
    high = torch.as_tensor(max_range, dtype=torch.float32, device=inputs.device).detach()
    if not bool(torch.isfinite(high - low).all()) or bool((low > high).any()):
        raise RangeError(f"the range [{min_range}, {max_range}] is empty or not finite")
    outputs: Tensor = _FakeAffine.apply(inputs, low, high, integer_bounds(num_bits, False, False))
    return outputs


def scaled_e4m3(inputs: Tensor, amax: Tensor | float | None = None, E: int = 4, M: int = 3) -> Tensor:
    """Return ``inputs`` rounded to float8 e4m3 and back; ``amax`` is mapped to 448, None scales nothing.

    Raises:
        DescriptorError: another format than E=4, M=3.
    """
    if (E, M) != E4M3:
        raise DescriptorError(f"Only support E=4 & M=3, got E={E} & M={M}")
    return fake_e4m3_quant(inputs, amax)


class _FakeAffine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, low: Tensor, high: Tensor, bounds: tuple[int, int]) -> Tensor:
        ctx.save_for_backward((inputs >= low) & (inputs <= high))
        lo, hi = bounds
        step = (high - low) / torch.full((), float(hi - lo), device=low.device)
        step = torch.where(step == 0, torch.ones_like(step), step)
        return affine.fake_affine_quant(inputs.detach(), step, lo - torch.round(low / step), lo, hi)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return grad.where(inside, 0), None, None, None


class TensorQuantFunction:
    """``apply`` is :func:`tensor_quant`."""

    apply = staticmethod(tensor_quant)


class FakeTensorQuantFunction:
    """``apply`` is :func:`fake_tensor_quant`."""

    apply = staticmethod(fake_tensor_quant)


class LegacyFakeTensorQuantFunction:
    """``apply`` is :func:`fake_tensor_quant`: fxq has one implementation for all devices."""

    apply = staticmethod(fake_tensor_quant)


class FakeAffineTensorQuantFunction:
    """``apply`` is :func:`fake_affine_tensor_quant`."""

    apply = staticmethod(fake_affine_tensor_quant)


class ScaledE4M3Function:
    """``apply`` is :func:`scaled_e4m3`."""

    apply = staticmethod(scaled_e4m3)


legacy_fake_tensor_quant = fake_tensor_quant
