"""Lower LSTMCell, GRUCell and RNNCell: two linear layers on stored integer weights, and the gates in float."""

from torch.fx import Node

from fxq.nn import QuantGRUCell, QuantLSTMCell, QuantRNNCell
from fxq_passes.lowering.inline import lower_by_inlining
from fxq_passes.lowering.qdq import Lowering


def lower_cell(lowering: Lowering, node: Node, layer: QuantLSTMCell | QuantGRUCell | QuantRNNCell) -> None:
    """Replace a call of ``layer`` by the operations of its forward.

    Raises:
        GraphError: shapes are not known.
    """
    lower_by_inlining(lowering, node, layer)
