"""How much a quantized model answers to rounding alone: what any two correct runtimes may differ by.

Each float operator's result is moved by a few units in the last place of its largest value, which is what another
order of summation does. In a trained model a few codes flip and little happens. In an untrained deep one the flips
feed each other until most of the output is noise; then no comparison of runtimes can be closer than that.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxq.compare.outputs import named_leaves
from fxq.graph.match import is_quantizer
from fxq.quant import LOWERED_OPS

# Two units in the last place of the largest value; a float32 convolution in another order is off by about as much.
UNITS_IN_THE_LAST_PLACE = 2.0


# A bias that becomes int32 moves by up to half of input step x weight step: some thousandths of the output's own step.
UNITS_OF_LOWERING = 256.0


def run_with_rounding_noise(
    gm: fx.GraphModule, inputs: tuple[Any, ...], seed: int, units: float = UNITS_IN_THE_LAST_PLACE
) -> list[tuple[str, Tensor]]:
    """Return the named outputs of ``gm`` with every float result slightly moved; the same for the same ``seed``.

    Args:
        gm: the graph module.
        inputs: positional; not modified by fxq, but the model may.
        seed: of the noise.
        units: how far, in units in the last place of the largest value.
    """
    return named_leaves(_Noisy(gm, seed, units).run(*inputs), "output", Tensor)


class _Noisy(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, seed: int, units: float) -> None:
        super().__init__(gm)
        self.units = units
        self.generator = torch.Generator().manual_seed(seed)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        row = LOWERED_OPS.get(n.target)
        computes = n.op in ("call_function", "call_module", "call_method")
        exact = not computes or is_quantizer(n) or (row is not None and row.is_exact)
        return result if exact else pytree.tree_map_only(Tensor, self._moved, result)

    def _moved(self, result: Tensor) -> Tensor:
        if not result.is_floating_point() or not result.numel():
            return result
        step = result.abs().max() * torch.finfo(result.dtype).eps * self.units
        noise = torch.rand(result.shape, generator=self.generator).to(result) * 2 - 1
        return result + noise * step
