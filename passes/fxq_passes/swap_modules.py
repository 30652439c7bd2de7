"""Layers with weights become quantized ones, with a weight quantizer each."""

from dataclasses import dataclass
from typing import Any

from torch.fx import Node
from torch.nn.utils.parametrize import is_parametrized

from fxq import Pass, QuantDescriptor, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import is_weighted, kind
from fxq.nn import QUANTIZED


@dataclass(frozen=True)
class _Twin:
    """What the first of several modules with one weight tensor decided for the others."""

    path: str
    descriptor: QuantDescriptor
    quantizer: TensorQuantizer


@register_pass("swap_modules")
@dataclass(frozen=True)
class SwapModules(Pass):
    """Swap convolutions and linear layers for quantized ones; weights tied between modules get one quantizer.

    Args:
        min_channels: leave convolutions with fewer input or output channels in float.
        depthwise: also swap depthwise convolutions, which some targets run no faster in int8.
    """

    stage = Stage.NORMALIZED
    min_channels: int = 0
    depthwise: bool = True

    def run(self, rw: Rewriter) -> None:
        """Swap each module once, whatever the number of its calls."""
        twins: dict[int, _Twin] = {}
        done: set[str] = set()
        for node in rw.nodes(is_weighted):
            path, module = str(node.target), rw.module(node)
            if path in done:
                continue
            done.add(path)
            reason = self._why_not(rw, node, module)
            if reason is not None:
                rw.skip(node, reason)
                continue
            descriptor = _weight_descriptor(rw, node)
            swapped = QUANTIZED[type(module)].from_float(module, weight=descriptor)
            swapped.weight_quantizer.disable()  # until attach_observers: this pass changes no numbers
            why = f"weight: {descriptor}"
            twin = twins.setdefault(id(module.weight), _Twin(path, descriptor, swapped.weight_quantizer))
            if twin.path != path and twin.descriptor == descriptor:
                swapped._modules["_weight_quantizer"] = twin.quantizer
                why += f"; shared with {twin.path!r}, whose weight it is too"
            rw.replace_module(path, swapped, why)

    def _why_not(self, rw: Rewriter, node: Node, module: Any) -> str | None:
        if rw.config(node) is None:
            return f"rule {rw.settings.rule_for(node)} leaves it in float"
        if type(module) in QUANTIZED.values():
            return "already quantized by hand"
        if type(module) not in QUANTIZED:
            if is_parametrized(module):
                return "its weight is computed: call torch.nn.utils.parametrize.remove_parametrizations first"
            return f"{type(module).__name__} is a subclass that may compute something else than its base"
        readers = rw.nodes(lambda other: other.op == "get_attr" and str(other.target).startswith(f"{node.target}."))
        if readers:
            return f"{readers[0].target!r} is also read outside of it, where integers would be no use"
        if kind(node) == "linear":
            return None
        channels = min(module.in_channels, module.out_channels)
        if channels < self.min_channels:
            return f"{channels} channels are fewer than min_channels={self.min_channels}"
        if not self.depthwise and module.groups == module.in_channels > 1:
            return "depthwise=False leaves depthwise convolutions in float"
        return None


def _weight_descriptor(rw: Rewriter, node: Node) -> QuantDescriptor:
    config = rw.config(node)
    assert config is not None
    assert config.weight is not None
    rule = rw.settings.rule_for(node)
    rw.target.check_weight(
        config.weight, f"{node.target!r} ({f'rule {rule}' if rule else 'the default of the recipe'})"
    )
    if config.weight.axis is None:
        return config.weight
    return config.weight.replace(axis=rw.target.conv_transpose_axis if kind(node) == "conv_transpose" else 0)
