"""How many multiplications each operation of a graph takes, counted by torch while it runs."""

from torch import Tensor, nn, no_grad
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from fxq.batches import Inputs
from fxq.graph.kinds import module_of
from fxq.graph.streams import by_placeholder, function_of, last_reads


def count_multiplications(gm: GraphModule, inputs: Inputs) -> dict[Node, int]:
    """Return those of convolutions, products of matrices and recurrent layers for ``inputs``, by node."""
    given, dying = by_placeholder(gm, inputs), last_reads(list(gm.graph.nodes))
    values, found = {}, {}
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            values[node] = pytree.tree_map_only(Tensor, Tensor.clone, given[node.name])
        else:
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            with FlopCounterMode(display=False) as counter, no_grad():
                values[node] = function_of(gm, node, {})(*args, **kwargs)
            found[node] = counter.get_total_flops() // 2 or _of_recurrent(node, values[node])
        for read in dying.get(node, ()):
            values.pop(read, None)
    return found


def _of_recurrent(node: Node, result: object) -> int:
    """Return those of a recurrent layer, which torch does not count on a CPU: each weight once a step and sample."""
    module = module_of(node) if node.op == "call_module" else None
    output = pytree.tree_leaves(result)[0]
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase) or not isinstance(output, Tensor):
        return 0
    weights = sum(weight.numel() for weight in module.parameters() if weight.dim() > 1)
    return weights * (output.numel() // output.shape[-1])
