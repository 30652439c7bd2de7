"""One form for each operation, so that later passes match one: modules for what has one, else one function."""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from fxq import ROUNDING, Pass, Rewriter, Stage, register_pass
from fxq.graph import only_reader, owner_path, produces_tensor, written_out
from fxq_passes.canonical.canonical_forms import CANONICAL, CLAMPS, FUNCTIONS, METHODS, WEIGHTED, ModuleForm
from fxq_passes.canonical.functional_layers import NORMS, StoredLayers, batch_norm_from, layer_from, norm_from
from fxq_passes.canonical.written_activations import activations_from_formulas
from fxq_passes.canonical.written_forms import add, subtract, sum_of
from fxq_passes.canonical.written_norms import norms_from_formulas

_POOLS = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}


@register_pass("functional_to_module")
@dataclass(frozen=True)
class FunctionalToModule(Pass):
    """Bring the forms of an operation together: F.relu(x) and x.relu() become nn.ReLU, x * sigmoid(x) nn.SiLU."""

    stage = Stage.NORMALIZED
    tolerance = ROUNDING  # a sum that becomes additions, an alpha that becomes a factor

    def run(self, rw: Rewriter) -> None:
        """Look each call up in the tables of ``forms``."""
        _layers_to_modules(rw)
        norms_from_formulas(rw)
        for node in rw.nodes(lambda node: node.op in ("call_function", "call_method")):
            target = node.target
            form = METHODS.get(str(target)) if node.op == "call_method" else FUNCTIONS.get(target)
            if form is not None:
                _to_module(rw, node, form)
            elif target in CLAMPS:
                _clamp_to_module(rw, node)
            elif target in CANONICAL:
                _to_canonical(rw, node)
            elif target in (torch.sum, "sum"):
                _to_additions(rw, node)
            elif target in (torch.mean, "mean") and rw.target.quantizes_inputs("global_avg_pool"):
                _to_pool(rw, node)
        activations_from_formulas(rw)


def _layers_to_modules(rw: Rewriter) -> None:
    """Give layers with stored tensors the places of those, before anything else is put there."""
    layers = StoredLayers(rw)
    for node in rw.nodes(lambda node: node.op == "call_function"):
        if node.target in WEIGHTED:
            layer_from(rw, node, WEIGHTED[node.target], layers)
        elif node.target in (F.batch_norm, torch.batch_norm):
            batch_norm_from(rw, node, layers)
        elif node.target in NORMS:
            norm_from(rw, node, layers)


def _to_module(rw: Rewriter, node: Node, form: ModuleForm) -> None:
    if len(node.args) > 1 + len(form.parameters):
        rw.skip(node, f"has arguments that {form.module.__name__} lacks")
        return
    given = dict(zip(form.parameters, node.args[1:], strict=False)) | dict(node.kwargs)
    options = {name: given.pop(name) for name in form.parameters if name in given}
    given.pop("_stacklevel", None)
    given.pop("input", None)
    unknown = [name for name, value in given.items() if value is not None and value is not False]
    if unknown:
        rw.skip(node, f"{form.module.__name__} has no {', '.join(unknown)}")
    elif any(isinstance(value, Node) for value in torch.utils._pytree.tree_leaves(options)):
        rw.skip(node, "its options are computed in the graph")
    else:
        _call(rw, node, form.module(**options))


def _clamp_to_module(rw: Rewriter, node: Node) -> None:
    given = dict(zip(("min", "max"), node.args[1:], strict=False)) | dict(node.kwargs)
    low, high = given.get("min"), given.get("max")
    value = node.meta.get("val")
    if isinstance(value, Tensor) and not value.is_floating_point():
        rw.skip(node, f"clamps {value.dtype}, which is no activation")
    elif low == 0 and high is None:
        _call(rw, node, nn.ReLU())
    elif isinstance(low, int | float) and isinstance(high, int | float) and low < high:
        _call(rw, node, nn.ReLU6() if (low, high) == (0, 6) else nn.Hardtanh(low, high))
    else:
        rw.skip(node, "clamps to bounds that no activation module has")


