"""Coverage: how many of the layers that cost time compute with integers, and which do not."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from fxq.graph.kinds import module_kind, module_of
from fxq.graph.observers import activation_quantizers
from fxq.kinds import WEIGHTED_KINDS
from fxq.nn import Quantized

_LAYERS = WEIGHTED_KINDS - {"matmul", "embedding"}
_FUNCTIONS: frozenset[Any] = frozenset({
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    torch.conv1d, torch.conv2d, torch.conv3d, torch.convolution,
})  # fmt: skip
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Coverage:
    """The convolutions, linear, recurrent and attention layers of a model.

    Args:
        quantized: paths of those with quantized weights.
        in_float: paths of those without; a function's node, where no module is called.
        codes: what the weights of the former are, such as "int8".
    """

    quantized: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()
    codes: str = ""

    @property
    def total(self) -> int:
        """How many layers there are."""
        return len(self.quantized) + len(self.in_float)

    def __str__(self) -> str:
        if not self.total:
            return "there is no convolution or linear layer"
        kept = ", ".join(self.in_float[:_MOST_SHOWN])
        more = f" and {len(self.in_float) - _MOST_SHOWN} more" if len(self.in_float) > _MOST_SHOWN else ""
        rest = f"; float: {kept}{more}" if self.in_float else ""
        codes = f" in {self.codes}" if self.quantized else " quantized"
        return f"{len(self.quantized)} of {self.total} convolutions and linear layers{codes}{rest}"


def coverage_of(prepared: GraphModule) -> Coverage:
    """Return which layers of a prepared model have quantized weights, those inside of opaque modules included."""
    quantized: dict[str, None] = {}
    in_float: dict[str, None] = {}
    codes: set[str] = set()
    for node in prepared.graph.nodes:
        if node.op == "call_function" and node.target in _FUNCTIONS:
            in_float[node.name] = None
        for path, layer in layers_in(str(node.target), module_of(node)) if node.op == "call_module" else ():
            found = set(_codes(layer)) if isinstance(layer, Quantized) else set()
            codes |= found
            (quantized if found else in_float)[path] = None
    computes = bool(activation_quantizers(prepared))
    words = " and ".join(sorted(codes))
    return Coverage(tuple(quantized), tuple(in_float), words if computes else f"{words} weights, computed in float")


def _codes(layer: Quantized) -> Iterator[str]:
    """Yield what the codes of each weight are whose quantizer is on."""
    for _, _, quantizer in layer.weights():
        if quantizer.is_enabled and quantizer.is_quant_enabled:
            yield str(quantizer.descriptor).partition(" ")[0]


def layers_in(path: str, module: nn.Module, but: tuple[type[nn.Module], ...] = ()) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that a call of ``module`` computes, ``but`` those in some types; what a layer is made of is part
    of it.
    """
    if module_kind(module) in _LAYERS:
        yield path, module
        return
    for name, child in module.named_children():
        if not isinstance(child, but):
            yield from layers_in(f"{path}.{name}", child, but)
