"""Kinds: what an operation computes, as one word. The vocabulary that targets, passes and reports share.

The tables know the canonical form of an operation (``functional_to_module`` brings the others there first), and
the many names of operations that only move data. :func:`register_kind` adds words: what is registered is
kept here, and not in ``fxq.registry``, since targets, which lie below the registry, speak these words.
"""

import difflib
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F

from fxq.errors import PluginError, TargetError

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
        nn.RMSNorm: "rms_norm",
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
        F.rms_norm: "rms_norm",
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

# Words that no table holds: the operations of fx itself, and what is told apart by more than a class.
_OTHER_WORDS = frozenset({
    "adaptive_avg_pool", "global_avg_pool", "quantizer", "placeholder", "get_attr", "output", "other",
})  # fmt: skip

# Layers that store what they compute with; "matmul" stands for a product with a stored matrix.
WEIGHTED_KINDS = frozenset({
    "conv", "conv_transpose", "linear", "matmul", "embedding", "multihead_attention",
    "lstm", "gru", "rnn", "lstm_cell", "gru_cell", "rnn_cell",
})  # fmt: skip
BUILT_IN_KINDS = _OTHER_WORDS.union(MODULE_KINDS.values(), FUNCTION_KINDS.values(), METHOD_KINDS.values())

registered: dict[Any, str] = {}  # by class or function, what register_kind gave it
_class_kinds: WeakKeyDictionary[type[nn.Module], str | None] = WeakKeyDictionary()  # what was looked up


def register_kind(word: str, *operations: type[nn.Module] | Callable[..., Any]) -> None:
    """Give module classes and functions a kind, so that targets can have rules for them.

    A module of such a class stays whole when a model is traced, and so do those of its subclasses that have no kind of
    their own. A function must be one that tracing sees as one call: torch's own, or behind ``torch.fx.wrap``.

    Args:
        word: a new word, or one that exists: then the operation is taken for one of that kind.
        operations: module classes and functions.

    Raises:
        PluginError: the word is none, or an operation is neither, or has another kind already.
    """
    if not (isinstance(word, str) and word.isidentifier() and word == word.lower()):
        raise PluginError(f"kind {word!r}: use lower-case words joined by underscores")
    if not operations:
        raise PluginError(f'kind {word!r} belongs to nothing: write fxq.register_kind("{word}", MyModule)')
    for operation in operations:
        is_module = isinstance(operation, type) and issubclass(operation, nn.Module) and operation is not nn.Module
        if not is_module and (isinstance(operation, type | nn.Module) or not callable(operation)):
            raise PluginError(f"kind {word!r} is for module classes and functions, got {operation!r}")
        taken = own_kind(operation)
        if taken not in (None, word):
            raise PluginError(f"{_name(operation)} is of kind {taken!r} and cannot be of kind {word!r} as well")
    registered.update(dict.fromkeys(operations, word))
    forget_looked_up()


def forget_looked_up() -> None:
    """Look up the kinds of classes anew: what is registered has changed."""
    _class_kinds.clear()


def own_kind(operation: Any) -> str | None:
    """Return the kind that this very class or function has, None where it has none."""
    return registered.get(operation) or MODULE_KINDS.get(operation) or FUNCTION_KINDS.get(operation)


def class_kind(module_type: type[nn.Module]) -> str | None:
    """Return the kind of the first class in the ancestry that has one, None where none has."""
    found = _class_kinds.get(module_type, "")
    if found == "":
        found = _class_kinds[module_type] = next(filter(None, map(own_kind, module_type.__mro__)), None)
    return found


def is_registered(module_type: type[nn.Module]) -> bool:
    """Return whether the class, or the first in its ancestry that has a kind, got it by :func:`register_kind`."""
    return next((base in registered for base in module_type.__mro__ if own_kind(base) is not None), False)


def known_kinds() -> frozenset[str]:
    """Return all words."""
    return BUILT_IN_KINDS.union(registered.values())


def check_kind(word: Any, where: str) -> None:
    """Raise a TargetError, which begins with ``where``, if ``word`` is no kind; it suggests one."""
    words = known_kinds()
    if isinstance(word, str) and word in words:
        return
    close = difflib.get_close_matches(str(word), words, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "fxq.register_kind adds one"
    raise TargetError(f"{where}: there is no kind {word!r}; {hint}")


def _name(operation: Any) -> str:
    return f"{operation.__module__}.{operation.__qualname__}"
