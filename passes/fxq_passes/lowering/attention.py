"""Lower multi-head attention: projections, products and softmax written out, each weight a stored integer tensor."""

from torch.fx import Node

from fxq.nn import QuantMultiheadAttention
from fxq_passes.lowering.inline import lower_by_inlining
from fxq_passes.lowering.qdq import Lowering


def lower_attention(lowering: Lowering, node: Node, layer: QuantMultiheadAttention) -> None:
    """Replace a call of ``layer`` by the operations of its forward; the packed projection becomes three.

    Query, key and value that are one tensor with one range are quantized once.

    Raises:
        GraphError: shapes are not known.
    """
    lower_by_inlining(lowering, node, layer)
