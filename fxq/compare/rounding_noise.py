"""How much a quantized model answers to rounding alone: what any two correct runtimes may differ by.

Each float operator's result is moved by a few units in the last place of its largest value, which is what another
order of summation does. In a trained model a few codes flip and little happens. In an untrained deep one the flips
feed each other until most of the output is noise; then no comparison of runtimes can be closer than that.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxq.compare.outputs import named_leaves
from fxq.graph.match import is_quantizer
from fxq.graph.stored import stored_tensor
from fxq.quant import DEQUANTIZE, LOWERED_OPS, lowered_kind
from fxq.quant.ops.requantize import REQUANTIZE

_PRODUCTS = (functional.linear, torch.matmul, operator.matmul)
_HALF_A_STEP = 0.5 / 127


@dataclass(frozen=True)
class Noise:
    """How far rounding moves what a graph computes.

    Args:
        units: each float result, in units in the last place of its largest value.
        fuses: layers become integer kernels. The bias of one that reads codes and has a stored integer weight becomes
            int32, in steps of input x weight; what one with such a weight reads in float is rounded to 8 bits.
    """

    units: float
    fuses: bool = False


# Another order of summation: a float32 convolution is off by about two units.
REORDERED = Noise(2.0)
# A bias that becomes int32 moves by up to half of input step x weight step: some thousandths of the output's own step.
LOWERED = Noise(256.0)
# ONNX Runtime's fusions make such biases too, and its MatMulNBits rounds what it reads (export/stored_weights.py).
# Where weights have few codes their steps are large, and so are those of biases: no constant is right for all.
FUSED = Noise(256.0, fuses=True)


def run_with_rounding_noise(
    gm: fx.GraphModule, inputs: tuple[Any, ...], seed: int, noise: Noise = REORDERED
) -> list[tuple[str, Tensor]]:
    """Return the named outputs of ``gm`` with every float result slightly moved; the same for the same ``seed``.

    Args:
        gm: the graph module.
        inputs: positional; not modified by fxq, but the model may.
        seed: of the noise.
        noise: how far.
    """
    return named_leaves(_Noisy(gm, seed, noise).run(*inputs), "output", Tensor)


class _Noisy(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, seed: int, noise: Noise) -> None:
        super().__init__(gm)
        self.noise = noise
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "get_attr":
            return stored_tensor(n)
        # Not by the base class, which notes for tracebacks where it is: that takes longer than most nodes.
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = getattr(self, n.op)(n.target, args, kwargs)
        row = LOWERED_OPS.get(n.target)
        computes = n.op in ("call_function", "call_module", "call_method")
        if not computes or is_quantizer(n) or (row is not None and row.is_exact):
            return result
        return self._moved(result) if type(result) is Tensor else pytree.tree_map_only(Tensor, self._moved, result)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        if self.noise.fuses and _reads_only_weight_in_integers(n):
            return (self._shaken(args[0], _HALF_A_STEP), *args[1:]), kwargs
        if self.noise.fuses and _has_float_bias(n):
            step = self._step(n.args[0]) * self._step(n.args[1])
            return (*args[:2], (args[2] / step).round() * step, *args[3:]), kwargs
        if n.target is REQUANTIZE:
            # A runtime multiplies these sums in float32, which holds 24 of the 31 bits of a multiplier.
            share = 2 * torch.finfo(torch.float32).eps
            shaken = [self._shaken(one.double(), share).round().to(one.dtype) for one in args[2]]
            return (*args[:2], shaken, *args[3:]), kwargs
        return args, kwargs

    def _step(self, dequantize: Any) -> Tensor:
        """Return the scale of a dequantize, shape () or (channels,)."""
        return stored_tensor(dequantize.args[1])

    def _moved(self, result: Tensor) -> Tensor:
        if not result.is_floating_point() or not result.numel():
            return result
        return self._shaken(result, torch.finfo(result.dtype).eps * self.noise.units)

    def _shaken(self, value: Tensor, share: float) -> Tensor:
        """Move each element by up to ``share`` of the largest one."""
        noise = torch.empty(value.shape, dtype=torch.float32, device="cpu").uniform_(-1, 1, generator=self.generator)
        return noise.to(value).mul_(value.abs().max() * share).add_(value)


def _has_float_bias(node: fx.Node) -> bool:
    """Return whether a layer reads codes, stored and not, and adds a stored bias that is no integer yet."""
    if len(node.args) < 3 or not _is_stored(node.args[2]):
        return False
    data, weight = node.args[:2]
    is_pair = all(isinstance(one, fx.Node) and one.target is DEQUANTIZE for one in (data, weight))
    return is_pair and _is_stored(weight.args[0])  # type: ignore[union-attr]


def _is_stored(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _reads_only_weight_in_integers(node: fx.Node) -> bool:
    if node.target not in _PRODUCTS or len(node.args) < 2:
        return False
    value, weight = node.args[:2]
    assert isinstance(value, fx.Node)
    has_codes = isinstance(weight, fx.Node) and lowered_kind(weight.target) == "dequantize"
    return has_codes and lowered_kind(value.target) != "dequantize" and _is_stored(weight.args[0])  # type: ignore[union-attr]
