"""Constant folding of weights: in modules, where hooks or parametrizations compute them, and in the graph.

An expression is what leads from stored tensors to a weight or bias, and no input of the model reaches. It is computed
here as it is in the graph, node by node.
"""

import itertools
import operator
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.nn.utils.parametrize import ParametrizationList

from fxq import Rewriter, TensorQuantizer
from fxq.graph import aliases, free_path, owner_path, writes_in_place
from fxq.graph.stored_values import UnsettledError, evaluate, is_literal, leading_to, writes_into
from fxq.nn import computed_tensors, plain_type, store_computed
from fxq_passes.canonical.canonical_forms import WEIGHTED

# Position and name of the arguments that are weights.
_STORED: Mapping[Any, tuple[tuple[int, str], ...]] = MappingProxyType(
    {
        **dict.fromkeys(WEIGHTED, ((1, "weight"), (2, "bias"))),
        F.batch_norm: ((1, "running_mean"), (2, "running_var"), (3, "weight"), (4, "bias")),
        **dict.fromkeys((torch.matmul, operator.matmul, torch.mm, "matmul", "mm"), ((1, "other"),)),
    }
)


@dataclass
class Expression:
    """A weight that the graph computes.

    Args:
        root: the node that yields it.
        nodes: all that lead to it, in graph order: itself, stored tensors, and what writes into one of them.
        readers: the nodes that take it for a weight, and which of their arguments it is.
    """

    root: Node
    nodes: list[Node]
    readers: list[tuple[Node, str]] = field(default_factory=list)

    @property
    def sources(self) -> str:
        """What it is computed from, in words."""
        return ", ".join(str(node.target) for node in self.nodes if node.op in ("get_attr", "call_module"))


def stored_value(rw: Rewriter, node: Node) -> Tensor | None:
    """Return the value of ``node`` where it is computed from stored tensors alone, None if it may be another."""
    nodes = leading_to(node)
    if not _constant_among(rw, nodes).issuperset(nodes):
        return None
    try:
        value = evaluate(rw.gm, nodes, node)
    except UnsettledError:
        return None
    return value if isinstance(value, Tensor) else None


def constant_nodes(rw: Rewriter) -> set[Node]:
    """Return the nodes that are computed from stored tensors alone."""
    return _constant_among(rw, rw.nodes())


def weight_expressions(rw: Rewriter) -> list[Expression]:
    """Return the weights of layers and products that the graph computes from stored tensors."""
    constant = constant_nodes(rw)
    found: dict[Node, Expression] = {}
    for node in rw.nodes(lambda node: node not in constant):
        for position, name in _STORED.get(node.target, ()):
            value = node.args[position] if len(node.args) > position else node.kwargs.get(name)
            if isinstance(value, Node) and value in constant and _is_computed_weight(value, name):
                found.setdefault(value, Expression(value, leading_to(value))).readers.append((node, name))
    return list(found.values())


def fold_computed(rw: Rewriter) -> None:
    """Store what is computed from stored tensors alone: weights that the graph computes, then those of modules."""
    _fold(rw, weight_expressions(rw))
    # What other operations read goes with its module, which is about to lose the parametrization.
    _fold(rw, [Expression(node, [node]) for node in rw.nodes(lambda node: _is_parametrization(rw, node))])
    _fold_in_modules(rw)


def _fold(rw: Rewriter, expressions: Sequence[Expression]) -> None:
    numbers: dict[str, int] = {}
    values: dict[str, Tensor | str] = {}  # equal expressions are stored once: a layer that is called twice
    folded: list[tuple[str, Expression]] = []
    for expression in expressions:
        key = _number(expression, numbers)
        if key not in values:
            values[key] = _value(rw, expression)
        reason = values[key]
        if isinstance(reason, str):
            for reader, name in expression.readers:
                rw.skip(reader, f"its {name} is computed in the graph and {reason}")
        else:
            folded.append((key, expression))
    dying = _dying([expression for _, expression in folded])
    places: dict[str, str] = {}
    for key, expression in folded:
        value = values[key]
        assert isinstance(value, Tensor)
        if key not in places:
            places[key] = _place(rw, expression, value, dying, set(places.values()))
        stored, names = rw.read_tensor(expression.root, places[key], value), dict(expression.readers)
        for user in [user for user in expression.root.users if user > expression.nodes[-1]]:
            why = f"{names.get(user, 'a tensor')} computed from {expression.sources} and stored"
            rw.replace_input(user, expression.root, stored, why)
    rw.erase_unread(sorted(dying))


def _value(rw: Rewriter, expression: Expression) -> Tensor | str:
    """Return what to store, or why that may be something else in the next call."""
    try:
        value: Tensor = evaluate(rw.gm, expression.nodes, expression.root)
    except UnsettledError as error:
        return str(error)
    return value


