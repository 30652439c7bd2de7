"""Expressions that compute each element from one element of one tensor: they are looked up in a table.

Activations, and sums and products of one tensor with numbers and with functions of itself: x * sigmoid(x),
x * relu6(x + 3) / 6.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from fxq.graph.kinds import kind, module_of
from fxq.graph.stored import stored_tensor
from fxq.integer.grid import Grid, Term, wide_grid
from fxq.integer.writer import Writer, tensors_read
from fxq.kinds import ACTIVATIONS
from fxq.quant import DEQUANTIZE

_ELEMENTWISE = ACTIVATIONS | {"add", "sub", "mul", "div"}
# Sums are rounded to so many bits before they are looked up.
_SUM_BITS = 15


def is_of_one_tensor(node: Node) -> bool:
    """Return whether the value of ``node`` is computed element by element from one tensor."""
    return _leaf(node) is not None


def as_table(writer: Writer, node: Node, grid: Grid) -> Node:
    """Return what looks up the codes of ``node``, which is computed from one tensor, in ``grid``."""
    leaf, codes, source = _looked_up(writer, node)
    return writer.table(codes, source, node, grid, lambda values: _computed(node, leaf, values))


def as_term(writer: Writer, node: Node) -> Term:
    """Return what looks up the value of ``node``, which is computed from one tensor, in 16 bits."""
    leaf, codes, source = _looked_up(writer, node)
    with torch.no_grad():
        values = _computed(node, leaf, source.values())
    grid = wide_grid(float(values.abs().max()), _SUM_BITS)
    return grid.term(writer.lookup(codes, source, grid.quantized(values), node))


def _looked_up(writer: Writer, node: Node) -> tuple[Node, Node, Grid]:
    """Return the tensor that ``node`` is computed from, what computes its codes, and their grid."""
    leaf = _leaf(node)
    assert leaf is not None  # is_of_one_tensor was asked
    source = writer.own_grid(leaf)
    if source is not None:
        return leaf, writer.codes(leaf, source), source
    term = writer.single(leaf, _SUM_BITS)
    bound = int(term.bound)
    return leaf, term.node, Grid(float(term.scale), term.zero_point, -bound, bound, torch.int32)


def _leaf(node: Node) -> Node | None:
    """Return the one tensor that ``node`` is computed from: as far back as that is one."""
    if not _is_elementwise(node):
        return None
    leaves, read = _leaves(node), tensors_read(node)
    if len(leaves) == 1:
        return next(iter(leaves.values()))
    return read[0] if len(read) == 1 else None


def _leaves(node: Node) -> dict[Any, Node]:
    """Return the tensors that an expression is computed from; two dequantizes of the same codes are one."""
    found: dict[Any, Node] = {}
    waiting, seen = [node], {node}
    while waiting:
        current = waiting.pop()
        if _is_elementwise(current):
            read = [one for one in tensors_read(current) if one not in seen]
            waiting += read
            seen.update(read)
        else:
            found.setdefault(_key(current), current)
    return found


def _key(node: Node) -> Any:
    return node.args[:3] if node.target is DEQUANTIZE else node


def _is_elementwise(node: Node) -> bool:
    if kind(node) not in _ELEMENTWISE:
        return False
    stored: list[Tensor] = [*module_of(node).parameters()] if node.op == "call_module" else []
    stored += [stored_tensor(read) for read in node.all_input_nodes if read.op == "get_attr"]
    return all(tensor.numel() == 1 for tensor in stored)  # PReLU may have a slope for each channel


def _computed(node: Node, leaf: Node, values: Tensor) -> Tensor:
    known: dict[Node, Any] = {}

    def value(current: Node) -> Any:
        if current not in known:
            if current.op == "get_attr":
                known[current] = stored_tensor(current).cpu().float()
            elif _key(current) == _key(leaf):
                known[current] = values
            else:
                args, kwargs = map_arg((current.args, current.kwargs), value)
                known[current] = _called(current, args, kwargs)
        return known[current]

    return value(node)  # type: ignore[no-any-return]


def _called(node: Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_module":
        module = module_of(node)
        device = next((one.device for one in module.parameters()), None)
        if device is None:
            return module(*args, **kwargs)
        return module(*(one.to(device) for one in args), **kwargs).cpu()
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
