"""What a node computes, as one word: the vocabulary that targets, passes and reports share.

Passes match kinds, not spellings. ``functional_to_module`` brings the spellings of one operation together first, so
that the tables here need to know only the canonical one, and the many names of operations that only move data.
"""

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxq.graph.modules import find_module
from fxq.nn.tensor_quantizer import TensorQuantizer

# Looked up along the class's bases, so that subclasses (QuantConv2d) are of their base's kind.
MODULE_KINDS: Mapping[type[nn.Module], str] = MappingProxyType(
    {
        **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), "conv"),
        **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "conv_transpose"),
        nn.Linear: "linear",
        **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), "batch_norm"),
        **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), "max_pool"),
        **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), "max_pool"),
        **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), "avg_pool"),
        **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), "adaptive_avg_pool"),
        **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), "dropout"),
        nn.FeatureAlphaDropout: "dropout",
        nn.Identity: "identity",
        nn.ReLU: "relu",
        nn.ReLU6: "relu6",
        nn.Hardtanh: "clip",
        nn.SiLU: "silu",
        nn.Hardswish: "hardswish",
        nn.Hardsigmoid: "hardsigmoid",
        nn.Sigmoid: "sigmoid",
        nn.Tanh: "tanh",
        nn.GELU: "gelu",
        nn.LeakyReLU: "leaky_relu",
        nn.PReLU: "prelu",
        nn.ELU: "elu",
        nn.Mish: "mish",
        nn.Softmax: "softmax",
        nn.LogSoftmax: "log_softmax",
        nn.LayerNorm: "layer_norm",
        nn.GroupNorm: "group_norm",
        **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), "instance_norm"),
        nn.Flatten: "reshape",
        nn.Unflatten: "reshape",
        nn.PixelShuffle: "reshape",
        nn.PixelUnshuffle: "reshape",
        nn.ChannelShuffle: "reshape",
        nn.ZeroPad2d: "pad",
        nn.Upsample: "resize",
        nn.Embedding: "embedding",
        nn.MultiheadAttention: "multihead_attention",
        nn.LSTM: "lstm",
        nn.GRU: "gru",
        nn.RNN: "rnn",
        nn.LSTMCell: "lstm_cell",
        nn.GRUCell: "gru_cell",
        nn.RNNCell: "rnn_cell",
        TensorQuantizer: "quantizer",
    }
)

FUNCTION_KINDS: Mapping[Callable[..., Any], str] = MappingProxyType(
    {
        operator.add: "add",
        operator.sub: "sub",
        operator.mul: "mul",
        operator.truediv: "div",
        torch.matmul: "matmul",
        torch.cat: "cat",
        torch.mean: "mean",
        operator.getitem: "slice",
        getattr: "getattr",
        **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze), "reshape"),
        **dict.fromkeys((torch.permute, torch.transpose, torch.swapaxes, torch.movedim, torch.t), "transpose"),
        **dict.fromkeys((torch.chunk, torch.split, torch.unbind, torch.narrow), "slice"),
        **dict.fromkeys((torch.channel_shuffle, F.pixel_shuffle, F.pixel_unshuffle), "reshape"),
        F.pad: "pad",
        F.interpolate: "resize",
        F.scaled_dot_product_attention: "attention",
        F.layer_norm: "layer_norm",
        F.embedding: "embedding",
    }
)

METHOD_KINDS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous", "clone", "expand"), "reshape"
        ),
        **dict.fromkeys(("detach", "expand_as", "view_as", "reshape_as", "unflatten", "roll"), "reshape"),
        **dict.fromkeys(("permute", "transpose", "swapaxes", "movedim", "t"), "transpose"),
        **dict.fromkeys(("chunk", "split", "unbind", "narrow"), "slice"),
        **dict.fromkeys(("size", "dim", "numel", "stride"), "shape"),
        "mean": "mean",
    }
)

# Operations that copy values to other places and compute none: a quantizer may move across them.
MOVES_DATA = frozenset({"reshape", "transpose", "slice"})
ACTIVATIONS = frozenset({
    "relu", "relu6", "clip", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "gelu", "leaky_relu", "prelu",
    "elu", "mish",
})  # fmt: skip
# They produce tuples of tensors; an operator.getitem behind them takes one out.
_TUPLE_MAKERS: frozenset[Any] = frozenset({torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind"})
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_SHAPE_ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "training"})


def kind(node: Node) -> str:
    """Return what ``node`` computes: a word of the tables above, or its placeholder/output op, or "other"."""
    if node.op == "call_module":
        return module_kind(module_of(node))
    if node.op == "call_function":
        return FUNCTION_KINDS.get(node.target, "other")  # type: ignore[arg-type]
    if node.op == "call_method":
        return METHOD_KINDS.get(str(node.target), "other")
    return node.op


def module_kind(module: nn.Module) -> str:
    """Return the kind of the first class in the module's ancestry that has one, or "other"."""
    if isinstance(module, _ADAPTIVE):
        return "global_avg_pool" if _is_one(module.output_size) else "adaptive_avg_pool"
    return next((MODULE_KINDS[base] for base in type(module).__mro__ if base in MODULE_KINDS), "other")


def module_of(node: Node) -> nn.Module:
    """Return the module that a call_module node calls."""
    gm, path = node.graph.owning_module, str(node.target)
    found = find_module(gm, path)
    return gm.get_submodule(path) if found is None else found  # type: ignore[union-attr]  # it says what is missing


def produces_tensor(node: Node) -> bool:
    """Return False for sizes, shapes and arithmetic on them; from traced values where there are, else from kinds."""
    if "val" in node.meta and node.meta["val"] is not None:
        return isinstance(node.meta["val"], torch.Tensor)
    found = kind(node)
    if found == "shape" or (found == "getattr" and node.args[1] in _SHAPE_ATTRIBUTES):
        return False
    if node.target in _TUPLE_MAKERS:
        return False
    if node.target is operator.getitem and node.all_input_nodes[0].target in _TUPLE_MAKERS:
        return True
    if found in {"slice", "add", "sub", "mul", "div"} or node.target in (operator.floordiv, operator.mod):
        return any(produces_tensor(producer) for producer in node.all_input_nodes)
    return node.op != "output"


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
