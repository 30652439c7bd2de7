"""Convolutions whose output is quantized although what reads it computes in float.

An integer kernel that writes codes wants a quantizer behind the convolution (ONNX Runtime's QLinearConv), whatever
comes then. What a norm reads, itself or behind the sums of a residual stream, has one range for all channels there, and
the norm makes as much of the small channels as of the large. An activation in float does not: there small channels stay
small, and a range for each channel mostly takes room from values that calibration did not see, for next to nothing. It
is another matter where a layer behind it tells channels apart, as depthwise convolutions do: a PP-LCNet, whose hard
swishes stand between them, has 26 dB with such ranges and 10 without.
"""

from collections import Counter
from dataclasses import dataclass, replace

from torch.fx import Node

from fxq import Rewriter
from fxq.graph import MOVES_DATA, is_quantizer, is_weighted, kind, planned_inputs, shape_of
from fxq.graph.kinds import reads_shape
from fxq_passes.accuracy.channel_axes import CARRIERS, carried_axis
from fxq_passes.accuracy.channel_groups import UsableLayers
from fxq_passes.accuracy.elementwise import Elementwise, activations_behind
from fxq_passes.accuracy.layer_matrix import LayerMatrix

_SUMS = frozenset({"add", "sub"})
_MOVERS = CARRIERS & MOVES_DATA


@dataclass(frozen=True)
class ReadInFloat:
    """The output of a convolution that is quantized, and read in float: by norms and sums, or by activations.

    Args:
        producer: the convolution, whose weight may be changed.
        quantizer: the last one behind it, which the search asks.
        last: it, or what moves its values: what the readers read.
        axis: the dimension of ``last`` that counts channels, from the end.
        behind: what is elementwise behind it, where activations read it.
    """

    producer: Node
    quantizer: Node
    last: Node
    axis: int
    behind: Elementwise | None = None


def outputs_read_in_float(rw: Rewriter, usable: UsableLayers) -> list[ReadInFloat]:
    """Return them in graph order."""
    followed = [_followed(rw, node, usable) for node in rw.nodes(is_weighted) if not usable.why_not(node)]
    found = [_in_float(rw, one) for one in followed if one is not None]
    return [one for one in found if one is not None]


def _in_float(rw: Rewriter, output: ReadInFloat) -> ReadInFloat | None:
    """Return ``output``, with what is behind where activations read it; None where something else does."""
    readers = _readers(output.last)
    if all(_normalizes(rw, node) for node in readers):
        return output
    behind = activations_behind(rw, output.quantizer) if output.last is output.quantizer else None
    if behind is None or not all(node in behind.nodes and not planned_inputs(node) for node in readers):
        return None
    return replace(output, behind=behind)


def _followed(rw: Rewriter, producer: Node, usable: UsableLayers) -> ReadInFloat | None:
    """Go on from a convolution while one node reads, and quantizes or moves."""
    matrix, shape = LayerMatrix.of(rw.module(producer)), shape_of(producer)
    dims = rw.module(producer).weight.dim() - 2
    if matrix is None or shape is None or dims < 1 or len(shape) != dims + 2:
        return None
    axis, last, quantizers = 1, producer, list[Node]()
    while len(readers := _readers(last)) == 1:
        (reader,) = readers
        if is_quantizer(reader):
            if not _has_one_fitted_range(rw, reader):
                return None
            quantizers.append(reader)
        else:
            moved = carried_axis(reader, axis) if kind(reader) in _MOVERS else None
            if moved is None:
                break
            axis = moved
        last = reader
    after, calls = shape_of(last), Counter(str(one.target) for one in quantizers)
    if not calls or after is None or any(usable.calls[path] > count for path, count in calls.items()):
        return None  # nothing is quantized, or a range is that of other tensors too
    return ReadInFloat(producer, quantizers[-1], last, axis - len(after))


def _readers(node: Node) -> list[Node]:
    """Return what reads the values of ``node``, not its shape alone."""
    return [reader for reader in node.users if not reads_shape(reader)]


def _has_one_fitted_range(rw: Rewriter, node: Node) -> bool:
    quantizer = rw.module(node)
    is_fitted = quantizer.calibrator is not None and quantizer.is_enabled
    return is_fitted and quantizer.descriptor.axis is None


def _normalizes(rw: Rewriter, node: Node) -> bool:
    """Return whether ``node`` is a norm in float, or a sum in float that one reads, behind other sums or not."""
    if kind(node) in MOVES_DATA or (kind(node) in _SUMS and planned_inputs(node)):
        return False
    waiting, seen = [node], {node}
    while waiting:
        node = waiting.pop()
        if kind(node) in rw.target.float_readers:
            return True
        if kind(node) in _SUMS | MOVES_DATA:
            waiting += [reader for reader in node.users if reader not in seen]
            seen.update(node.users)
    return False
