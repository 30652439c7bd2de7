"""Convolutions, transposed ones and linear layers: int32 sums of products of codes.

A bias counts in steps of input step x weight step, as ONNX Runtime has it; one stored in float is rounded to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from fxq.errors import GraphError
from fxq.graph.stored import stored_tensor
from fxq.integer.grid import EIGHT_BITS, Grid, Term
from fxq.integer.writer import Writer, described, kind_of
from fxq.quant import DEQUANTIZE, DEQUANTIZE_LOW_BIT
from fxq.quant.ops.integer_layers import INTEGER_CONV, INTEGER_LINEAR
from fxq.registry import integer_form

_DIMS = {
    functional.conv1d: 1, functional.conv2d: 2, functional.conv3d: 3,
    functional.conv_transpose1d: 1, functional.conv_transpose2d: 2, functional.conv_transpose3d: 3,
}  # fmt: skip
_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class _Weight:
    """A stored integer weight: what reads its codes and zero points, and their values; scales along the rows."""

    codes: Node
    zero: Node | None
    values: Tensor  # int16, less the zero points
    scale: Tensor  # float64, () or (out,)


@integer_form("conv", "conv_transpose", "linear")
class IntegerLayer:
    """The sums of a layer: of codes, by stored codes with one step, or one for each output channel."""

    def why_not(self, node: Node) -> str | None:
        """Return that it is a call of a module, which is in float, or why its weight has no integers."""
        if node.op == "call_module":
            return "its weight is not quantized, or its input is not"
        weight, axis = node.args[1], _weight_axis(node)
        if not isinstance(weight, Node) or weight.target not in (DEQUANTIZE, DEQUANTIZE_LOW_BIT):
            return "its weight is not quantized"
        if weight.target is DEQUANTIZE_LOW_BIT and weight.args[4] is not None:
            return "its weight has a step for each block, and a sum of integers one for each output channel"
        codes = stored_tensor(weight.args[0])
        if codes.dtype not in EIGHT_BITS:
            return f"its weight is stored as {str(codes.dtype).removeprefix('torch.')}, and int8 or uint8 is needed"
        own = weight.args[3]
        if isinstance(own, int) and own % codes.dim() != axis and stored_tensor(weight.args[1]).numel() > 1:
            return f"its weight has steps along dimension {own}, and the output channels are dimension {axis}"
        return None

    def codes(self, writer: Writer, node: Node, grid: Grid) -> Node:
        """Requantize the sums."""
        return writer.requantize(self.terms(writer, node), grid, node)

    def terms(self, writer: Writer, node: Node) -> list[Term]:
        """Return the sums."""
        x, grid = _input(writer, node)
        weight = _weight(writer, node)
        scale = weight.scale * grid.scale
        bias, bias_values = _bias(writer, node, scale, len(weight.values))
        bound = weight.values.flatten(1).abs().sum(1, dtype=torch.int64) * grid.bound + bias_values.abs()
        if bool((bound > _LARGEST).any()):
            raise GraphError(
                f"to_integer: {described(node)}: its sums reach {float(bound.max()):.3g}, and int32 ends at 2^31"
            )
        stored = (weight.codes, weight.zero, bias)
        if kind_of(node) == "linear":
            total = writer.insert(INTEGER_LINEAR, (x, grid.zero_point, *stored, -1), node, torch.int32)
            axis = -1
        else:
            dims = _DIMS[node.target]  # type: ignore[index]  # what why_not has seen
            args = (x, grid.zero_point, *stored, *_geometry(node, weight.values.shape[-dims:]))
            total = writer.insert(INTEGER_CONV, args, node, torch.int32)
            axis = -dims - 1
        return [Term(total, 0, scale, bound if scale.dim() else bound.max(), axis if scale.dim() else None)]


def _input(writer: Writer, node: Node) -> tuple[Node, Grid]:
    source: Any = node.args[0]
    grid = writer.own_grid(source)
    if grid is None:
        raise GraphError(f"to_integer: {described(node)} reads {source.name!r}, which is not quantized")
    return writer.codes(source, grid), grid


def _weight_axis(node: Node) -> int:
    return 1 if kind_of(node) == "conv_transpose" else 0


def _weight(writer: Writer, node: Node) -> _Weight:
    """Return the weight with output channels in dimension 0, as a convolution has it."""
    weight: Any = node.args[1]
    codes: Any = weight.args[0]
    stored, scale = stored_tensor(codes), stored_tensor(weight.args[1]).double().cpu()
    zero_node = weight.args[2] if weight.target is DEQUANTIZE else None
    zero = torch.zeros((), dtype=torch.float64) if zero_node is None else stored_tensor(zero_node).double().cpu()
    if not bool(zero.any()):
        zero_node, zero = None, torch.zeros((), dtype=torch.float64)
    if kind_of(node) == "conv_transpose":
        groups = _options(node, _TRANSPOSED)["groups"]
        stored = _as_convolution(stored, groups)
        place = f"{writer.place(node)}.convolution_weight"
        codes = writer.store(node, place, stored)
        scale, zero = (one.repeat(groups) if one.numel() > 1 else one for one in (scale, zero))
        if zero_node is not None:
            zero_node = writer.store(node, f"{place}_zero_point", zero.to(stored.dtype))
    scale = scale.reshape(()) if scale.numel() == 1 else scale
    shaped = zero.reshape(-1, *[1] * (stored.dim() - 1)) if zero.dim() else zero
    return _Weight(codes, zero_node, stored.to(torch.int16).cpu() - shaped.to(torch.int16), scale)


def _as_convolution(weight: Tensor, groups: int) -> Tensor:
    """Return a transposed convolution's weight, (in, out / groups, ...), as that of the convolution which it is."""
    parts = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    rows = parts.reshape(-1, weight.shape[0] // groups, *weight.shape[2:])
    return rows.flip(list(range(2, weight.dim()))).contiguous()


def _bias(writer: Writer, node: Node, scale: Tensor, channels: int) -> tuple[Node | None, Tensor]:
    """Return what reads the bias as int32, and its values, float64 (out,)."""
    given: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if given is None:
        return None, torch.zeros(channels, dtype=torch.float64)
    if given.target is DEQUANTIZE:
        values = stored_tensor(given.args[0]).double().cpu() * stored_tensor(given.args[1]).double().cpu()
    elif given.op == "get_attr":
        values = stored_tensor(given).double().cpu()
    else:
        raise GraphError(f"to_integer: {described(node)} has a bias that is computed")
    codes = torch.round(values / scale)
    if given.target is DEQUANTIZE and torch.equal(codes, stored_tensor(given.args[0]).double().cpu()):
        return given.args[0], codes
    if bool((codes.abs() > _LARGEST).any()):
        raise GraphError(
            f"to_integer: {described(node)} has a bias of {float(codes.abs().max()):.3g} steps of input x weight, more "
            "than int32 holds: its weight is tiny beside it. The recipe 'onnxruntime' widens such weights' ranges"
        )
    return writer.store(node, f"{writer.place(node)}.integer_bias", codes.to(torch.int32)), codes


def _options(node: Node, names: Sequence[str]) -> dict[str, Any]:
    """Return the options of a call by name, each for all dimensions as far as it is not one number by nature."""
    dims = _DIMS[node.target]  # type: ignore[index]  # a convolution's
    found: dict[str, Any] = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
    found |= {**dict(zip(names, node.args[3:], strict=False)), **node.kwargs}
    for name in ("stride", "padding", "output_padding", "dilation"):
        value = found[name]
        if not isinstance(value, str):
            items = [value] if isinstance(value, int) else list(value)
            found[name] = items * dims if len(items) == 1 else items
    return found


def _geometry(node: Node, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int], int]:
    """Return stride, pads, spread, dilation and groups, as ``integer_conv`` takes them."""
    dims = len(kernel)
    if kind_of(node) == "conv_transpose":
        found = _options(node, _TRANSPOSED)
        reach = [step * (size - 1) for step, size in zip(found["dilation"], kernel, strict=True)]
        before = [far - pad for far, pad in zip(reach, found["padding"], strict=True)]
        behind = [pad + more for pad, more in zip(before, found["output_padding"], strict=True)]
        return [1] * dims, [*before, *behind], found["stride"], found["dilation"], found["groups"]
    found = _options(node, _CONV)
    padding = found["padding"]
    if padding == "valid":
        before = behind = [0] * dims
    elif padding == "same":
        total = [step * (size - 1) for step, size in zip(found["dilation"], kernel, strict=True)]
        before = [all_of // 2 for all_of in total]
        behind = [all_of - first for all_of, first in zip(total, before, strict=True)]
    else:
        before = behind = padding
    return found["stride"], [*before, *behind], [1] * dims, found["dilation"], found["groups"]
