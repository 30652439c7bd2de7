"""Formulas: the operations that lead from one tensor to another, and the module in whose place they stand."""

from torch import Tensor, nn
from torch.fx import Node

from fxq import Rewriter


def replace_formula(rw: Rewriter, node: Node, source: Node, module: nn.Module, path: str) -> None:
    """Call ``module`` on ``source`` instead of ``node``, and erase the steps between that nothing else reads."""
    steps = sorted(step for step in _leading_to(node, source) if step.op != "get_attr" or step not in node.args)
    rw.call_module_instead(node, path, module, (source,), f"canonical form of a formula: nn.{type(module).__name__}")
    rw.erase_unread(steps)


def are_alike(source: Node, node: Node) -> bool:
    """Return whether both are floating-point tensors of one shape and dtype."""
    first, second = source.meta.get("val"), node.meta.get("val")
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or not second.is_floating_point():
        return False
    return first.shape == second.shape and first.dtype == second.dtype


def calls(node: Node, functions: tuple[object, ...]) -> bool:
    """Return whether ``node`` calls one of ``functions``; a string names a method."""
    return node.op in ("call_function", "call_method") and node.target in functions


def _leading_to(node: Node, source: Node) -> set[Node]:
    """Return the steps from ``source``, which is none of them, to ``node``, and the stored tensors that they read."""
    found, waiting = set[Node](), list(node.all_input_nodes)
    while waiting:
        step = waiting.pop()
        if step is not source and step not in found:
            found.add(step)
            waiting += step.all_input_nodes
    return found
