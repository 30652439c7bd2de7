"""Which values hold infinity, or a float type's largest number in its place: no range of theirs says anything.

Padding in front of a max pooling and masks in front of a softmax are made of them.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from fxq import Rewriter
from fxq.graph import MOVES_DATA, kind
from fxq_passes.planning.plan_questions import ELEMENTWISE

_LARGEST = {math.inf, *(torch.finfo(dtype).max for dtype in (torch.float32, torch.float16, torch.bfloat16))}
# What puts a number among the values of a tensor, and where its arguments have that number.
_FILLS: dict[Any, tuple[str, int]] = {
    F.pad: ("value", 3),
    **dict.fromkeys((torch.masked_fill, "masked_fill"), ("value", 2)),
    **dict.fromkeys((torch.full, torch.full_like, "new_full"), ("fill_value", 1)),
}
_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
_TRIANGLES = (torch.triu, "triu", torch.tril, "tril")
_PASSING = MOVES_DATA | ELEMENTWISE | {"cat", "pad"}


def infinite_values(rw: Rewriter) -> dict[Node, str]:
    """Return the nodes whose values hold infinity, each with why what reads it stays in float."""
    sources = _sources(rw)
    return {
        node: f"reads infinity, which {source.name!r} puts among its values: no range holds it"
        for node, source in sources.items()
    }


def masking_adds(rw: Rewriter) -> dict[Node, str]:
    """Return the additions of which softmax alone reads the sum, after further ones or not, each with a reason."""
    found: set[Node] = set()
    for node in reversed(rw.nodes(lambda node: kind(node) in MOVES_DATA | {"add"})):
        if node.users and all(kind(reader) == "softmax" or reader in found for reader in node.users):
            found.add(node)
    return dict.fromkeys(found, "adds a mask before a softmax, which may hold minus infinity")


def _sources(rw: Rewriter) -> dict[Node, Node]:
    """Return the nodes whose values hold infinity, each with the node that puts it there."""
    found: dict[Node, Node] = {}
    for node in rw.nodes():
        if _makes_infinity(rw, node):
            found[node] = node
        elif kind(node) in _PASSING or node.target in _TRIANGLES:
            source = next((found[read] for read in node.all_input_nodes if read in found), None)
            if source is not None:
                found[node] = source
    return found


def _makes_infinity(rw: Rewriter, node: Node) -> bool:
    if node.op == "get_attr":
        stored = rw.tensor(node)
        # A parameter that holds infinity is broken, and calibration says so.
        is_mask = isinstance(stored, Tensor) and not isinstance(stored, nn.Parameter) and not stored.is_meta
        return is_mask and stored.is_floating_point() and bool(stored.isinf().any())
    if node.op == "call_module":
        return isinstance(rw.module(node), _PADS) and _is_largest(rw.module(node).value)
    if node.target in (torch.where, "where"):
        return any(map(_is_largest, node.args))
    if node.target not in _FILLS:
        return False
    name, place = _FILLS[node.target]
    return _is_largest(node.kwargs.get(name, node.args[place] if len(node.args) > place else None))


def _is_largest(value: Any) -> bool:
    return isinstance(value, float) and abs(value) in _LARGEST
