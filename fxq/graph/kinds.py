"""What a node computes: the kinds of :mod:`fxq.kinds`, asked of nodes."""

import operator
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from fxq.graph.altered import why_altered
from fxq.kinds import ACTIVATIONS, METHOD_KINDS, MOVES_DATA, WEIGHTED_KINDS, class_kind, own_kind
from fxq.nn.tensor_quantizer import TensorQuantizer

__all__ = [
    "ACTIVATIONS", "MOVES_DATA", "kind", "module_kind", "module_of", "produces_tensor", "produces_values",
    "reads_shape", "shape_of",
]  # fmt: skip

# They produce tuples of tensors; an operator.getitem behind them takes one out.
_TUPLE_MAKERS: frozenset[Any] = frozenset({torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind"})
_LAYERS = WEIGHTED_KINDS | {"batch_norm"}
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_SHAPE_ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "training"})


def kind(node: Node) -> str:
    """Return what ``node`` computes: a word of the tables above, or its placeholder/output op, or "other"."""
    if node.op == "call_module":
        return module_kind(module_of(node))
    if node.op == "call_function":
        return own_kind(node.target) or "other"
    if node.op == "call_method":
        return METHOD_KINDS.get(str(node.target), "other")
    return node.op


def module_kind(module: nn.Module) -> str:
    """Return the kind of the first class in the module's ancestry that has one, or "other".

    "other" is also what an altered module is (see ``altered.py``), but for layers, which are left in float by name.
    """
    if isinstance(module, TensorQuantizer):
        return "quantizer"
    found = class_kind(type(module)) or "other"
    if found == "adaptive_avg_pool" and isinstance(module, _ADAPTIVE):
        found = "global_avg_pool" if _is_one(module.output_size) else "adaptive_avg_pool"
    return "other" if found not in _LAYERS and why_altered(module) else found


def module_of(node: Node) -> nn.Module:
    """Return the module that a call_module node calls."""
    found: Any = node.graph.owning_module
    for name in str(node.target).split("."):  # not by a function: this is asked of each node again and again
        found = found._modules.get(name)
        if found is None:
            gm: Any = node.graph.owning_module
            return gm.get_submodule(str(node.target))  # type: ignore[no-any-return]  # it says what is missing
    return found  # type: ignore[no-any-return]


def produces_tensor(node: Node) -> bool:
    """Return False for sizes, shapes and arithmetic on them; from traced values where there are, else from kinds."""
    if "val" in node.meta and node.meta["val"] is not None:
        return isinstance(node.meta["val"], torch.Tensor)
    found = kind(node)
    if reads_shape(node):
        return False
    if node.target in _TUPLE_MAKERS:
        return False
    if node.target is operator.getitem and node.all_input_nodes[0].target in _TUPLE_MAKERS:
        return True
    if found in {"slice", "add", "sub", "mul", "div"} or node.target in (operator.floordiv, operator.mod):
        return any(produces_tensor(producer) for producer in node.all_input_nodes)
    return node.op != "output"


def reads_shape(node: Node) -> bool:
    """Return whether ``node`` asks for the shape or the type of its input, and reads no values."""
    found = kind(node)
    return found == "shape" or (found == "getattr" and node.args[1] in _SHAPE_ATTRIBUTES)


def produces_values(node: Node) -> bool:
    """Return whether ``node`` produces a tensor or a container of tensors, as chunk and recurrent layers do."""
    value = node.meta.get("val")
    if value is not None:
        return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))
    return node.target in _TUPLE_MAKERS or produces_tensor(node)


def shape_of(node: Node) -> tuple[int, ...] | None:
    """Return the traced shape of the tensor that ``node`` produces, None where it is not known."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else None


def _is_one(size: Any) -> bool:
    return all(item == 1 for item in (size if isinstance(size, tuple | list) else (size,)))
