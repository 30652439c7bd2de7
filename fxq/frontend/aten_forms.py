"""Calls of aten operators as calls of the functions and methods of torch that people write, and that passes match.

torch.export leaves aten operators. Most are a method of Tensor, or a function of torch or torch.nn.functional, with the
same name and arguments; the tables here hold the others.
"""

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.nn import functional as F

_TO_THE_END = 2**62  # torch.export writes the largest integer where a slice has no end


class Form(NamedTuple):
    """A call as torch.fx records it; ``op`` is "call_function", "call_method", or "input": it returns its input."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


# They return more than the tensor that the function of torch returns.
RETURN_MORE = frozenset({
    "_native_batch_norm_legit_no_training", "native_batch_norm", "native_layer_norm", "native_group_norm",
    "max_pool2d_with_indices", "max_pool3d_with_indices",
})  # fmt: skip
# Nothing is left of them: checks of what the example inputs have shown already, and marks of torch.export.
DROPPED = frozenset({
    "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size",
})  # fmt: skip

_OPERATORS: Mapping[str, Callable[..., Any]] = MappingProxyType({
    "mul": operator.mul, "matmul": torch.matmul, "neg": operator.neg, "pow": operator.pow,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor,
    "floor_divide": operator.floordiv, "remainder": operator.mod,
})  # fmt: skip
# Of torch.nn.functional; what torch and Tensor have by the same name is another form, or means something else.
_FUNCTIONAL = frozenset({
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "relu", "relu6", "hardtanh", "silu", "hardswish", "hardsigmoid", "gelu", "mish", "leaky_relu", "elu", "celu",
    "selu", "softplus", "softsign", "logsigmoid", "prelu", "glu", "rms_norm", "pad", "one_hot",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "pixel_shuffle", "pixel_unshuffle", "cosine_similarity", "normalize",
})  # fmt: skip
_FAMILIES = frozenset({"linalg", "special", "fft"})  # modules of torch
_MODES = ("nearest", "linear", "bilinear", "bicubic", "trilinear")


def torch_form(target: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Form:
    """Return the call of ``target`` in the words of torch; as it is where torch has no other."""
    name = target._schema.name.removeprefix("aten::")
    if target.namespace != "aten":
        return Form("call_function", target, args, kwargs)
    given = _by_name(target, args, kwargs)
    special = _SPECIAL.get(name)
    if special is not None:
        form = special(given)
        if form is not None:
            return form
    if name.startswith("upsample_") and target._overloadname == "vec":
        return _interpolate(name, given)
    kwargs = _without_noise(kwargs)
    if name in _OPERATORS and not kwargs:
        return Form("call_function", _OPERATORS[name], args, {})
    if name in _FUNCTIONAL:
        return Form("call_function", getattr(F, name), args, kwargs)
    is_method = bool(args) and target._schema.arguments[0].name == "self" and isinstance(args[0], Node)
    if is_method and callable(getattr(Tensor, name, None)):
        return Form("call_method", name, args, kwargs)
    family, _, rest = name.partition("_")
    function = getattr(getattr(torch, family), rest, None) if family in _FAMILIES else getattr(torch, name, None)
    return Form("call_function", function if callable(function) else target, args, kwargs)


def _by_name(target: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments by name, defaults too."""
    given: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(args):
            given[argument.name] = args[position]
        elif argument.name in kwargs:
            given[argument.name] = kwargs[argument.name]
        else:
            given[argument.name] = argument.default_value if argument.has_default_value() else None
    return given


