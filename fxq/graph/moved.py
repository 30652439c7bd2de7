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
    values = [node.meta["val"] for node in gm.graph.nodes if "val" in node.meta]
    dtypes = {leaf.dtype for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)}
    was_cast = own.dtype not in dtypes

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(own.device, own.dtype if was_cast and tensor.is_floating_point() else tensor.dtype)

    for node in gm.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map_only(Tensor, move, node.meta["val"])
    return pytree.tree_map_only(Tensor, move, inputs)  # type: ignore[no-any-return]
