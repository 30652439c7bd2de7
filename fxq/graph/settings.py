"""Settings: all that a pass may know beside the graph."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.fx import Node

from fxq.graph.kinds import kind, module_of
from fxq.graph.match import module_path, owner_path
from fxq.quant.qconfig import QConfig, Rule
from fxq.targets.target import Target


@dataclass(frozen=True)
class Settings:
    """What a run was asked for.

    Args:
        target: the runtime.
        default: descriptors where no rule matches; what it leaves open comes from the target.
        rules: ordered; the last match wins.
        calibrator: what observes activations.
        qat: the model will be trained after ``prepare``.
        example_inputs: positional inputs, None if the user gave none.
        within: path and type, in the user's model, of the modules around the part that is prepared, and last its own;
            rules name modules by their path there.
    """

    target: Target
    default: QConfig = field(default_factory=QConfig)
    rules: tuple[Rule, ...] = ()
    calibrator: str = "histogram"
    qat: bool = False
    example_inputs: tuple[Any, ...] | None = None
    within: tuple[tuple[str, type[nn.Module]], ...] = ()

    def rule_for(self, node: Node) -> Rule | None:
        """Return the last rule that matches ``node``, None if none does."""
        if not self.rules:
            return None
        path, function, module = self._names(node)
        # A function that became a module keeps its name, and the rules that were made for it.
        around = [(self._placed(name), type_) for name, type_ in _around(node)]
        around = [*self.within, *around, (function, nn.Module)]
        return next((rule for rule in reversed(self.rules) if rule.matches(path, module, around)), None)

    def is_requested(self, node: Node, has_weight: bool = False) -> bool:
        """Return whether a rule asks to quantize ``node``, which the target would not do by itself.

        A rule that names the node does, whatever its config; one for a part of the model only if it gives an activation
        descriptor or, to a node that ``has_weight``, a weight descriptor.
        """
        rule = self.rule_for(node)
        if rule is None or rule.config is None:
            return False
        path, function, module = self._names(node)
        if rule.names(path, module) or rule.names(function, module):
            return True
        return rule.config.activation is not None or (has_weight and rule.config.weight is not None)

    def config(self, node: Node, slot: str = "inputs", may_be_negative: bool = False) -> QConfig | None:
        """Return the full descriptors for ``node``, None if it stays in float.

        The activation's is that of ``slot``, "inputs" or "output", where only the target has a say, which may have
        another for tensors that may be negative.
        """
        rule = self.rule_for(node)
        chosen = self.default if rule is None else rule.config
        if chosen is None:
            return None
        found = kind(node)
        activation = (
            chosen.activation or self.default.activation or self.target.descriptor(found, slot, may_be_negative)
        )
        return QConfig(activation, chosen.weight or self.default.weight or self.target.descriptor(found, "weight"))

    def _names(self, node: Node) -> tuple[str, str, nn.Module | None]:
        """Return the path that rules know ``node`` by, that of the function it is or was, and the module it calls."""
        module = module_of(node) if node.op == "call_module" else None
        function = self._placed(f"{owner_path(node)}.{node.name}".lstrip("."))
        return self._placed(module_path(node)) if module is not None else function, function, module

    def _placed(self, path: str) -> str:
        return f"{self.within[-1][0]}.{path}" if self.within else path


def _around(node: Node) -> list[tuple[str, type[nn.Module]]]:
    """Return path and type of each module whose forward holds ``node``, and each prefix of the called module's path.

    The prefixes cover containers (Sequential, ModuleList) that tracing runs through without entering their forward.
    """
    found = [(str(path), type_) for path, type_ in node.meta.get("nn_module_stack", {}).values() if path]
    known = {path for path, _ in found}
    parts = module_path(node).split(".")
    prefixes = [".".join(parts[:count]) for count in range(1, len(parts))]
    return found + [(prefix, nn.Module) for prefix in prefixes if prefix not in known]
