"""Where an operation puts the channels of a tensor, if a positive factor for each channel passes through it."""

import re
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from fxq.graph import kind, module_of, shape_of

_ELEMENTWISE = frozenset({"relu", "leaky_relu", "prelu"})
_POOLS = frozenset({"max_pool", "avg_pool", "adaptive_avg_pool", "global_avg_pool"})
CARRIERS = _ELEMENTWISE | _POOLS | {"resize", "pad", "mean", "reshape", "transpose"}
_MIXES = frozenset({"roll", "channel_shuffle", "native_channel_shuffle"})


def carried_axis(node: Node, axis: int) -> int | None:
    """Return the channel dimension of what ``node``, of CARRIERS, makes of one whose channels are dimension ``axis``.

    None where it mixes channels, does not keep them as one dimension, or where a factor does not pass through.
    """
    word, before, after = kind(node), shape_of(node.all_input_nodes[0]), shape_of(node)
    if before is None or after is None or len(node.all_input_nodes) > 1:
        return None
    if word in _ELEMENTWISE:
        return axis
    if word in _POOLS:
        return axis if axis == len(before) - _pooled_dims(node, before) - 1 else None
    if word == "resize":
        return axis if axis == 1 else None
    if word == "pad":
        return axis if _pads_with_zeros(node, len(before) - 1 - axis) else None
    if word == "transpose":
        return _transposed(node, before, axis)
    return _averaged(node, before, axis) if word == "mean" else _reshaped(node, before, after, axis)


def _pooled_dims(node: Node, shape: tuple[int, ...]) -> int:
    """Return how many trailing dimensions a pooling works on, as its name says."""
    names = [one.__name__ for one in type(module_of(node)).__mro__] if node.op == "call_module" else [str(node.target)]
    found = re.search(r"([123])d", " ".join(names).lower())
    return len(shape) - 2 if found is None else int(found.group(1))


def _pads_with_zeros(node: Node, place: int) -> bool:
    """Return whether a pad adds zeros, and none along the dimension at ``place`` from the end."""
    if node.op == "call_module":
        module: Any = module_of(node)
        return isinstance(module, nn.ZeroPad2d) and not any(module.padding[2 * place : 2 * place + 2])
    widths = node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else None)
    mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    if str(mode) != "constant" or value not in (None, 0, 0.0) or not isinstance(widths, tuple | list):
        return False
    return not any(widths[2 * place : 2 * place + 2])


def _averaged(node: Node, before: tuple[int, ...], axis: int) -> int | None:
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    keeps = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    listed = dims if isinstance(dims, tuple | list) else [dims]
    gone = {dim % len(before) for dim in listed if isinstance(dim, int)}
    if len(gone) != len(listed) or axis in gone:
        return None
    return axis if keeps else axis - sum(dim < axis for dim in gone)


def _reshaped(node: Node, before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int | None:
    """Return the place of the channels where only dimensions of one element come and go."""
    name = module_of(node) if node.op == "call_module" else getattr(node.target, "__name__", node.target)
    if name in _MIXES or isinstance(name, nn.ChannelShuffle) or before[axis] == 1:
        return None
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return None
    place = sum(size != 1 for size in before[:axis])
    return [dim for dim, size in enumerate(after) if size != 1][place]


def _transposed(node: Node, shape: tuple[int, ...], axis: int) -> int | None:
    """Return where a transposition puts dimension ``axis``: it runs on a tensor without data whose strides tell."""
    strides = [2**dim for dim in range(len(shape))]
    probe = torch.empty_strided(shape, strides, device="meta")
    if node.op == "call_module":
        return None
    function = getattr(probe, str(node.target)) if node.op == "call_method" else node.target
    args = node.args[1:] if node.op == "call_method" else (probe, *node.args[1:])
    kwargs = {name: value for name, value in node.kwargs.items() if not isinstance(value, Node)}
    moved: torch.Tensor = function(*args, **kwargs)  # type: ignore[operator]
    return moved.stride().index(strides[axis])
