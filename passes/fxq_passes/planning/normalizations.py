"""Normalizations that a model writes out, over whatever dimensions: their steps stay in float, as those of a module do.

``(x - mean) / sqrt(mean((x - mean) ** 2) + eps)``: eight bits of a mean of squares say next to nothing of the small,
and what is divided by its root would be rounded once more on the way.
"""

import operator

import torch
from torch.fx import Node

from fxq import Rewriter
from fxq.graph import MOVES_DATA, kind, tensor_edges
from fxq_passes.canonical.formulas import calls
from fxq_passes.planning.plan_questions import ELEMENTWISE

_POWER, _SQUARES = (torch.pow, operator.pow, "pow"), (torch.square, "square")
_ROOTS = (torch.sqrt, "sqrt", torch.rsqrt, "rsqrt")
_RECIPROCAL = (torch.reciprocal, "reciprocal")
_VARIANCES, _DEVIATIONS = (torch.var, "var"), (torch.std, "std")
_AVERAGES = frozenset({"mean", "global_avg_pool"})
_STEPS = ELEMENTWISE | _AVERAGES | MOVES_DATA


def normalizations(rw: Rewriter) -> dict[Node, str]:
    """Return the steps of normalizations, each with why it stays in float; one look at the graph."""
    roots: dict[Node, Node] = {}  # what is computed of a root with numbers alone, and that root
    found: dict[Node, str] = {}
    for node in rw.nodes():
        varying = [edge.producer for edge in tensor_edges(node)]
        root = next((roots[read] for read in varying if read in roots), None)
        if _is_deviation(node):
            roots[node] = node
        elif root is None:
            continue
        elif len(varying) == 1 and (kind(node) in ELEMENTWISE | MOVES_DATA or calls(node, _RECIPROCAL)):
            roots[node] = root
        elif len(varying) == 2 and kind(node) in ("mul", "div"):
            found[node] = f"normalizes by {root.name!r}"
    for node in reversed(rw.nodes()):
        is_step = node in roots or kind(node) in _STEPS or calls(node, (*_POWER, *_SQUARES, *_VARIANCES))
        if node not in found and is_step and node.users and all(reader in found for reader in node.users):
            found[node] = next(found[reader] for reader in node.users)
    return found


def _is_deviation(node: Node) -> bool:
    """Return whether ``node`` is the root of a variance or of a mean of squares, or the inverse of one."""
    if calls(node, _DEVIATIONS):
        return True
    is_root = calls(node, _ROOTS) or (calls(node, _POWER) and len(node.args) == 2 and node.args[1] in (0.5, -0.5))
    source = node.args[0] if is_root and node.args else None
    while isinstance(source, Node):
        if kind(source) in _AVERAGES:
            return calls(square := source.all_input_nodes[0], (*_POWER, *_SQUARES)) or kind(square) == "mul"
        if calls(source, _VARIANCES):
            return True
        varying = [edge.producer for edge in tensor_edges(source)]
        if len(varying) != 1 or kind(source) not in ELEMENTWISE | MOVES_DATA:
            return False
        source = varying[0]
    return False
