"""The ONNX form of a TensorQuantizer: QuantizeLinear and DequantizeLinear, while ``torch.onnx.export`` looks on.

So a model with quantizers placed by hand exports with torch's own exporter. Codes that use less than their dtype get a
clip in front, because QuantizeLinear saturates at the ends of the dtype only. ``round(x / step)`` here and
``round(x * scale)`` in the module can differ by one code where x lies on a tie but for the rounding of float32.

Codes of up to 8 bits fit every opset that torch writes. float8 needs ``torch.onnx.export(..., opset_version=19)``, 9 to
16 bits and blocks ``opset_version=21``: the exporter does not tell a module which one it writes. ``dynamo=False``,
torch's older exporter, knows whole 8-bit ranges only. ``fxq.export_onnx`` finds the opset by itself, and stores integer
weights.

Source: ONNX operators QuantizeLinear and DequantizeLinear, opsets 19 and 21; torch.onnx.ops.symbolic.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from fxq.errors import ExportError
from fxq.nn.qparams import QParams
from fxq.quant.blocks import spread_blocks

# Eight bits are the same in 13 and 19; torch's exporter lowers the number where the user asks for opset 18.
EIGHT_BIT_OPSET = 19
SIXTEEN_BIT_OPSET = 21


def is_exported() -> bool:
    """Is torch.onnx.export running?"""
    return torch.onnx.is_in_onnx_export()


# torch.export's strict mode takes is_in_onnx_export() for False, so the file would quietly lack its QuantizeLinear.
# This is torch.compiler.assume_constant_result without its import of torch._dynamo, which takes seconds.
is_exported._dynamo_marked_constant = True  # type: ignore[attr-defined]


def onnx_form(inputs: Tensor, qparams: QParams, fake_quant: bool) -> Tensor:
    """Return ``inputs`` through QuantizeLinear and, with ``fake_quant``, DequantizeLinear; same dtype.

    Computed in float32, as the quantizer does it: other inputs are cast before and after.

    Raises:
        ExportError: the exporter of ``dynamo=False`` cannot write this format.
    """
    exact = inputs.float()
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return _script_form(exact, qparams, fake_quant).to(inputs.dtype)
    if (qparams.lo, qparams.hi) != _dtype_bounds(qparams.dtype):
        exact = _clipped(exact, qparams)
    zero_point = qparams.zero_point.to(qparams.dtype)
    codes = _operator("QuantizeLinear", (exact, qparams.scale, zero_point), qparams.dtype, qparams)
    if not fake_quant:
        return codes.to(inputs.dtype)
    values = _operator("DequantizeLinear", (codes, qparams.scale, zero_point), torch.float32, qparams)
    return values.to(inputs.dtype)


def _script_form(inputs: Tensor, qparams: QParams, fake_quant: bool) -> Tensor:
    """Return torch's own fake quantization, which the exporter of ``dynamo=False`` writes as the two operators."""
    bounds = (qparams.lo, qparams.hi)
    if not fake_quant or qparams.dtype not in (torch.int8, torch.uint8) or bounds != _dtype_bounds(qparams.dtype):
        raise ExportError(
            f"torch.onnx.export(dynamo=False) writes 8-bit codes from -128 to 127 or 0 to 255 only, got {bounds} in "
            f"{qparams.dtype}: use dynamo=True, or fxq.prepare, fxq.convert and fxq.export_onnx"
        )
    with warnings.catch_warnings():
        # torch warns that a number becomes a constant of the file, which is what a range is.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        step, zero_point = (
            torch.tensor(value.tolist(), dtype=torch.float32, device=inputs.device)
            for value in (qparams.scale, qparams.zero_point)
        )
    zero_point = zero_point.to(torch.int32)
    if qparams.axis is None:
        return torch.fake_quantize_per_tensor_affine(inputs, step, zero_point, *bounds)
    return torch.fake_quantize_per_channel_affine(inputs, step, zero_point, qparams.axis % inputs.dim(), *bounds)


def _operator(name: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, qparams: QParams) -> Tensor:
    attributes: dict[str, Any] = {} if qparams.axis is None else {"axis": qparams.axis}
    version = EIGHT_BIT_OPSET
    if qparams.block_size is not None:
        attributes["block_size"] = qparams.block_size
    if qparams.block_size is not None or qparams.dtype in (torch.int16, torch.uint16):
        version = SIXTEEN_BIT_OPSET
    outputs: Tensor = torch.onnx.ops.symbolic(
        name, inputs, attributes, dtype=dtype, shape=inputs[0].shape, version=version
    )
    # The placeholder of torch is made on the CPU, wherever its inputs are.
    return outputs if outputs.device == inputs[0].device else outputs.to(inputs[0].device)


def _clipped(inputs: Tensor, qparams: QParams) -> Tensor:
    """Return ``inputs`` clipped to the values of the outermost codes."""
    step, zero_point = qparams.scale, qparams.zero_point
    low, high = ((end - zero_point) * step for end in (qparams.lo, qparams.hi))
    if qparams.axis is None:
        return torch.clamp(inputs, low, high)
    if qparams.block_size is not None:
        low, high = (spread_blocks(bound, qparams.block_size, inputs.shape[1]) for bound in (low, high))
        return torch.clamp(inputs, low, high)
    shape = [1] * inputs.dim()
    shape[qparams.axis] = -1
    return torch.clamp(inputs, low.reshape(shape), high.reshape(shape))


def _dtype_bounds(dtype: torch.dtype) -> tuple[int, int]:
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return int(info.min), int(info.max)
