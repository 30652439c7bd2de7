"""A pass of one's own: the multiplication by a number behind a layer moves into the layer's weights.

Networks for super-resolution scale their residuals, ``x + 0.1 * conv(x)``. Folded, the convolution and the add are
neighbours, and a target that fuses the two finds them.
"""

from dataclasses import dataclass

from torch import nn
from torch.fx import Node

import fxq
from fxq.graph import has_one_reader, is_weighted, kind


@fxq.register_pass("fold_scaling")
@dataclass(frozen=True)
class FoldScaling(fxq.Pass):
    """Fold the multiplication by a number behind a convolution or linear layer into its weights.

    Args:
        largest: leave factors of a larger magnitude alone.
    """

    stage = fxq.Stage.NORMALIZED
    largest: float = 100.0

    def run(self, rw: fxq.Rewriter) -> None:
        """Fold each ``layer(x) * number``, or say why not."""
        for mul in rw.nodes(lambda node: kind(node) == "mul"):
            factor = next((argument for argument in mul.args if isinstance(argument, int | float)), None)
            call = mul.all_input_nodes[0]
            if factor is None or not is_weighted(call):
                continue
            reason = self._why_not(rw, call, factor)
            if reason is not None:
                rw.skip(mul, reason)
                continue
            layer = rw.module(call)
            layer.weight = nn.Parameter(layer.weight.detach() * factor)
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.detach() * factor)
            rw.bypass(mul, f"times {factor}, folded into {call.target!r}")

    def _why_not(self, rw: fxq.Rewriter, call: Node, factor: float) -> str | None:
        if abs(factor) > self.largest:
            return f"the factor {factor} is larger than largest={self.largest}"
        if not has_one_reader(call):
            return f"{call.target!r} has {len(call.users)} readers; folding would change the others"
        calls = rw.nodes(lambda node: node.op == "call_module" and rw.module(node) is rw.module(call))
        return f"{call.target!r} is called {len(calls)} times" if len(calls) > 1 else None
