"""What the pass that swaps modules asks about those that only some calls and options can lower."""

from typing import Any

from torch.fx import Node

from fxq.graph import kind
from fxq_passes.lowering.embedding import why_not_embedding
from fxq_passes.lowering.recurrent import why_not_recurrent

_INLINED = frozenset({"multihead_attention", "lstm_cell", "gru_cell", "rnn_cell"})


def why_not_lowered(node: Node, module: Any) -> str | None:
    """Return why a call of ``module`` has no lowered form, so that it stays in float; None if it has one."""
    found = kind(node)
    if found in ("lstm", "gru", "rnn"):
        return why_not_recurrent(node, module)
    if found == "embedding":
        return "sparse gradients do not pass a quantizer" if module.sparse else why_not_embedding(module)
    if found in _INLINED and any("val" not in producer.meta for producer in node.all_input_nodes):
        return "it is written out for the shapes of its inputs: give fxq.prepare() example_inputs"
    return None
