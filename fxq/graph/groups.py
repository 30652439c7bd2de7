"""Groups: the operations of a prepared graph that go back to float together, and which quantized readings are theirs.

A kernel computes a group: all calls of one module, a convolution with the residual add that it absorbs, an operation
with the activations and data movement behind it whose output it writes in integers. So are the parts of an operation
that a pass took apart (a SiLU) one group, by the name of the whole, which a rule in float leaves whole. A quantizer
stands on readings (edges) of a tensor; each reading is there for the group that reads it, or for the group that makes
the tensor.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from fxq.graph.kinds import kind, module_of
from fxq.graph.match import (
    Edge,
    has_one_reader,
    input_edges,
    is_constant,
    is_quantizer,
    is_weighted,
    output_edges,
    rule_path,
    tensor_edges,
)
from fxq.graph.plan import part_of, planned_input, planned_inputs, planned_inside, planned_output
from fxq.nn.quantized import quantizer_name
from fxq.nn.tensor_quantizer import TensorQuantizer
from fxq.targets.target import Target


@dataclass(frozen=True, eq=False)
class Group:
    """Operations that are quantized, or left in float, together.

    Args:
        paths: the names that rules have for them; the first is that of the layer.
        kind: of the first operation.
        nodes: in graph order.
        readings: the quantized edges that are there for this group: from a quantizer node to its reader.
    """

    paths: tuple[str, ...]
    kind: str
    nodes: tuple[Node, ...]
    readings: tuple[Edge, ...]

    @property
    def path(self) -> str:
        """The name of the layer."""
        return self.paths[0]


def find_groups(gm: GraphModule, target: Target) -> list[Group]:
    """Return the groups of a prepared graph, in graph order; what was quantized by hand belongs to none."""
    order = list(gm.graph.nodes)
    operations = [node for node in order if not is_quantizer(node) and _is_operation(node, target)]
    parents = {node: node for node in operations}
    calls: dict[str, Node] = {}
    for node in operations:
        if node.op == "call_module" or part_of(node):
            _join(parents, calls.setdefault(_name(node), node), node)
        convolution = _absorbing(node)
        if convolution is not None and convolution in parents:
            _join(parents, convolution, node)
    members: dict[Node, list[Node]] = {}
    for node in operations:
        members.setdefault(_root(parents, node), []).append(node)
    readings: dict[Node, list[Edge]] = {root: [] for root in members}
    for edge, owner in _owned_readings(order, target):
        if owner in parents:
            readings[_root(parents, owner)].append(edge)
    return [_group(nodes, readings[root]) for root, nodes in members.items()]


def is_left_in_float(group: Group) -> bool:
    """Return whether the quantizers of a group are off: of its weights, or where it has none, of what it reads."""
    inside = [(module_of(node), slot) for node in group.nodes for slot in planned_inside(node)]
    own = [module.get_submodule(quantizer_name(slot)) for module, slot in inside]
    own = own or [module_of(edge.producer) for edge in group.readings]
    return bool(own) and not any(isinstance(one, TensorQuantizer) and one.is_enabled for one in own)


def quantizers_alone(
    gm: GraphModule, target: Target, node: Node, left: Collection[str] = ()
) -> tuple[list[Node], list[str]]:
    """Return the operations that are quantized together with ``node``, and the quantizers that no other one wants.

    Args:
        gm: a prepared graph.
        target: it was prepared for.
        node: an operation; or a quantizer, for those that want it.
        left: names of the nodes that want none any more.
    """
    chosen, others = list[Group](), set[str]()
    for group in find_groups(gm, target):
        wanted = {edge.producer for edge in group.readings}
        if node in group.nodes or node in wanted:
            chosen.append(group)
        elif not any(one.name in left for one in group.nodes):
            others |= {str(one.target) for one in wanted}
    operations = [one for group in chosen for one in group.nodes]
    paths = [str(edge.producer.target) for group in chosen for edge in group.readings]
    paths += [f"{one.target}.{quantizer_name(slot)}" for one in operations for slot in planned_inside(one)]
    return operations, [path for path in dict.fromkeys(paths) if path not in others]


def _group(nodes: list[Node], readings: list[Edge]) -> Group:
    layers = sorted(nodes, key=lambda node: not is_weighted(node))  # stable: the layer first
    return Group(tuple(dict.fromkeys(map(_name, layers))), kind(layers[0]), tuple(nodes), tuple(readings))


def _name(node: Node) -> str:
    return part_of(node) or rule_path(node)


def _is_operation(node: Node, target: Target) -> bool:
    """Return whether something was planned for ``node`` itself, not for what it moves or clamps."""
    return _has_own_plan(node) or (planned_output(node) is not None and _maker(node, target) is node)


def _has_own_plan(node: Node) -> bool:
    return bool(planned_inputs(node) or planned_inside(node))


def _maker(node: Node, target: Target) -> Node:
    """Return the operation whose output a plan on the output of ``node``, which may only clamp or move it, is about."""
    while not _has_own_plan(node) and (kind(node) in target.fused_activations or "output" in target.same(kind(node))):
        sources = [edge.producer for edge in input_edges(node) if not is_constant(edge.producer)]
        if not sources:
            return node
        node = sources[0].all_input_nodes[0] if is_quantizer(sources[0]) else sources[0]
    return node


def _absorbing(add: Node) -> Node | None:
    """Return the convolution that absorbs a residual add, None where ``add`` is none."""
    residual = next((slot for slot, plan in planned_inputs(add).items() if plan.role == "residual"), None)
    other = [edge.producer for edge in tensor_edges(add) if residual is not None and edge.position != residual]
    node = other[0] if other else None
    while node is not None and has_one_reader(node):
        if is_weighted(node):
            return node
        sources = [edge.producer for edge in tensor_edges(node) if not is_constant(edge.producer)]
        node = sources[0] if len(sources) == 1 else None
    return None


def _owned_readings(order: list[Node], target: Target) -> Iterator[tuple[Edge, Node]]:
    """Yield each quantized reading with each operation that it is there for."""
    for quantizer in filter(is_quantizer, order):
        source = quantizer.all_input_nodes[0]
        plan = planned_output(source)
        for edge in output_edges(quantizer):
            if planned_input(edge) is not None:
                yield edge, edge.consumer
            if plan is not None:
                yield edge, _maker(source, target)


def _root(parents: dict[Node, Node], node: Node) -> Node:
    while parents[node] is not node:
        node = parents[node]
    return node


def _join(parents: dict[Node, Node], first: Node, second: Node) -> None:
    parents[_root(parents, second)] = _root(parents, first)
