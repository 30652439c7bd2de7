"""Normalizations that a model writes out, over whatever dimensions: their steps stay in float, as those of a module do.

``(x - mean) / sqrt(mean((x - mean) ** 2) + eps)``, and with ``mean(x ** 2) - mean ** 2`` under the root: eight bits of
a mean of squares say next to nothing of the small, and what is divided by its root would be rounded once more on the
way.
"""

import torch
from torch.fx import Node

from fxq import Rewriter
from fxq.graph import MOVES_DATA, is_constant, kind, tensor_edges
from fxq_passes.canonical.formulas import calls
from fxq_passes.planning.plan_questions import ELEMENTWISE
from fxq_passes.planning.relative_sizes import RECIPROCAL, is_root, is_step, readers

_VARIANCES, _DEVIATIONS = (torch.var, "var"), (torch.std, "std")


def normalizations(rw: Rewriter) -> dict[Node, str]:
    """Return the steps of normalizations, each with why it stays in float; one look at the graph."""
    roots: dict[Node, Node] = {}  # what is computed of a root with constants alone, and that root
    found: dict[Node, str] = {}
    for node in rw.nodes():
        varying = [edge.producer for edge in tensor_edges(node) if not is_constant(edge.producer)]
        root = next((roots[read] for read in varying if read in roots), None)
        if varying and (is_root(node) or calls(node, _DEVIATIONS)):
            roots[node] = node
        elif root is None:
            continue
        elif len(varying) == 1 and (kind(node) in ELEMENTWISE | MOVES_DATA or calls(node, RECIPROCAL)):
            roots[node] = root
        elif len(varying) == 2 and kind(node) in ("mul", "div"):
            found[node] = f"normalizes by {root.name!r}"
    for node in reversed(rw.nodes()):
        is_part = node in roots or is_step(node) or calls(node, _VARIANCES)
        if node not in found and is_part:
            reasons = [found.get(reader) for reader in readers(node)]
            if reasons and all(reasons):
                found[node] = next(reason for reason in reasons if reason is not None)
    return found