def _fold_in_modules(rw: Rewriter) -> None:
    targets = {str(node.target) for node in rw.nodes(lambda node: node.op in ("call_module", "get_attr"))}
    used = {place for path in targets for place in itertools.accumulate(path.split(".")[:-1], "{}.{}".format)}
    for node in rw.nodes(lambda node: node.op == "call_module"):
        path, module = str(node.target), rw.module(node)
        if plain_type(module).__module__.partition(".")[0] not in ("torch", "fxq"):
            continue  # its Python may read what the weights are computed from
        computing = {name: part for name, part in module.named_modules() if computed_tensors(part)}
        if computing and path in used:
            rw.skip(node, "what its weights are computed from is also read outside of it")
            continue
        for name, part in computing.items():
            for tensor, how in store_computed(part).items():
                rw.edit(node, f"{f'{name}.{tensor}'.lstrip('.')} {how} and stored")


def _constant_among(rw: Rewriter, nodes: Sequence[Node]) -> set[Node]:
    """Return those of ``nodes``, in graph order, that no input of the model reaches."""
    varying: set[Node] = set()
    while True:
        constant: set[Node] = set()
        for node in nodes:
            if node not in varying and _is_constant(rw, node, constant):
                constant.add(node)
        if not constant:
            return constant
        found: set[Node] = set()
        seen: set[Node] = set()
        for writer in (node for node in nodes if writes_in_place(node)):
            if writer not in seen:
                sharing = aliases(writer)
                seen.update(sharing)
                found.update(_varying_memory(sharing, constant))
        if found.isdisjoint(constant):
            return constant
        varying |= found


def _varying_memory(sharing: list[Node], constant: Set[Node]) -> list[Node]:
    """Return those of the nodes ``sharing`` one memory, if that has no single value to store; else nothing."""
    if any(alias.op == "get_attr" for alias in sharing):
        # Whoever reads what is stored learns that it is changed.
        return [alias for alias in sharing if writes_in_place(alias)]
    readers = {user for alias in sharing for user in alias.users}
    writers = {user for alias in sharing for user in alias.users if writes_into(user, alias)}
    last = max(writers)
    is_settled = writers <= constant and all(user > last for user in readers - constant)
    return [] if is_settled else sharing


def _is_constant(rw: Rewriter, node: Node, constant: set[Node]) -> bool:
    """Return whether no input of the model reaches the values of ``node``; ``constant`` are those before it."""
    if node.op == "get_attr" or is_literal(node):
        return True
    if node.op in ("placeholder", "output") or not constant.issuperset(node.all_input_nodes):
        return False
    if node.op != "call_module":
        return bool(node.all_input_nodes)
    return not any(isinstance(part, TensorQuantizer) for part in rw.module(node).modules())


def _is_parametrization(rw: Rewriter, node: Node) -> bool:
    return node.op == "call_module" and isinstance(rw.module(node), ParametrizationList)


def _is_computed_weight(value: Node, name: str) -> bool:
    if value.op == "get_attr":
        return False
    known = value.meta.get("val")
    return name != "other" or (isinstance(known, Tensor) and known.dim() == 2 and known.is_floating_point())


def _dying(expressions: Sequence[Expression]) -> set[Node]:
    """Return the nodes that nothing needs once the roots are stored."""
    dying = {node for expression in expressions for node in expression.nodes}
    stored = {expression.root: expression.nodes[-1] for expression in expressions}
    while needed := {node for node in dying if not dying.issuperset(_needing(node, stored))}:
        dying -= needed
    return dying


def _needing(node: Node, stored: Mapping[Node, Node]) -> list[Node]:
    """Return what needs ``node``: of one that writes into memory, all that read from there.

    Args:
        node: the node.
        stored: of each root, the node behind which its readers read what is stored.
    """
    nodes = [node, *aliases(node)] if writes_in_place(node) else [node]
    return [user for one in nodes for user in one.users if one not in stored or user <= stored[one]]


def _place(rw: Rewriter, expression: Expression, value: Tensor, dying: set[Node], taken: set[str]) -> str:
    """Return where to store ``value``: in place of a tensor like it that only served to compute it, if there is one."""
    called = {str(node.target) for node in rw.nodes(lambda node: node.op == "call_module")}
    for node in expression.nodes:
        path = str(node.target)
        if _is_parametrization(rw, node):
            path = path.replace("parametrizations.", "")
        elif node.op != "get_attr" or node not in dying or sorted(rw.tensor(node).shape) != sorted(value.shape):
            continue
        owners = set(itertools.accumulate(path.split(".")[:-1], "{}.{}".format))
        if path not in taken and called.isdisjoint(owners):
            return path
    reader, name = next(iter(expression.readers), (expression.root, "weight"))
    return free_path(rw.gm, f"{owner_path(reader)}.{name}".lstrip("."))


def _number(expression: Expression, numbers: dict[str, int]) -> str:
    """Return a text that two expressions share if they compute the same."""
    names: dict[Node, str] = {}
    for node in expression.nodes:
        what: Any = node.meta["val"] if is_literal(node) else map_arg((node.args, node.kwargs), names.get)
        names[node] = f"%{numbers.setdefault(repr((node.op, node.target, what)), len(numbers))}"
    # Behind the root stands what writes into its memory.
    return ",".join(names[node] for node in expression.nodes if node >= expression.root)
