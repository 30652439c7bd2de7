"""In-place operations become out-of-place ones, so that a tensor in the graph has one value."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import Node

from fxq import EXACT, Pass, Rewriter, Stage, register_pass
from fxq.graph import aliases, has_effect, out_of_place_arguments, out_of_place_target, produces_tensor, writes_in_place


@register_pass("remove_inplace")
@dataclass(frozen=True)
class RemoveInplace(Pass):
    """Turn in-place operations (relu_, +=, inplace=True) into out-of-place ones where no alias can tell."""

    stage = Stage.NORMALIZED
    tolerance = EXACT

    def run(self, rw: Rewriter) -> None:
        """Replace each, and let what read the overwritten tensor later read the result."""
        writing = rw.nodes(writes_in_place)
        kept = _modules_to_keep(rw, writing)
        for node in writing:
            reason = _why_not(node)
            if reason is None and node.op == "call_module" and rw.module(node) in kept:
                reason = f"in-place, and another call of {node.target!r} has to stay so"
            if reason is not None:
                rw.skip(node, reason)
                continue
            written = node.all_input_nodes[0]
            later = [user for user in written.users if user > node] if produces_tensor(written) else []
            new = _replace(rw, node)
            for user in later:
                rw.replace_input(user, written, new, f"{new.name!r} no longer writes into {written.name!r}")
            if not new.users:
                _erase_unread(rw, new)


def _erase_unread(rw: Rewriter, node: Node) -> None:
    """Erase a node, and what was computed for it alone."""
    waiting = [node]
    for unread in waiting:  # grows while it is walked
        sources = unread.all_input_nodes
        rw.erase(unread, "nothing reads the result")
        waiting += [one for one in sources if not (one.users or writes_in_place(one) or has_effect(one))]


def _modules_to_keep(rw: Rewriter, writing: list[Node]) -> set[nn.Module]:
    """Return the modules with a call that has to stay in-place: there is one switch for all calls of a module."""
    return {rw.module(node) for node in writing if node.op == "call_module" and _why_not(node) is not None}


def _why_not(node: Node) -> str | None:
    """Return why ``node`` has to write where it does, None if it may write elsewhere."""
    written = node.all_input_nodes[0]
    if not produces_tensor(written):
        return None  # arithmetic on sizes
    sharing = aliases(written, without=node)  # what is made from the result goes with the result
    stored = next((alias for alias in sharing if alias.op == "get_attr"), None)
    if stored is not None:
        return f"in-place, and it writes to the stored tensor {stored.target!r}"
    if node.op != "call_module" and out_of_place_target(node) is None:
        return "in-place, and has no out-of-place form"
    for alias in sharing:
        if alias is not written and any(user > node for user in alias.users):
            return f"in-place, and {alias.name!r} shares its memory"
    return _why_not_dtype(node)


def _why_not_dtype(node: Node) -> str | None:
    values = [producer.meta.get("val") for producer in node.all_input_nodes]
    dtypes = [
        value.dtype for value in values if isinstance(value, Tensor) and value.dim() and value.is_floating_point()
    ]
    if len(set(dtypes)) > 1:
        return f"in-place, and it keeps {dtypes[0]} where the out-of-place form would promote"
    return None


def _replace(rw: Rewriter, node: Node) -> Node:
    why = "in-place became out-of-place: a quantizer may read its input"
    if node.op == "call_module":
        rw.module(node).inplace = False
        rw.edit(node, why)
        return node
    return rw.call_instead(node, out_of_place_target(node), *out_of_place_arguments(node), why)
