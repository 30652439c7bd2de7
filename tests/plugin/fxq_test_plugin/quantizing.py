"""Passes that quantize layers the built-in ones leave in float: the natural way, and the old way, which is refused."""

from dataclasses import dataclass

from torch import nn

import fxq
from fxq.graph import is_weighted


@fxq.register_pass("plan_leftovers")
@dataclass(frozen=True)
class PlanLeftovers(fxq.Pass):
    """Plan input and weight of each layer that nothing is planned for yet."""

    stage = fxq.Stage.PLANNED

    def run(self, rw: fxq.Rewriter) -> None:
        """Plan both: one without the other is of no use."""
        for node in rw.nodes(is_weighted):
            rw.plan_inside(node, "weight", rw.target.weight, why="my own kernel takes it")
            rw.plan_input(node, 0, rw.target.activation, why="my own kernel takes it")


@fxq.register_pass("swap_linear_switched_off")
@dataclass(frozen=True)
class SwapLinearSwitchedOff(fxq.Pass):
    """Swap linear layers and leave their quantizers off, for somebody else to switch on.

    Args:
        off: the method that switches one off.
    """

    stage = fxq.Stage.NORMALIZED
    off: str = "disable"

    def run(self, rw: fxq.Rewriter) -> None:
        """Do what built-in passes once did."""
        for node in rw.nodes(lambda node: is_weighted(node) and type(rw.module(node)) is nn.Linear):
            layer = fxq.nn.QuantLinear.from_float(rw.module(node), weight=rw.target.weight)
            getattr(layer.weight_quantizer, self.off)()
            rw.replace_module(str(node.target), layer, "swapped by hand")
