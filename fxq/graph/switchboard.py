"""Switchboard: one calibrated model in which any groups of operations compute in float, without preparing it again.

A group in float reads unquantized tensors and has its quantizers off; where passes with data changed its weights, it
has those of the float model (as equivalent rewrites made them). With the ranges measured in float, as they are, that is
what ``prepare`` with a rule for the group gives; only what the planning passes do for its neighbours may differ.
"""

from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxq.graph.edges import read_instead
from fxq.graph.groups import Group, find_groups, is_left_in_float
from fxq.graph.kinds import module_of
from fxq.graph.match import is_quantizer
from fxq.graph.plan import planned_inside
from fxq.graph.streams import parameter_paths
from fxq.nn import TensorQuantizer
from fxq.targets.target import Target


class Switchboard:
    """Switches groups of a calibrated graph module, in place.

    Args:
        gm: a copy of the calibrated model, in eval mode; the switchboard's own from here on.
        target: the runtime it was prepared for.
        float_weights: those of the float model, by path; a parameter that it lacks adds nothing there.
    """

    def __init__(self, gm: GraphModule, target: Target, float_weights: Mapping[str, Tensor]) -> None:
        self.gm, self.groups = gm, [one for one in find_groups(gm, target) if not is_left_in_float(one)]
        self._inside = {group: _quantizers_inside(group) for group in self.groups}
        self._weights = _changed_weights(gm, float_weights)
        owned = {path: group for group in self.groups for node in group.nodes for path in _paths(node)}
        self._owners = {path: owned.get(path) for path in self._weights}

    def leave_in_float(self, groups: Collection[Group]) -> None:
        """Let these groups compute in float, and all others with integers."""
        in_float = set(groups)
        quantized = {edge for group in self.groups if group not in in_float for edge in group.readings}
        read: Counter[nn.Module] = Counter()
        for group in self.groups:
            for edge in group.readings:
                source = edge.producer.all_input_nodes[0]
                read_instead(edge, edge.producer if edge in quantized else source)
                read[module_of(edge.producer)] += edge in quantized
            for quantizer in self._inside[group]:
                _switch(quantizer, group not in in_float)
        for module, readings in read.items():
            _switch(module, readings > 0)  # one that nothing reads need not compute
        for path, (quantized_weight, float_weight) in self._weights.items():
            owner = self._owners[path]
            chosen = float_weight if owner is None or owner in in_float else quantized_weight
            self.gm.get_parameter(path).data = chosen
        self.gm.recompile()


def _quantizers_inside(group: Group) -> list[TensorQuantizer]:
    modules = {module_of(node) for node in group.nodes if planned_inside(node)}
    return [
        one for module in modules for one in module.modules() if isinstance(one, TensorQuantizer) and one.is_enabled
    ]


def _changed_weights(gm: GraphModule, float_weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, by path, the parameters that passes with data changed: as they are, and those of the float model."""
    found = {}
    for path, parameter in gm.named_parameters():
        own = parameter.detach()
        wanted = float_weights.get(path, torch.zeros_like(own))
        if own.shape == wanted.shape and not torch.equal(own, wanted):
            found[path] = own, wanted
    return found


def _paths(node: Node) -> list[str]:
    """Return the paths of the parameters that ``node`` computes with, those it reads through a quantizer too."""
    sources = [source.all_input_nodes[0] if is_quantizer(source) else source for source in node.all_input_nodes]
    return [*parameter_paths(node), *(str(source.target) for source in sources if source.op == "get_attr")]


def _switch(quantizer: nn.Module, is_on: bool) -> None:
    assert isinstance(quantizer, TensorQuantizer)
    (quantizer.enable_quant if is_on else quantizer.disable_quant)()
