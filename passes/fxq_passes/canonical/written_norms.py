"""Normalizations over the last dimension that a model writes out as a formula become the module that computes them.

``x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)`` is nn.RMSNorm, of ``x - x.mean(-1, keepdim=True)`` it is
nn.LayerNorm; the scale and shift behind it are the module's. Language models have them so. Step by step they would be
averages of squares and products, which some targets quantize: eight bits of a square say next to nothing of the small.

Sources: Zhang and Sennrich 2019, arXiv:1910.07467 (RMSNorm); Ba et al. 2016, arXiv:1607.06450 (layer normalization).
"""

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxq import Rewriter
from fxq.graph import kind, only_reader, owner_path
from fxq.graph.modules import find_module, only_holds
from fxq_passes.canonical.formulas import are_alike, calls, replace_formula

_POWER, _SQUARE = (torch.pow, operator.pow, "pow"), (torch.square, "square")
_ROOT, _INVERSE_ROOT = (torch.sqrt, "sqrt"), (torch.rsqrt, "rsqrt")
_VARIANCE = (torch.var, "var")


class _Normalized(NamedTuple):
    """What is divided by the root of ``eps`` plus its mean square, less its mean before or not."""

    source: Node
    eps: float
    is_centered: bool


def norms_from_formulas(rw: Rewriter) -> None:
    """Replace each formula by its module, with the parameters that scale and shift it."""
    for node in rw.nodes(lambda node: kind(node) in ("mul", "div")):
        found = _normalized(node)
        if found is None or not are_alike(found.source, node):
            continue
        size = node.meta["val"].shape[-1]
        scale = _parameter_of(rw, node, "mul", size)
        shift = None if scale is None or not found.is_centered else _parameter_of(rw, scale[0], "add", size)
        _replace(rw, node, found, scale, shift)


def _replace(
    rw: Rewriter,
    node: Node,
    found: _Normalized,
    scale: tuple[Node, Node] | None,
    shift: tuple[Node, Node] | None,
) -> None:
    value = node.meta["val"]
    options: dict[str, Any] = {"eps": found.eps, "elementwise_affine": False, "device": "meta", "dtype": value.dtype}
    norm = nn.LayerNorm if found.is_centered else nn.RMSNorm
    module: nn.Module = norm(value.shape[-1], **options)
    path = f"{owner_path(node)}.{norm.__name__.lower()}".lstrip(".")
    owner = ""
    for name, parameter in (("weight", scale), ("bias", shift)):
        if parameter is not None:
            node, stored = parameter
            module.elementwise_affine = True  # type: ignore[assignment]
            module.register_parameter(name, rw.tensor(stored))  # type: ignore[arg-type]
            owner = str(stored.target).rpartition(".")[0]
    if owner and only_holds(find_module(rw.gm, owner), module):
        path = owner
    replace_formula(rw, node, found.source, module, path)


def _normalized(node: Node) -> _Normalized | None:
    """Return what ``node`` normalizes, None where it does something else."""
    if len(node.args) != 2 or node.kwargs or not all(isinstance(one, Node) for one in node.args):
        return None
    pairs: list[Any] = [node.args] if kind(node) == "div" else [node.args, node.args[::-1]]
    for values, root in pairs:
        spread = _under_root(root, _ROOT if kind(node) == "div" else _INVERSE_ROOT)
        if spread is None:
            continue
        variance, eps = spread
        centered = _centered(values)
        squared = _squared(variance)
        if squared is not None and (squared is values or (centered is not None and _centered(squared) is centered)):
            return _Normalized(values if centered is None else centered, eps, centered is not None)
        if centered is not None and _is_variance(variance, centered):
            return _Normalized(centered, eps, is_centered=True)
    return None


def _under_root(node: Node, roots: tuple[object, ...]) -> tuple[Node, float] | None:
    """Return v and eps where ``node`` is the root, or inverse root, of ``v + eps``."""
    exponent = 0.5 if roots is _ROOT else -0.5
    is_root = calls(node, roots) or (calls(node, _POWER) and len(node.args) == 2 and node.args[1] == exponent)
    total = node.args[0] if is_root and node.args else None
    if not isinstance(total, Node) or kind(total) != "add" or len(total.args) != 2 or total.kwargs:
        return None
    for value, eps in (total.args, total.args[::-1]):
        if isinstance(value, Node) and isinstance(eps, float) and eps >= 0:
            return value, eps
    return None


def _centered(node: Node) -> Node | None:
    """Return x where ``node`` is x less its mean."""
    if kind(node) != "sub" or len(node.args) != 2 or node.kwargs:
        return None
    source, mean = node.args
    is_mean = isinstance(mean, Node) and kind(mean) == "mean" and _over_last(mean) is source
    return source if is_mean and isinstance(source, Node) else None


def _squared(node: Node) -> Node | None:
    """Return x where ``node`` is the mean of its square."""
    square = _over_last(node) if kind(node) == "mean" else None
    if square is None or square.kwargs or not square.args or not isinstance(square.args[0], Node):
        return None
    source = square.args[0]
    if calls(square, _POWER):
        return source if square.args[1:] == (2,) else None
    is_square = calls(square, _SQUARE) or (kind(square) == "mul" and square.args == (source, source))
    return source if is_square else None


def _is_variance(node: Node, source: Node) -> bool:
    if not calls(node, _VARIANCE) or _over_last(node) is not source:
        return False
    return node.kwargs.get("unbiased") is False or node.kwargs.get("correction") in (0, 0.0)


def _over_last(node: Node) -> Node | None:
    """Return what ``node`` reduces over the last dimension, which it keeps; None where it does otherwise."""
    given = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | dict(node.kwargs)
    source, dim = given.get("input"), given.get("dim")
    value = source.meta.get("val") if isinstance(source, Node) else None
    if given.get("keepdim") is not True or not isinstance(value, Tensor) or given.get("dtype") is not None:
        return None
    dims = [dim] if isinstance(dim, int) else list(dim) if isinstance(dim, tuple | list) else []
    is_last = len(dims) == 1 and dims[0] in (-1, value.dim() - 1)
    return source if is_last and isinstance(source, Node) else None


def _parameter_of(rw: Rewriter, node: Node, word: str, size: int) -> tuple[Node, Node] | None:
    """Return the only reader of ``node``, if it is the operator ``word`` with a parameter (size,), and that read."""
    reader = only_reader(node)
    if reader is None or kind(reader) != word or len(reader.args) != 2 or reader.kwargs:
        return None
    stored = next((one for one in reader.args if isinstance(one, Node) and one.op == "get_attr"), None)
    tensor = None if stored is None else rw.tensor(stored)
    return (reader, stored) if isinstance(tensor, nn.Parameter) and tensor.shape == (size,) else None  # type: ignore[return-value]
