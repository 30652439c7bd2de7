"""A graph as text: stable, short, made to be compared in tests and read by people.

One line a node: ``name = Type[path](inputs)`` for a module, ``name = function(inputs)`` otherwise, and behind a hash
what is planned: ``# input 1: int8 per tensor (residual)``.
"""

from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxq.graph.kinds import module_of
from fxq.graph.plan import planned_inputs, planned_inside, planned_output
from fxq.nn import Quantized


def graph_text(gm: GraphModule) -> str:
    """Return the graph as text, nodes in order."""
    return "\n".join(_line(node) for node in gm.graph.nodes)


def _line(node: Node) -> str:
    comment = "; ".join(_plans(node))
    return f"{_statement(node)}  # {comment}" if comment else _statement(node)


def _statement(node: Node) -> str:
    if node.op == "placeholder":
        return f"{node.name} = input"
    if node.op == "output":
        return f"return {_text(node.args[0])}"
    if node.op == "get_attr":
        return f"{node.name} = self.{node.target}"
    arguments = [_text(argument) for argument in node.args]
    arguments += [f"{name}={_text(value)}" for name, value in node.kwargs.items()]
    return f"{node.name} = {_callee(node)}({', '.join(arguments)})"


def _callee(node: Node) -> str:
    if node.op == "call_module":
        return f"{type(module_of(node)).__name__}[{node.target}]"
    if node.op == "call_method":
        return f".{node.target}"
    name = str(getattr(node.target, "__name__", node.target))
    return name.removesuffix(".default")


def _plans(node: Node) -> list[str]:
    found = [
        f"input {position}: {plan.descriptor}{'' if plan.role == 'input' else f' ({plan.role})'}"
        for position, plan in sorted(planned_inputs(node).items())
    ]
    if node.op == "call_module" and not isinstance(module_of(node), Quantized):  # its name tells what was carried out
        found += [f"{slot}: {plan.descriptor}" for slot, plan in planned_inside(node).items()]
    output = planned_output(node)
    return found if output is None else [*found, f"output: {output.descriptor}"]


def _text(argument: Any) -> str:
    return str(map_arg(argument, lambda node: _Name(node.name)))


class _Name(str):
    """A node's name that prints without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
