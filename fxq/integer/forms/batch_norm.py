"""Batch norm that nothing could be folded into: each channel scaled, and shifted by a stored number."""

import torch
from torch import nn
from torch.fx import Node

from fxq.graph.kinds import module_of, shape_of
from fxq.integer.grid import Grid, Term
from fxq.integer.writer import Writer
from fxq.registry import integer_form

# Of the shifts: what is added up is rounded to 8 bits behind it.
_SHIFT_BITS = 24


@integer_form("batch_norm")
class IntegerBatchNorm:
    """``x * gamma / sqrt(var + eps) + (beta - mean * gamma / sqrt(var + eps))``: one term for x, one for the rest."""

    def why_not(self, node: Node) -> str | None:
        """Return that it normalizes by the batch, or that the number of dimensions is not known."""
        module = module_of(node)
        if getattr(module, "running_mean", None) is None:
            return "it normalizes by the statistics of the batch"
        return "give prepare() example_inputs: the shape of its input is not known" if shape_of(node) is None else None

    def codes(self, writer: Writer, node: Node, grid: Grid) -> Node:
        """Requantize both terms."""
        return writer.requantize(self.terms(writer, node), grid, node)

    def terms(self, writer: Writer, node: Node) -> list[Term]:
        """Return both."""
        module, shape = module_of(node), shape_of(node)
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        assert module.running_mean is not None
        assert module.running_var is not None
        assert shape is not None
        with torch.no_grad():
            scale_c = 1 / torch.sqrt(module.running_var.double().cpu() + module.eps)
            scale_c = scale_c if module.weight is None else scale_c * module.weight.double().cpu()
            shift_c = -module.running_mean.double().cpu() * scale_c
            shift_c = shift_c if module.bias is None else shift_c + module.bias.double().cpu()
        axis = 1 - len(shape)
        source = writer.single(node.all_input_nodes[0])
        scaled = Term(source.node, source.zero_point, source.scale * scale_c, source.bound.expand(len(scale_c)), axis)
        return [scaled, writer.constant(node, shift_c.reshape(-1, *[1] * (-axis - 1)), _SHIFT_BITS)]