def _without_noise(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return ``kwargs`` without what says nothing: strided memory, not pinned, None."""
    return {
        name: value
        for name, value in kwargs.items()
        if not (value is None or (name == "pin_memory" and not value) or (name == "layout" and value is torch.strided))
    }


def _sum(function: Callable[..., Any], name: str) -> Callable[[dict[str, Any]], Form | None]:
    def form(given: dict[str, Any]) -> Form | None:
        pair = given["self"], given["other"]
        if given.get("alpha", 1) != 1:
            return Form("call_function", getattr(torch, name), pair, {"alpha": given["alpha"]})
        return Form("call_function", function, pair, {})

    return form


def _quotient(given: dict[str, Any]) -> Form:
    pair, mode = (given["self"], given["other"]), given.get("rounding_mode")
    if mode is not None:
        return Form("call_function", torch.div, pair, {"rounding_mode": mode})
    return Form("call_function", operator.truediv, pair, {})


def _slice(given: dict[str, Any]) -> Form:
    x, start, end, step = given["self"], given["start"], given["end"], given["step"]
    end = None if isinstance(end, int) and end >= _TO_THE_END else end
    start = None if start == 0 and not isinstance(start, Node) else start
    if start is None and end is None and step == 1:
        return Form("input", None, (x,), {})
    return _item(x, given["dim"], slice(start, end, None if step == 1 else step))


def _select(given: dict[str, Any]) -> Form:
    return _item(given["self"], given["dim"], given["index"])


def _item(x: Node, dim: int, index: Any) -> Form:
    if dim < 0:
        dim += x.meta["val"].dim()
    return Form("call_function", operator.getitem, (x, (*[slice(None)] * dim, index)), {})


def _index(given: dict[str, Any]) -> Form:
    indices = tuple(slice(None) if index is None else index for index in given["indices"])
    return Form("call_function", operator.getitem, (given["self"], indices), {})


def _embedding(given: dict[str, Any]) -> Form:
    return Form("call_function", F.embedding, (given["indices"], given["weight"]), {})


def _dropout(given: dict[str, Any]) -> Form:
    return Form("call_function", F.dropout, (given["input"], given["p"], given["train"]), {})


def _softmax(function: Callable[..., Any]) -> Callable[[dict[str, Any]], Form | None]:
    def form(given: dict[str, Any]) -> Form | None:
        if given.get("half_to_float"):
            return None
        dtype = {} if given.get("dtype") is None else {"dtype": given["dtype"]}
        return Form("call_function", function, (given["self"], given["dim"]), dtype)

    return form


def _max_pool(name: str) -> Callable[[dict[str, Any]], Form]:
    names = ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def form(given: dict[str, Any]) -> Form:
        values = tuple(given[each] for each in names)
        return Form("call_function", getattr(torch, name), (*values[:2], values[2] or values[1], *values[3:]), {})

    return form


def _interpolate(name: str, given: dict[str, Any]) -> Form:
    mode = max((found for found in _MODES if found in name), key=len)
    options: dict[str, Any] = {"mode": mode}
    if given["output_size"] is not None:
        options["size"] = given["output_size"]
    else:
        options["scale_factor"] = given["scale_factors"]
    if mode != "nearest":
        options["align_corners"] = given["align_corners"]
    if name.endswith("_aa"):
        options["antialias"] = True
    if "exact" in name:
        options["mode"] = "nearest-exact"
    return Form("call_function", F.interpolate, (given["input"],), options)


def _to(given: dict[str, Any]) -> Form | None:
    x, dtype, device = given["self"], given.get("dtype"), given.get("device")
    if given.get("copy") or given.get("memory_format") is not None or "other" in given:
        return None
    value = x.meta["val"]
    dtype = None if dtype == value.dtype else dtype
    device = None if device is None or torch.device(device) == value.device else device
    wanted = {key: one for key, one in (("device", device), ("dtype", dtype)) if one is not None}
    if not wanted:
        return Form("input", None, (x,), {})
    return Form("call_method", "to", (x, *wanted.values()), {})


def _unchanged(given: dict[str, Any]) -> Form:
    return Form("input", None, (given["self"],), {})


def _transposed(given: dict[str, Any]) -> Form:
    return Form("call_method", "transpose", (given["self"], -2, -1), {})


def _einsum(given: dict[str, Any]) -> Form | None:
    if given.get("path") is not None:
        return None
    return Form("call_function", torch.einsum, (given["equation"], *given["tensors"]), {})


def _batch_norm(given: dict[str, Any]) -> Form:
    names = ("input", "weight", "bias", "running_mean", "running_var")
    options = (given.get("training", False), given["momentum"], given["eps"], given.get("cudnn_enabled", True))
    return Form("call_function", torch.batch_norm, (*(given[name] for name in names), *options), {})


def _group_norm(given: dict[str, Any]) -> Form:
    args = tuple(given[name] for name in ("input", "group", "weight", "bias", "eps"))
    return Form("call_function", F.group_norm, args, {})


def _convolution(given: dict[str, Any]) -> Form:
    rank = given["weight"].meta["val"].dim() - 2
    options = ("output_padding", "groups", "dilation") if given["transposed"] else ("dilation", "groups")
    names = ("input", "weight", "bias", "stride", "padding", *options)
    function = getattr(F, f"conv{'_transpose' if given['transposed'] else ''}{rank}d")
    return Form("call_function", function, tuple(given[name] for name in names), {})


def _attention(given: dict[str, Any]) -> Form:
    # All of them: where attention drops out in training only, a graph of both modes needs the argument in both.
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    options = {"scale": given["scale"]} if given["scale"] is not None else {}
    options |= {"enable_gqa": True} if given.get("enable_gqa") else {}
    return Form("call_function", F.scaled_dot_product_attention, tuple(given[name] for name in names), options)


def _function(function: Callable[..., Any]) -> Callable[[dict[str, Any]], Form]:
    def form(given: dict[str, Any]) -> Form:
        values = tuple(value for name, value in given.items() if not name.startswith("cudnn_enable"))
        return Form("call_function", function, values, {})

    return form


def _method(name: str) -> Callable[[dict[str, Any]], Form]:
    def form(given: dict[str, Any]) -> Form:
        return Form("call_method", name, tuple(given.values()), {})

    return form


_SPECIAL: Mapping[str, Callable[[dict[str, Any]], Form | None]] = MappingProxyType({
    "add": _sum(operator.add, "add"),
    "sub": _sum(operator.sub, "sub"),
    "div": _quotient,
    "slice": _slice,
    "select": _select,
    "index": _index,
    "embedding": _embedding,
    "dropout": _dropout,
    "softmax": _softmax(torch.softmax),
    "log_softmax": _softmax(torch.log_softmax),
    "_softmax": _softmax(torch.softmax),
    "_log_softmax": _softmax(torch.log_softmax),
    "max_pool1d": _max_pool("max_pool1d"),
    "max_pool2d": _max_pool("max_pool2d"),
    "max_pool3d": _max_pool("max_pool3d"),
    "max_pool2d_with_indices": _max_pool("max_pool2d"),
    "max_pool3d_with_indices": _max_pool("max_pool3d"),
    "to": _to,
    "_to_copy": _to,
    "_unsafe_view": _method("reshape"),
    "_adaptive_avg_pool2d": _function(F.adaptive_avg_pool2d),
    "_adaptive_avg_pool3d": _function(F.adaptive_avg_pool3d),
    "lift_fresh_copy": _unchanged,
    "lift_fresh": _unchanged,
    "alias": _unchanged,
    "mT": _transposed,
    "einsum": _einsum,
    "convolution": _convolution,
    **dict.fromkeys(("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _function(F.layer_norm)),
    "native_group_norm": _group_norm,
    "group_norm": _function(F.group_norm),
    "sym_size": _method("size"),
    "sym_stride": _method("stride"),
    "sym_numel": _method("numel"),
    "split_with_sizes": _method("split"),
})  # fmt: skip
