"""Which tensors inside of modules are quantized: weights, and what layers such as attention compute in between."""

import itertools
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Node

from fxq import Rewriter, find_lowering
from fxq.graph import has_backward_hooks, is_weighted, kind, planned_inside, why_altered
from fxq.nn import ManyQuantized, Quantized, WeightQuantized, computed_tensors, quantized_type
from fxq_passes.planning.plan_questions import activation_descriptor, check_activation, weight_descriptor


@dataclass(frozen=True)
class LayerOptions:
    """What the user wants left in float: see PlanOps."""

    min_channels: int
    depthwise: bool


class LayerPlanner:
    """Plans the tensors inside of the modules that the target runs on integers."""

    def __init__(self, rw: Rewriter, options: LayerOptions) -> None:
        self.rw = rw
        self.options = options
        self._read_outside = _read_outside(rw)
        self._first_with: dict[int, str] = {}  # weight tensor -> path of the first module that was planned with it
        self._folded: dict[str, str] = {}  # by node: what was said of its weights when they were stored
        for entry in rw.record.of("fold_weights", "edit"):
            self._folded[entry.node] = f"{self._folded.get(entry.node, '')}; {entry.text}"

    def is_layer(self, node: Node) -> bool:
        """Return whether ``node`` calls a module whose inside the target, or a rule, wants quantized."""
        if node.op != "call_module":
            return False
        if self.rw.target.stores_integers(kind(node)):
            return True
        module = self.rw.module(node)
        quantized = quantized_type(module)
        return quantized is not None and self.rw.settings.is_requested(node, has_weight=_has_weight(quantized))

    def why_not(self, node: Node) -> str | None:
        """Return why the module of ``node`` stays as it is, None if it is planned."""
        rw, module = self.rw, self.rw.module(node)
        if rw.config(node) is None:
            return f"rule {rw.settings.rule_for(node)} leaves it in float"
        if isinstance(module, Quantized):
            return None if planned_inside(node) else "already quantized by hand"
        altered = why_altered(module) or ("has backward hooks" if rw.qat and has_backward_hooks(module) else None)
        if altered is not None:
            return f"{type(module).__name__} {altered}, which does not come along into integers: remove it first"
        if quantized_type(module) is None:
            computed = [f"{name} is {how}" for part in module.modules() for name, how in computed_tensors(part).items()]
            if computed:
                return f"its {computed[0]}, which in training only convolutions, linear layers and embeddings can be"
            return f"{type(module).__name__} is a subclass that may compute something else than its base"
        read = self._read_outside.get(str(node.target))
        if read is not None:
            return f"{read!r} is also read outside of it, where integers are no use: store a copy for the other reader"
        if not is_weighted(node):
            return _why_no_input(rw, node, module) or _why_not_lowered(node, module)
        return None if kind(node) == "linear" else self._why_not_conv(module)

    def plan(self, node: Node) -> None:
        """Plan the weights of the module, and what it computes in between where the target takes its input quantized.

        Raises:
            TargetError: the target cannot run what the recipe asks for.
        """
        rw, module = self.rw, self.rw.module(node)
        if isinstance(module, Quantized):
            return  # planned and swapped before
        quantized = quantized_type(module)
        assert quantized is not None  # why_not was asked
        check_activation(rw, node)
        if not _has_weight(quantized):
            rw.plan_inside(node, "input", activation_descriptor(rw, node), f"a rule asks for a quantized {kind(node)}")
            return
        is_integer = rw.target.has_integer_form(kind(node))
        why = "its weight" if is_integer else rw.target.reason(kind(node)) or "its weight; computed in float"
        channels = rw.target.weight_axis(kind(node))
        for slot in quantized.weight_slots(module):
            rw.plan_inside(node, slot, weight_descriptor(rw, node, channels), why + self._origin(node, module, slot))
        if is_integer and issubclass(quantized, ManyQuantized):
            self._plan_inside(node, module, quantized)

    def _origin(self, node: Node, module: nn.Module, slot: str) -> str:
        """Return what to say about where a weight comes from: it is computed, was, or is another layer's too."""
        computed = computed_tensors(module).get(slot)
        if computed is not None:
            return f", {computed} in each call, to be trained"
        first = self._first_with.setdefault(id(module.get_parameter(slot)), str(node.target))
        tied = "" if first == node.target else f", which is also that of {first!r}"
        return tied + self._folded.get(node.name, "")

    def _plan_inside(self, node: Node, module: nn.Module, quantized: type[Quantized]) -> None:
        in_float = frozenset() if self.rw.target.quantizes_inputs("matmul") else quantized.products
        for slot in quantized.activation_slots(module):
            if slot not in in_float:
                why = f"{self.rw.target.name} runs {kind(node)} on quantized tensors"
                is_signed = slot in quantized.products - {"softmax"}
                descriptor = activation_descriptor(self.rw, node, may_be_negative=is_signed)
                fixed = self.rw.target.fixed(slot)  # a slot called as a kind holds what such an operation gives
                if fixed is not None:
                    descriptor, why = fixed.applied(descriptor), f"{why}; {fixed.reason}"
                self.rw.plan_inside(node, slot, descriptor, why)

    def _why_not_conv(self, module: Any) -> str | None:
        channels = min(module.in_channels, module.out_channels)
        if channels < self.options.min_channels:
            return f"{channels} channels are fewer than min_channels={self.options.min_channels}"
        if not self.options.depthwise and module.groups == module.in_channels > 1:
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


def _has_weight(quantized: type[Quantized]) -> bool:
    return issubclass(quantized, WeightQuantized | ManyQuantized)


def _why_not_lowered(node: Node, module: Any) -> str | None:
    """Return why a call of ``module`` has no lowered form, so that it stays in float; None if it has one."""
    if kind(node) == "embedding" and module.sparse:
        return "sparse gradients do not pass a quantizer"
    found = find_lowering(module)
    return None if found is None else found.why_not(node, module)


def _why_no_input(rw: Rewriter, node: Node, module: nn.Module) -> str | None:
    """Return why a module without weights gains nothing, None if it has a weight or its input can be quantized."""
    quantized = quantized_type(module)
    if quantized is None or _has_weight(quantized):
        return None
    if rw.target.activation is None:
        return f"it has no weight, and {rw.target.name} leaves activations in float"
    if rw.target.is_dynamic and not rw.target.has_integer_form(kind(node)):
        return f"{rw.target.name} has no integer {kind(node)}"
    return None
