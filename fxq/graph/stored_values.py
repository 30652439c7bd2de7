"""Values that no input of a model reaches: computed from stored tensors alone, as the graph computes them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

from fxq.graph.memory import aliases, overwriting, writes_in_place
from fxq.graph.modules import deep_copy
from fxq.nn import TensorQuantizer


class UnsettledError(Exception):
    """A value may be another one in the next call; the text says why, behind "which"."""


class StoredValues:
    """The nodes of a graph in the making that no input reaches, and what they compute where Python has to know it."""

    def __init__(self) -> None:
        self._nodes: set[Node] = set()
        self.asked: dict[Node, tuple[str, str]] = {}  # stored tensors an answer came from: who asked first, and where

    def __contains__(self, node: Node) -> bool:
        return node in self._nodes

    def note(self, node: Node) -> None:
        """Take in a new node, if no input reaches it."""
        if node.op == "get_attr" or (node.all_input_nodes and self._nodes.issuperset(node.all_input_nodes)):
            self._nodes.add(node)

    def add(self, node: Node) -> None:
        """Take in an input that stands for a stored tensor: of that, no more than the shape is known."""
        self._nodes.add(node)

    def value(self, node: Node, path: str, line: str) -> Any:
        """Return what ``node`` computes, for the module at ``path``, in ``line`` of its code.

        Raises:
            UnsettledError: it may be something else in the next call.
        """
        nodes = leading_to(node)
        owner = node.graph.owning_module
        assert owner is not None
        found = evaluate(owner, nodes, node)
        for source in nodes:
            if source.op == "get_attr":
                self.asked.setdefault(source, (path, line))
        return found

    def why_unsettled(self, model: nn.Module, is_trained: bool) -> tuple[str, str] | None:
        """Return the path of a module whose Python decided by what is going to change, and in words why; None if none.

        Args:
            model: what was traced.
            is_trained: its parameters will change, and running statistics.
        """
        for node, (path, line) in self.asked.items():
            reason = "which the model changes" if overwriting(node) is not None else ""
            if is_trained and _is_trained(model, str(node.target)):
                reason = "which training changes; make it a buffer, or requires_grad_(False), if it is to stay"
            if reason:
                return path, f"cannot trace {line}: the model's Python takes a number from {node.target!r}, {reason}"
        return None


def _is_trained(model: nn.Module, path: str) -> bool:
    owner = model.get_submodule(path.rpartition(".")[0])
    return isinstance(owner, _NormBase) or bool(_at(model, path).requires_grad)


def is_literal(node: Node) -> bool:
    """Return whether ``node`` yields a dtype or device, which is that of the traced model whatever it is asked of."""
    return node.op != "placeholder" and isinstance(node.meta.get("val"), torch.dtype | torch.device)


def leading_to(root: Node) -> list[Node]:
    """Return ``root`` and all that its value is computed from, in graph order, with what writes into that memory.

    What writes into a stored tensor is not among them.
    """
    found = {root: None}
    waiting = [root]
    for node in waiting:  # grows while it is walked
        sources = [] if is_literal(node) else [*node.all_input_nodes, *_writers(node)]
        new = dict.fromkeys(source for source in sources if source not in found)
        found.update(new)
        waiting += new
    return sorted(found)


def writes_into(node: Node, tensor: Node) -> bool:
    """Return whether ``node`` writes into the memory of ``tensor``, its first input."""
    return writes_in_place(node) and node.all_input_nodes[0] is tensor


def evaluate(owner: nn.Module, nodes: Sequence[Node], root: Node) -> Any:
    """Return what ``root`` holds behind ``nodes``. Nothing that is stored is changed.

    Args:
        owner: holds the tensors and modules.
        nodes: in graph order, with all that they read, and all that writes into it; no input of the model.
        root: the one that is asked for.

    Raises:
        UnsettledError: it may yield something else in the next call.
    """
    values: dict[Node, Any] = {}
    stored: list[tuple[Tensor, int]] = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _Random() as random:  # type: ignore[no-untyped-call]
        for node in nodes:
            if node.op == "get_attr" and overwriting(node) is not None:
                raise UnsettledError(f"reads {node.target!r}, which the model changes")
            function, tensors = _function(owner, node)
            args, kwargs = map_arg((node.args, node.kwargs), values.get)
            values[node] = function(*args, **kwargs)
            stored += [(tensor, tensor._version) for tensor in tensors]
    if random.found:
        raise UnsettledError("is random")
    if any(tensor._version != version for tensor, version in stored):
        raise UnsettledError("changes what it is computed from")
    found = values[root]
    return found.detach().clone() if isinstance(found, Tensor) else found


class _Random(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether an operator asks for random numbers."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _writers(node: Node) -> list[Node]:
    """Return what writes into the memory of ``node``, but for that of a stored tensor."""
    sharing = [] if node.op == "get_attr" else aliases(node)
    if any(alias.op == "get_attr" for alias in sharing):
        return []
    return [user for alias in sharing for user in alias.users if writes_into(user, alias)]


def _function(owner: nn.Module, node: Node) -> tuple[Callable[..., Any], list[Tensor]]:
    """Return what ``node`` calls, on copies of what is stored, and those copies."""
    if is_literal(node):
        return lambda *_args, **_kwargs: node.meta["val"], []
    if node.op == "get_attr":
        copy = _at(owner, str(node.target)).detach().clone()
        if copy.is_meta:
            raise UnsettledError("has no data, on the meta device")
        return lambda: copy, [copy]
    if node.op == "call_module":
        module = deep_copy(owner.get_submodule(str(node.target))).eval()
        if any(isinstance(part, TensorQuantizer) for part in module.modules()):
            raise UnsettledError("is quantized")
        return module, [*module.parameters(), *module.buffers()]
    if node.op == "placeholder":
        raise UnsettledError("is an argument")
    if node.op == "call_method":
        return lambda first, *args, **kwargs: getattr(first, str(node.target))(*args, **kwargs), []
    assert callable(node.target)
    return node.target, []


def _at(owner: nn.Module, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    return getattr(owner.get_submodule(parent), name)
