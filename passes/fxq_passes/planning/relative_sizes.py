"""Values of which the relative size counts: what is under a root, in a logarithm, or divides. They stay in float.

Steps of one width leave nothing of what is smaller than half a step, and ``sqrt``, ``log`` and ``1 / x`` are steepest
there: of the power spectrum in ``sqrt(a ** 2 + b ** 2)`` 8 bits keep what is within 24 dB of the largest value.
"""

import operator

import torch
from torch.fx import Node

from fxq import Rewriter
from fxq.graph import MOVES_DATA, kind
from fxq.graph.kinds import reads_shape
from fxq_passes.canonical.formulas import calls
from fxq_passes.planning.plan_questions import ELEMENTWISE

POWER = (torch.pow, operator.pow, "pow")
ROOTS = (torch.sqrt, "sqrt", torch.rsqrt, "rsqrt")
RECIPROCAL = (torch.reciprocal, "reciprocal")
_LOGARITHMS = (torch.log, "log", torch.log2, "log2", torch.log10, "log10")
_STEPS = ELEMENTWISE | MOVES_DATA | {"mean", "global_avg_pool", "relu", "clip"}


def read_by_relative_size(rw: Rewriter) -> dict[Node, str]:
    """Return the steps to what is read by its relative size alone, each with why it stays in float."""
    found: dict[Node, str] = {}
    for node in reversed(rw.nodes(is_step)):
        reasons = [found.get(reader) or _how_read(reader, node) for reader in readers(node)]
        if reasons and all(reasons):
            found[node] = next(reason for reason in reasons if reason is not None)
    return found


def readers(node: Node) -> list[Node]:
    """Return the nodes that read the values of ``node``, without those that ask for its shape."""
    return [reader for reader in node.users if not reads_shape(reader)]


def is_step(node: Node) -> bool:
    """Return whether ``node`` computes without weights: by element, as a mean, or what no target has a rule for."""
    found = kind(node)
    return found in _STEPS or (found == "other" and node.op != "call_module")


def is_root(node: Node) -> bool:
    """Return whether ``node`` is a square root or the inverse of one."""
    return calls(node, ROOTS) or (calls(node, POWER) and _exponent(node) in (0.5, -0.5))


def _how_read(reader: Node, node: Node) -> str | None:
    """Return how ``reader`` takes the relative size of ``node``, None if it does not."""
    if kind(reader) == "div":
        divides = len(reader.args) == 2 and reader.args[1] is node and reader.args[0] is not node
        return f"divides in {reader.name!r}, where its relative size counts" if divides else None
    exponent = _exponent(reader) if calls(reader, POWER) else None
    if is_root(reader) or calls(reader, (*_LOGARITHMS, *RECIPROCAL)) or (exponent is not None and exponent < 1):
        return f"{reader.name!r} reads it by its relative size, of which few bits keep little where it is small"
    return None


def _exponent(node: Node) -> float | None:
    exponent = node.args[1] if len(node.args) == 2 else node.kwargs.get("exponent")
    return exponent if isinstance(exponent, int | float) else None
