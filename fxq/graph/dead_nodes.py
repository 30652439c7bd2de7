"""Nodes that nothing reads: results that the model's Python dropped, and what was computed for them alone.

Of some results only the shape is read: they stay, and are not worth a quantizer.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.fx import GraphModule, Node

from fxq.graph.kinds import module_of, produces_values, reads_shape
from fxq.graph.match import module_path
from fxq.graph.memory import Memory, writes_in_place
from fxq.graph.modules import drop_unused
from fxq.module_tree import has_attribute
from fxq.record import Entry, Record

# They read the shape of their first, or second, input.
_LIKE = frozenset({
    torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, torch.rand_like, torch.randn_like,
})  # fmt: skip
_AS = frozenset({"view_as", "expand_as", "reshape_as", "type_as"})
_READS_OF_CONTAINERS = frozenset({"get", "keys", "items", "values", "index", "count", "copy"})


def erase_dead_nodes(gm: GraphModule, record: Record) -> None:
    """Erase the nodes without effect that no result depends on, in-place ones too; each is noted in ``record``."""
    live = _live_nodes(gm)
    dead = [node for node in gm.graph.nodes if node not in live]
    for node in reversed(dead):
        gm.graph.erase_node(node)
    if dead:
        drop_unused(gm)
        gm.recompile()
    for node in dead:
        record.add(Entry("tracing", "edit", node.name, module_path(node), "nothing reads its result: removed"))


def has_effect(node: Node) -> bool:
    """Return whether ``node`` does more than to compute a result; what it writes in place is asked elsewhere."""
    if writes_in_place(node):
        return False
    if node.op == "call_module":
        module = module_of(node)
        is_known = _is_known(module) and not has_attribute(module, "_is_impure")  # as Node.is_impure asks
        return not is_known or bool(module._forward_hooks or module._forward_pre_hooks)
    if node.op in ("placeholder", "output") or node.is_impure() or node.meta.get("is_wrapped"):
        return True  # what the model wrapped for tracing may do anything
    value = node.all_input_nodes[0].meta.get("val") if node.all_input_nodes else None
    return node.op == "call_method" and isinstance(value, list | dict) and node.target not in _READS_OF_CONTAINERS


def nodes_without_values(gm: GraphModule, memory: Memory) -> set[Node]:
    """Return the nodes whose values reach no output: at most their shapes do; ``memory``: that of the graph."""
    return set(gm.graph.nodes) - _reached(memory, [gm.graph.output_node()], _reads_values)


def _live_nodes(gm: GraphModule) -> set[Node]:
    ends = [node for node in gm.graph.nodes if has_effect(node)]
    return _reached(Memory(gm.graph), ends, lambda consumer, source: True)


def _reached(memory: Memory, ends: Iterable[Node], reads: Callable[[Node, Node], bool]) -> set[Node]:
    """Return ``ends``, what they read, and what writes into the memory that is read, or into stored tensors."""
    reached: set[Node] = set()
    _add_with_sources(ends, reached, reads)
    written = [([one for one in sharing if produces_values(one)], writers) for sharing, writers in memory.written()]
    while True:
        seen = (writers for sharing, writers in written if _is_seen(sharing, reached))
        found = [node for writers in seen for node in writers if node not in reached]
        if not found:
            return reached
        _add_with_sources(found, reached, reads)


def _is_seen(sharing: list[Node], reached: set[Node]) -> bool:
    """Return whether what is written to this memory can be seen: by a node that counts, or outside of the graph."""
    return any(node in reached or node.op in ("placeholder", "get_attr") for node in sharing)


def _add_with_sources(nodes: Iterable[Node], reached: set[Node], reads: Callable[[Node, Node], bool]) -> None:
    stack = list(nodes)
    while stack:
        current = stack.pop()
        if current not in reached:
            reached.add(current)
            stack += [source for source in current.all_input_nodes if reads(current, source)]


def _reads_values(consumer: Node, source: Node) -> bool:
    if reads_shape(consumer):
        return False
    if consumer.target in _LIKE or str(consumer.target).startswith("new_"):
        return source is not consumer.args[0]
    return not (consumer.target in _AS and consumer.args[0] is not source)


def _is_known(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] in ("torch", "fxq")
