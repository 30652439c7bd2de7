"""The operators of a lowered graph as ONNX operators, and the opset that it needs. Those of quantization are here.

QuantizeLinear saturates at the ends of its dtype only. Codes that use less of it (4 bits in an int8) get a Clip in
front, at the values of the outermost codes, so that every runtime computes the same. Weights of 4 bits become INT4,
by a Cast that is taken into the stored tensor later (stored_weights.py).

Source: ONNX operators QuantizeLinear and DequantizeLinear, opsets 13, 19 (float8) and 21 (INT4, blocks).
"""

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript.values import Opset
from torch import fx

from fxq.export.translate_dynamic import cast, dynamic_translations
from fxq.export.translate_recurrent import recurrent_translations
from fxq.quant.descriptor import LARGEST_E4M3
from fxq.quant.low_bit_ops import DEQUANTIZE_LOW_BIT
from fxq.quant.qdq_ops import DEQUANTIZE, QUANTIZE

# int8 and uint8, per channel too, are in opset 13, but torch's operator translations start at 18: asking for less
# adds a version conversion that can fail, and no runtime of today reads 13 and not 18.
BASE_OPSET = 18
HALF_SCALE_OPSET = 19
SIXTEEN_BIT_OPSET = 21
LOW_BIT_OPSET = 21
# Conv and the pools take bfloat16 from here on.
BFLOAT_OPSET = 22

_OPSETS = {
    torch.float16: HALF_SCALE_OPSET,
    torch.float8_e4m3fn: HALF_SCALE_OPSET,
    torch.int16: SIXTEEN_BIT_OPSET,
    torch.uint16: SIXTEEN_BIT_OPSET,
    torch.bfloat16: BFLOAT_OPSET,
}


def required_opset(gm: fx.GraphModule) -> int:
    """Return the lowest opset that holds every dtype of a lowered graph."""
    stored = {name: tensor.dtype for name, tensor in gm.state_dict().items() if isinstance(tensor, torch.Tensor)}
    # Recurrent and dynamic layers name no dtype; the bias of one shows that the model is in bfloat16.
    dtypes = {torch.bfloat16} & set(stored.values())
    opset = BASE_OPSET
    for node in gm.graph.nodes:
        if node.target in (QUANTIZE, DEQUANTIZE, DEQUANTIZE_LOW_BIT):
            codes = str(getattr(node.args[0], "target", ""))
            dtypes |= {node.args[-1], stored.get(codes, node.args[-1])}
        if node.target is DEQUANTIZE_LOW_BIT:
            opset = LOW_BIT_OPSET
    return max(opset, *(_OPSETS.get(dtype, BASE_OPSET) for dtype in dtypes), BASE_OPSET)


def translation_table(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what torch.onnx.export takes as ``custom_translation_table``."""
    op = Opset("", opset)

    def quantize(  # noqa: PLR0913 - the signature of fxq::quantize
        x: Any, scale: Any, zero_point: Any, axis: int | None, quant_min: int, quant_max: int, dtype: int
    ) -> Any:
        scale, zero_point = cast(op, scale, x.dtype), cast(op, zero_point, ir.DataType(dtype))
        if (quant_min, quant_max) != _dtype_bounds(ir.DataType(dtype)):
            x = _clip(op, x, (scale, zero_point, axis), (quant_min, quant_max))
        return op.QuantizeLinear(x, scale, zero_point, **_axis(axis))

    def dequantize(q: Any, scale: Any, zero_point: Any, axis: int | None, out_dtype: int) -> Any:
        scale, zero_point = cast(op, scale, ir.DataType(out_dtype)), cast(op, zero_point, q.dtype)
        return op.DequantizeLinear(q, scale, zero_point, **_axis(axis))

    def dequantize_low_bit(codes: Any, step: Any, bits: int, axis: int, block_size: int | None, out_dtype: int) -> Any:
        packed = op.Cast(codes, to=ir.DataType.INT4) if bits <= 4 else codes
        block = {} if block_size is None else {"block_size": block_size}
        return op.DequantizeLinear(packed, cast(op, step, ir.DataType(out_dtype)), axis=axis, **block)

    return {
        QUANTIZE: quantize,
        DEQUANTIZE: dequantize,
        DEQUANTIZE_LOW_BIT: dequantize_low_bit,
        **dynamic_translations(op),
        **recurrent_translations(op),
    }


def _clip(op: Opset, x: Any, params: tuple[Any, Any, int | None], bounds: tuple[int, int]) -> Any:
    """Clip ``x`` to the values of the outermost codes; the bounds are folded into constants later."""
    scale, zero_point, axis = params
    zero = op.Cast(zero_point, to=x.dtype)
    ends = [op.Mul(op.Sub(op.Constant(value=_scalar(end, x.dtype)), zero), scale) for end in bounds]
    if axis is None:
        return op.Clip(x, *ends)
    # Clip takes scalars; one bound per channel is spread over the dimensions behind the channel's.
    behind = list(range(1, len(x.shape) - axis % len(x.shape)))
    if behind:
        ends = [op.Unsqueeze(end, op.Constant(value_ints=behind)) for end in ends]
    return op.Max(op.Min(x, ends[1]), ends[0])


def _scalar(value: int, dtype: ir.DataType) -> onnx.TensorProto:
    return ir.to_proto(ir.tensor(float(value), dtype=dtype))


def _axis(axis: int | None) -> dict[str, int]:
    return {} if axis is None else {"axis": axis}


def _dtype_bounds(dtype: ir.DataType) -> tuple[int, int]:
    if dtype == ir.DataType.FLOAT8E4M3FN:
        return -LARGEST_E4M3, LARGEST_E4M3
    info = torch.iinfo(getattr(torch, dtype.name.lower()))
    return info.min, info.max