def _call(rw: Rewriter, node: Node, module: nn.Module) -> None:
    if not (node.args or "input" in node.kwargs):
        rw.skip(node, "its input is passed by an unknown name")
        return
    source: Any = node.args[0] if node.args else node.kwargs["input"]
    path = f"{owner_path(node)}.{type(module).__name__.lower()}".lstrip(".")
    rw.call_module_instead(node, path, module, (source,), f"canonical form: nn.{type(module).__name__}")


def _to_canonical(rw: Rewriter, node: Node) -> None:
    function = CANONICAL[node.target]
    kwargs = dict(node.kwargs)
    if kwargs.get("alpha", 1) != 1:
        call = written_out(node, add if function is operator.add else subtract)
        if isinstance(call, str):
            rw.skip(node, f"its alpha has no counterpart in the canonical form, and {call}")
        else:
            rw.write_out(node, call, "canonical form: alpha is a factor")
        return
    kwargs.pop("alpha", None)
    if kwargs.pop("rounding_mode", None) is not None or kwargs.pop("out", None):
        rw.skip(node, "its rounding_mode or out has no counterpart in the canonical form")
        return
    names = ("tensors", "dim") if function is torch.cat else ("input", "mat2" if "mat2" in kwargs else "other")
    args = (*node.args, *(kwargs.pop(name) for name in names[len(node.args) :] if name in kwargs))
    if kwargs or not produces_tensor(node):
        rw.skip(node, f"has arguments that {getattr(function, '__name__', function)} lacks")
        return
    rw.call_instead(node, function, args, {}, f"canonical form: {getattr(function, '__name__', function)}")


def _to_additions(rw: Rewriter, node: Node) -> None:
    """Turn the sum of a stack, along the dimension that it is stacked along, into additions."""
    stack = node.all_input_nodes[0] if node.all_input_nodes else node
    if stack.target is not torch.stack or only_reader(stack) is not node:
        return
    given: dict[str, Any] = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | dict(node.kwargs)
    stacked: dict[str, Any] = dict(zip(("tensors", "dim"), stack.args, strict=False)) | dict(stack.kwargs)
    value, dim = stack.meta.get("val"), given.pop("dim", None)
    given.pop("input", None)
    dims = dim if isinstance(dim, tuple | list) else (dim,)
    if any(given.values()) or not isinstance(value, Tensor) or not value.is_floating_point() or len(dims) != 1:
        return
    if not isinstance(dims[0], int) or (dims[0] - stacked.get("dim", 0)) % value.dim():
        return
    call = written_out(node, sum_of, [stacked["tensors"]])
    if not isinstance(call, str):
        rw.write_out(node, call, "canonical form: the sum of a stack is an addition")
        rw.erase(stack, "its sum was all that was read")


def _to_pool(rw: Rewriter, node: Node) -> None:
    """Turn the mean over all positions of a feature map into global average pooling."""
    given: dict[str, Any] = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | dict(node.kwargs)
    source, dim = given.pop("input", None), given.pop("dim", None)
    keeps_dims = given.pop("keepdim", False)
    value = source.meta.get("val") if isinstance(source, Node) else None
    dims = dim if isinstance(dim, tuple | list) else (dim,)
    if given or not isinstance(value, Tensor) or value.dim() not in _POOLS or not all(type(one) is int for one in dims):
        return
    if not value.is_floating_point() or sorted(one % value.dim() for one in dims) != [*range(2, value.dim())]:
        return
    why, pool = "canonical form: the mean over all positions is global average pooling", _POOLS[value.dim()]
    if keeps_dims:
        pooled = rw.call_instead(node, pool, (source, 1), {}, why)
    else:
        pooled = rw.insert_call(node, pool, (source, 1), node, value=value.mean(dims, keepdim=True))
        rw.call_instead(node, "flatten", (pooled, 1), {}, why)
    _to_module(rw, pooled, FUNCTIONS[pool])
