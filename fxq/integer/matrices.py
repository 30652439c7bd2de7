"""What is linear along each spatial dimension by itself: averages and interpolation, as one matrix of integers each.

The operation runs on a unit matrix, in one dimension; its rows become integers of a common step. Averages are exact:
1 / 4 and 1 / 6 are 3 and 2 steps of 1 / 12. Weights of an interpolation are rounded.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from fxq.errors import GraphError
from fxq.integer.grid import Term
from fxq.integer.writer import Writer, described
from fxq.quant.ops.integer_layers import INTEGER_LINEAR

# Integers that are added up keep at least so many.
_LEAST_BITS = 8


def response(size: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the matrix, float64 (out, size), of a linear function of (batch, 1, size)."""
    with torch.no_grad():
        return function(torch.eye(size, dtype=torch.float64).unsqueeze(1)).squeeze(1).T.contiguous()


def as_average(matrix: Tensor) -> tuple[Tensor, float]:
    """Return the integers and the step of a matrix whose rows are averages of a window: entries 0 and 1 / count."""
    counts = [round(1 / float(row.max())) for row in matrix if bool(row.any())]
    common = math.lcm(*counts)
    return torch.round(matrix * common), 1 / common


def as_rounded(matrix: Tensor, bits: int) -> tuple[Tensor, float]:
    """Return a matrix in steps of 2^-bits."""
    return torch.round(matrix * 2**bits), 2.0**-bits


def along_each(writer: Writer, node: Node, matrices: Sequence[tuple[int, Tensor, float]]) -> Term:
    """Return the sums of what ``node`` reads along dimensions, one after the other.

    Args:
        writer: writes them.
        node: the operation; the first tensor that it reads is summed up.
        matrices: (dimension, integers, step) each.
    """
    source = node.all_input_nodes[0]
    term = writer.single(source)
    for dim, matrix, step in matrices:
        gain = float(matrix.abs().sum(1).max())
        room = math.floor(31 - math.log2(gain))
        if room < _LEAST_BITS:
            raise GraphError(f"to_integer: {described(node)} averages windows too large, or too unlike, for int32 sums")
        term = writer.fitting(term, room, source)
        dtype = torch.int8 if bool(matrix.abs().max() < 128) else torch.int32
        stored = writer.store(node, f"{writer.place(node)}.matrix", matrix.to(dtype))
        sums = writer.insert(INTEGER_LINEAR, (term.node, term.zero_point, stored, None, None, dim), node, None)
        term = Term(sums, 0, term.scale * step, term.bound * gain)
    return term
