"""Average pools and means over dimensions: sums of codes, whose division is part of the requantize."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional

from fxq.graph.kinds import module_of, shape_of
from fxq.integer.grid import Grid, Term
from fxq.integer.matrices import along_each, as_average, response
from fxq.integer.writer import Writer, kind_of
from fxq.registry import integer_form

_DIMS = {
    nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3,
    nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3,
}  # fmt: skip


@integer_form("avg_pool", "adaptive_avg_pool", "global_avg_pool", "mean")
class IntegerAverage:
    """Sums along each dimension; windows of other sizes count in a common fraction."""

    def why_not(self, node: Node) -> str | None:
        """Return that the sizes are not known, or what is averaged over."""
        if shape_of(node.all_input_nodes[0]) is None or shape_of(node) is None:
            return "its windows depend on the input: give prepare() example_inputs"
        if kind_of(node) == "mean":
            return None if _mean_dims(node) else "it averages over all dimensions, or into another dtype"
        return None if node.op == "call_module" else "it is called as a function that fxq does not take for a module"

    def codes(self, writer: Writer, node: Node, grid: Grid) -> Node:
        """Requantize the sums."""
        return writer.requantize(self.terms(writer, node), grid, node)

    def terms(self, writer: Writer, node: Node) -> list[Term]:
        """Return the sums."""
        shape = shape_of(node.all_input_nodes[0])
        assert shape is not None
        if kind_of(node) == "mean":
            return [_mean(writer, node, shape)]
        module: Any = module_of(node)
        dims = next(count for type_, count in _DIMS.items() if isinstance(module, type_))
        matrices, scale = [], 1.0
        for axis in range(-dims, 0):
            matrix = response(shape[axis], partial(_pooled, module=module, axis=axis, dims=dims, node=node))
            if getattr(module, "divisor_override", None):
                kernel = _of(module.kernel_size, axis, dims)
                scale *= kernel
            matrices.append((axis, *as_average(matrix)))
        term = along_each(writer, node, matrices)
        divisor = getattr(module, "divisor_override", None)
        return [term if divisor is None else Term(term.node, term.zero_point, term.scale * scale / divisor, term.bound)]


def _pooled(rows: Tensor, module: Any, axis: int, dims: int, node: Node) -> Tensor:
    """Pool one dimension; with an own divisor windows are all counted whole."""
    if isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d):
        out = shape_of(node)
        assert out is not None
        return functional.adaptive_avg_pool1d(rows, out[axis])
    kernel, stride, padding = (_of(one, axis, dims) for one in (module.kernel_size, module.stride, module.padding))
    counts_padding = module.count_include_pad
    if getattr(module, "divisor_override", None):
        # 1-dimensional pools have no divisor; 2-dimensional ones do.
        pool = functional.avg_pool2d(
            rows.unsqueeze(-1), (kernel, 1), (stride, 1), (padding, 0), module.ceil_mode, True, kernel
        )
        return pool.squeeze(-1)
    return functional.avg_pool1d(rows, kernel, stride, padding, module.ceil_mode, counts_padding)


def _of(value: Any, axis: int, dims: int) -> int:
    """Return what an option, one number or one for each dimension, is for ``axis``, counted from the end."""
    return int(value if isinstance(value, int) else value[0] if len(value) == 1 else value[dims + axis])


def _mean_dims(node: Node) -> list[int]:
    """Return the dimensions that a mean is over, negative."""
    shape = shape_of(node.all_input_nodes[0])
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if given is None or shape is None or node.kwargs.get("dtype") is not None:
        return []
    items: Any = [given] if isinstance(given, int) else given
    return sorted((int(item) % len(shape)) - len(shape) for item in items)


def _mean(writer: Writer, node: Node, shape: tuple[int, ...]) -> Term:
    dims = _mean_dims(node)
    matrices = [(axis, torch.ones(1, shape[axis], dtype=torch.float64), 1 / shape[axis]) for axis in dims]
    term = along_each(writer, node, matrices)
    keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    if keeps:
        return term
    codes = term.node
    for axis in sorted(len(shape) + axis for axis in dims)[::-1]:
        codes = writer.insert(torch.squeeze, (codes, axis), node, None)
    return Term(codes, term.zero_point, term.scale, term.bound)
