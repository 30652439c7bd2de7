"""Copies of a layer that several batch norms follow, so that each can be folded: their weights differ then."""

from torch.fx import Node

from fxq import Rewriter
from fxq.graph import free_path, is_weighted, kind, only_reader
from fxq.graph.modules import deep_copy
from fxq_passes.folding.foldable import uses_by_id, uses_of, why_not_plain


def unshare(rw: Rewriter) -> None:
    """Give each batch norm behind a layer that is called several times a copy of the layer.

    Not in training, where the calls share one weight.
    """
    calls: dict[int, list[Node]] = {}
    for node in rw.nodes(is_weighted):
        calls.setdefault(id(rw.module(node)), []).append(node)
    norms: dict[int, list[Node]] = {}
    for node in rw.nodes(lambda node: kind(node) == "batch_norm"):
        norms.setdefault(id(rw.module(node)), []).append(node)
    uses = uses_by_id(rw)
    for nodes in calls.values():
        layer = rw.module(nodes[0])
        if len(nodes) == 1 or uses_of(layer, uses) != len(nodes) or why_not_plain(layer) is not None:
            continue
        groups = _by_batch_norm(rw, nodes)
        for key, group in list(groups.items())[1:]:
            # Behind other layers too, a batch norm is not folded, and a copy would be in vain.
            if len(norms.get(key, [])) == len(group):
                _copy(rw, group)


def _by_batch_norm(rw: Rewriter, nodes: list[Node]) -> dict[int, list[Node]]:
    """Return the calls by the batch norm that alone reads them, those without one (0) first."""
    groups: dict[int, list[Node]] = {0: []}
    for node in nodes:
        reader = only_reader(node)
        is_followed = reader is not None and kind(reader) == "batch_norm" and why_not_plain(rw.module(reader)) is None
        groups.setdefault(id(rw.module(reader)) if reader is not None and is_followed else 0, []).append(node)
    return {key: group for key, group in groups.items() if group}


def _copy(rw: Rewriter, nodes: list[Node]) -> None:
    layer, path = deep_copy(rw.module(nodes[0])), free_path(rw.gm, str(nodes[0].target))
    for node in nodes:
        rw.call_module_instead(node, path, layer, node.args, "a copy of its own: another batch norm follows")
