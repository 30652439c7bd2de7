"""Questions about memory: which nodes write into the tensor they read, and which nodes share memory.

A quantizer reads a tensor when it is made. Where something writes into that memory later, the quantizer would miss it.
"""

import bisect
import operator
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn import functional as F

from fxq.graph.kinds import MOVES_DATA, kind, module_of
from fxq.module_tree import has_attribute

_OUT_OF_PLACE: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType({
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
})  # fmt: skip
# Beside what moves data: they return their input itself where there is nothing to do.
_MAY_RETURN_INPUT = frozenset({
    "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda",
    "select", "unfold", "diagonal", "as_strided", "view_as",
})  # fmt: skip


class Memory:
    """Which nodes of a graph share memory, and which write into it: one look at all nodes, true until one is changed.

    :func:`aliases` and :func:`overwriting` ask for one node, and cost as much as that has aliases and readers.
    """

    def __init__(self, graph: Graph) -> None:
        self._bases: dict[Node, Node] = {}
        self._sharing: dict[Node, list[Node]] = {}  # by the node that made the memory, in graph order, as the next
        self._writers: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            writes = writes_in_place(node)
            base = self._bases[node.all_input_nodes[0]] if writes or _moves_input(node) else node
            self._bases[node] = base
            self._sharing.setdefault(base, []).append(node)
            if writes:
                self._writers.setdefault(base, []).append(node)

    def __contains__(self, node: Node) -> bool:
        return node in self._bases

    def overwriting(self, node: Node) -> Node | None:
        """Return the first node that writes into the memory of ``node`` after it was made, None if none does."""
        writers = self._writers.get(self._bases[node], [])
        behind = bisect.bisect_right(writers, node)
        return writers[behind] if behind < len(writers) else None

    def written(self) -> Iterator[tuple[list[Node], list[Node]]]:
        """Yield, for each memory that is written into, the nodes that share it and those that write."""
        for base, writers in self._writers.items():
            yield self._sharing[base], writers


def writes_in_place(node: Node) -> bool:
    """Return whether ``node`` writes into the memory of its first input."""
    if not node.all_input_nodes:
        return False
    if node.op == "call_module":
        module: Any = module_of(node)
        return has_attribute(module, "inplace") and bool(module.inplace)
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__") and callable(getattr(torch.Tensor, name, None))
    if node.op != "call_function":
        return False
    is_written_so = _is_asked_to(node) or node.target is operator.setitem
    return is_written_so or node.target in _OUT_OF_PLACE or _is_torch_inplace(node.target)


def out_of_place_target(node: Node) -> Any:
    """Return what computes the values of an in-place function or method elsewhere, None if nothing does."""
    if node.op == "call_method":
        name = str(node.target).removesuffix("_")
        return name if callable(getattr(torch.Tensor, name, None)) else None
    if node.target is operator.setitem:
        return None
    if node.target in _OUT_OF_PLACE:
        return _OUT_OF_PLACE[node.target]  # type: ignore[index]
    if not _is_torch_inplace(node.target):
        return node.target
    name = node.target.__name__.removesuffix("_")  # type: ignore[union-attr]
    return getattr(torch, name, None) or getattr(F, name, None)


def aliases(node: Node, without: Node | None = None) -> list[Node]:
    """Return the nodes that may share memory with ``node``: what it is a view of, and all views of that.

    Those that are made from ``without`` are left out.
    """
    base = node
    while _may_alias_input(base):
        base = base.all_input_nodes[0]
    found = [base]
    for current in found:  # grows while it is walked
        users = [user for user in current.users if user is not without and user.all_input_nodes[0] is current]
        found += [user for user in users if _may_alias_input(user)]
    return found


def overwriting(node: Node) -> Node | None:
    """Return the first node that writes into the memory of ``node`` after it was made, None if none does."""
    sharing = aliases(node)
    writers = [user for alias in sharing for user in alias.users if user is not node and user > node]
    return next((user for user in writers if writes_in_place(user) and user.all_input_nodes[0] in sharing), None)


def out_of_place_arguments(node: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a function or method without ``inplace``."""
    kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
    return node.args[: _position_of_inplace(node)], kwargs


def _is_asked_to(node: Node) -> bool:
    position = _position_of_inplace(node)
    given = node.args[position] if position < len(node.args) else node.kwargs.get("inplace", False)
    return given is True


def _position_of_inplace(node: Node) -> int:
    """Return where a function of torch.nn.functional takes ``inplace``; behind its arguments where it does not."""
    code = getattr(node.target, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    return names.index("inplace") if "inplace" in names else len(node.args)


def _may_alias_input(node: Node) -> bool:
    return writes_in_place(node) or _moves_input(node)


def _moves_input(node: Node) -> bool:
    """Return whether ``node`` may return its first input, or a view of it, without writing there."""
    if not node.all_input_nodes or node.target in ("clone", torch.clone):
        return False
    found = kind(node)
    if found in MOVES_DATA or found in ("identity", "dropout", "getattr"):
        return True
    if node.op == "call_method" and node.target in _MAY_RETURN_INPUT:
        return True
    return str(getattr(node.target, "__name__", "")).endswith("dropout")


def _is_torch_inplace(function: Any) -> bool:
    name = str(getattr(function, "__name__", ""))
    return name.endswith("_") and not name.endswith("__") and function in (getattr(torch, name, 0), getattr(F, name, 0))
