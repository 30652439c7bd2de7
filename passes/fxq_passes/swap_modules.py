"""Layers with weights become quantized ones, with a weight quantizer each."""

import itertools
from dataclasses import dataclass
from typing import Any

from torch.fx import Node
from torch.nn.utils.parametrize import is_parametrized

from fxq import Pass, QuantDescriptor, Rewriter, Stage, TensorQuantizer, register_pass
from fxq.graph import is_weighted, kind
from fxq.nn import QUANTIZED, ManyQuantized, Quantized, WeightQuantized
from fxq_passes.planning.plan_questions import (
    activation_descriptor,
    check_activation,
    check_placed_by_hand,
    weight_descriptor,
)
from fxq_passes.planning.swap_questions import why_not_lowered


@dataclass(frozen=True)
class _Twin:
    """What the first of several modules with one weight tensor decided for the others."""

    path: str
    descriptor: QuantDescriptor
    quantizer: TensorQuantizer


@register_pass("swap_modules")
@dataclass(frozen=True)
class SwapModules(Pass):
    """Swap the layers whose weights the target stores as integers, and any other module that a rule gives a QConfig.

    Such others are poolings and instance norms for all targets, embeddings, recurrent layers and attention for those
    that do not store them as integers anyway. Weights tied between modules get one quantizer.

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
        read_outside = _read_outside(rw)
        for node in rw.nodes(lambda node: node.op == "call_module"):
            path, module = str(node.target), rw.module(node)
            check_placed_by_hand(rw, node)
            if path in done or not _is_meant(rw, node, module):
                continue
            done.add(path)
            reason = self._why_not(rw, node, module, read_outside.get(path))
            if reason is not None:
                rw.skip(node, reason)
                continue
            swapped, why = _swapped(rw, node, module)
            for found in swapped.modules():
                if isinstance(found, TensorQuantizer):
                    found.disable()  # until attach_observers: this pass changes no numbers
            if isinstance(swapped, WeightQuantized):
                why += _share_with_twin(twins, path, swapped)
            rw.replace_module(path, swapped, why)

    def _why_not(self, rw: Rewriter, node: Node, module: Any, read: str | None) -> str | None:
        if rw.config(node) is None:
            return f"rule {rw.settings.rule_for(node)} leaves it in float"
        if isinstance(module, Quantized):
            return "already quantized by hand"
        if type(module) not in QUANTIZED:
            if is_parametrized(module):
                return "its weight is computed: call torch.nn.utils.parametrize.remove_parametrizations first"
            return f"{type(module).__name__} is a subclass that may compute something else than its base"
        if read is not None:
            return f"{read!r} is also read outside of it, where integers would be no use"
        if not is_weighted(node):
            return _why_no_input(rw, node, module) or why_not_lowered(node, module)
        return None if kind(node) == "linear" else self._why_not_conv(module)

    def _why_not_conv(self, module: Any) -> str | None:
        channels = min(module.in_channels, module.out_channels)
        if channels < self.min_channels:
            return f"{channels} channels are fewer than min_channels={self.min_channels}"
        if not self.depthwise and module.groups == module.in_channels > 1:
            return "depthwise=False leaves depthwise convolutions in float"
        return None


def _read_outside(rw: Rewriter) -> dict[str, str]:
    """Return, for each module path, the first tensor below it that the graph reads without calling the module."""
    first: dict[str, str] = {}
    for node in rw.nodes(lambda node: node.op == "get_attr"):
        target = str(node.target)
        for parent in itertools.accumulate(target.split(".")[:-1], "{}.{}".format):
            first.setdefault(parent, target)
    return first


def _is_meant(rw: Rewriter, node: Node, module: Any) -> bool:
    """Return whether the target swaps modules of this kind, or a rule asks for this one."""
    if kind(node) in rw.target.swapped_kinds:
        return True
    return type(module) in QUANTIZED and rw.settings.is_requested(node, has_weight=_has_weight(module))


def _has_weight(module: Any) -> bool:
    return issubclass(QUANTIZED[type(module)], WeightQuantized | ManyQuantized)


def _why_no_input(rw: Rewriter, node: Node, module: Any) -> str | None:
    """Return why a module without weights gains nothing, None if it has a weight or its input can be quantized."""
    if _has_weight(module):
        return None
    if rw.target.activation is None:
        return f"it has no weight, and {rw.target.name} leaves activations in float"
    if rw.target.is_dynamic and not rw.target.quantizes_inputs(kind(node)):
        return f"{rw.target.name} has no integer {kind(node)}"
    return None


def _swapped(rw: Rewriter, node: Node, module: Any) -> tuple[Quantized, str]:
    """Return the quantized module for ``module``, and what was quantized."""
    quantized = QUANTIZED[type(module)]
    check_activation(rw, node)
    if not _has_weight(module):
        descriptor = activation_descriptor(rw, node)
        return quantized.from_float(module, input=descriptor), f"input: {descriptor}"
    channels = rw.target.conv_transpose_axis if kind(node) == "conv_transpose" else 0
    weight = weight_descriptor(rw, node, channels)
    if rw.target.quantizes_inputs(kind(node)):
        if not issubclass(quantized, ManyQuantized):  # its input quantizer stands in the graph, for all that read it
            return quantized.from_float(module, weight=weight), f"weight: {weight}"
        inside = activation_descriptor(rw, node)
        return quantized.from_float(module, weight=weight, input=inside), f"weights: {weight}; inside: {inside}"
    why = rw.target.reason(kind(node)) or "computed in float"
    return quantized.from_float(module, weight=weight), f"weight: {weight}; {why}"


def _share_with_twin(twins: dict[int, _Twin], path: str, swapped: WeightQuantized) -> str:
    """Give modules with one weight tensor and equal descriptors one quantizer; return what to say about it."""
    quantizer = swapped.weight_quantizer
    twin = twins.setdefault(id(swapped.weight), _Twin(path, quantizer.descriptor, quantizer))
    if twin.path == path or twin.descriptor != quantizer.descriptor:
        return ""
    swapped._modules["_weight_quantizer"] = twin.quantizer
    return f"; shared with {twin.path!r}, whose weight it is too"
