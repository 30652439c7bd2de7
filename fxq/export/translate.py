"""The operators of a lowered graph as ONNX operators, and the opset that it needs.

How each is written stands in its own file, in fxq/quant/ops. Opsets of dtypes: ONNX QuantizeLinear and
DequantizeLinear 13, 19 (float8) and 21 (INT4, blocks).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript.values import Opset
from torch import fx

from fxq.graph.kinds import kind
from fxq.graph.modules import graphs_in
from fxq.quant import LOWERED_OPS

# int8 and uint8, per channel too, are in opset 13, but torch's operator translations start at 18: asking for less
# adds a version conversion that can fail, and no runtime of today reads 13 and not 18.
BASE_OPSET = 18
HALF_SCALE_OPSET = 19
GELU_OPSET = 20
SIXTEEN_BIT_OPSET = 21
# Conv and the pools take bfloat16 from here on.
BFLOAT_OPSET = 22

_OPSETS: dict[torch.dtype | None, int] = {
    torch.float16: HALF_SCALE_OPSET,
    torch.float8_e4m3fn: HALF_SCALE_OPSET,
    torch.int16: SIXTEEN_BIT_OPSET,
    torch.uint16: SIXTEEN_BIT_OPSET,
    torch.bfloat16: BFLOAT_OPSET,
}


def required_opset(gm: fx.GraphModule) -> tuple[int, str]:
    """Return the lowest opset that holds every operator and dtype of a lowered graph, and what needs it.

    Islands in the graph count too.
    """
    return max((_required_opset(part) for _, part in graphs_in(gm)), key=lambda need: need[0])


def has_gelu(gm: fx.GraphModule) -> bool:
    """Return whether a lowered graph, or an island in it, computes a GELU, which ONNX has as one operator."""
    return any(kind(node) == "gelu" for _, part in graphs_in(gm) for node in part.graph.nodes)


def needed_by_dtype(dtype: torch.dtype | None) -> tuple[int, str]:
    """Return the lowest opset for a float side of ``dtype``, and what needs it."""
    return _OPSETS.get(dtype, BASE_OPSET), f"a float side of {str(dtype).removeprefix('torch.')}"


def _required_opset(gm: fx.GraphModule) -> tuple[int, str]:
    stored = {name: tensor.dtype for name, tensor in gm.state_dict().items() if isinstance(tensor, torch.Tensor)}
    # Recurrent and dynamic layers name no dtype; the bias of one shows that the model is in bfloat16.
    dtypes = {torch.bfloat16} & set(stored.values())
    needs = [(BASE_OPSET, "torch.onnx, which writes no older operators,")]
    needs += [(BFLOAT_OPSET, "the model's bfloat16")] if dtypes else []
    for node in gm.graph.nodes:
        row = LOWERED_OPS.get(node.target)
        if row is None:
            continue
        needs.append((row.opset, f"{' and '.join(row.writes) or node.target} (node '{node.name}')"))
        if row.kind in ("quantize", "dequantize"):
            codes = str(getattr(node.args[0], "target", ""))
            used = {node.args[-1], stored.get(codes, node.args[-1])}
            needs += [
                (_OPSETS[dtype], f"{row.writes[0]} of {str(dtype).removeprefix('torch.')} (node '{node.name}')")
                for dtype in used & set(_OPSETS)
            ]
    return max(needs, key=lambda need: need[0])


def translation_table(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what torch.onnx.export takes as ``custom_translation_table``."""
    op = Opset("", opset)
    own = {function: row.translation(op) for function, row in LOWERED_OPS.items()}
    return {**own, torch.ops.aten.conv3d.default: _conv3d(op)}


def _conv3d(op: Opset) -> Callable[..., Any]:
    """Return the translation of a convolution over volumes: that of onnxscript 0.7 gives one without bias a wrong one.

    It makes zeros of (channels, 2), which no runtime takes.
    """

    def conv3d(  # noqa: PLR0913 - that of the operator
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Sequence[int] = (1, 1, 1),
        padding: Sequence[int] = (0, 0, 0),
        dilation: Sequence[int] = (1, 1, 1),
        groups: int = 1,
    ) -> Any:
        is_single = len(input.shape) < len(weight.shape)
        batch = op.Unsqueeze(input, op.Constant(value_ints=[0])) if is_single else input
        inputs = (batch, weight) if bias is None else (batch, weight, bias)
        pads = [*padding, *padding]
        result = op.Conv(*inputs, strides=[*stride], pads=pads, dilations=[*dilation], group=groups)
        return op.Squeeze(result, op.Constant(value_ints=[0])) if is_single else result

    return conv3d
