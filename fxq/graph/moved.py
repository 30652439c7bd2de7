"""A model that was cast or moved to another device after it was traced: what was traced follows."""

from typing import Any

from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree


def follow_move(gm: GraphModule, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Bring the traced values of ``gm`` where its parameters are now, and return ``inputs`` there."""
    own = next((tensor for tensor in gm.parameters() if tensor.is_floating_point()), None)
    if own is None:
        return inputs
    valued = [node for node in gm.graph.nodes if "val" in node.meta]
    leaves = [leaf for node in valued for leaf in _tensors(node.meta["val"])]
    was_cast = own.dtype not in {leaf.dtype for leaf in leaves}

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(own.device, own.dtype if was_cast and tensor.is_floating_point() else tensor.dtype)

    if was_cast or any(leaf.device != own.device for leaf in leaves):
        for node in valued:
            node.meta["val"] = pytree.tree_map_only(Tensor, move, node.meta["val"])
    return pytree.tree_map_only(Tensor, move, inputs)  # type: ignore[no-any-return]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):  # as of most nodes
        return [value]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
