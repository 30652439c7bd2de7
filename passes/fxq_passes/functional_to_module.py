"""One form for each operation, so that later passes match one: modules for what has one, else one function."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from fxq import EXACT, Pass, Rewriter, Stage, register_pass
from fxq.graph import owner_path, produces_tensor
from fxq_passes.canonical.canonical_forms import CANONICAL, CLAMPS, FUNCTIONS, METHODS, WEIGHTED, ModuleForm
from fxq_passes.canonical.functional_layers import StoredLayers, batch_norm_from, layer_from


@register_pass("functional_to_module")
@dataclass(frozen=True)
class FunctionalToModule(Pass):
    """Bring the forms of an operation together: F.relu and x.relu() become nn.ReLU, torch.add becomes +."""

    stage = Stage.NORMALIZED
    tolerance = EXACT

    def run(self, rw: Rewriter) -> None:
        """Look each call up in the tables of ``forms``."""
        _layers_to_modules(rw)
        for node in rw.nodes(lambda node: node.op in ("call_function", "call_method")):
            target = node.target
            form = METHODS.get(str(target)) if node.op == "call_method" else FUNCTIONS.get(target)
            if form is not None:
                _to_module(rw, node, form)
            elif target in CLAMPS:
                _clamp_to_module(rw, node)
            elif target in CANONICAL:
                _to_canonical(rw, node)


def _layers_to_modules(rw: Rewriter) -> None:
    """Give layers with stored tensors the places of those, before anything else is put there."""
    layers = StoredLayers(rw)
    for node in rw.nodes(lambda node: node.op == "call_function"):
        if node.target in WEIGHTED:
            layer_from(rw, node, WEIGHTED[node.target], layers)
        elif node.target in (F.batch_norm, torch.batch_norm):
            batch_norm_from(rw, node, layers)


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
    if kwargs.pop("alpha", 1) != 1 or kwargs.pop("rounding_mode", None) is not None or kwargs.pop("out", None):
        rw.skip(node, "its alpha, rounding_mode or out has no counterpart in the canonical form")
        return
    names = ("tensors", "dim") if function is torch.cat else ("input", "mat2" if "mat2" in kwargs else "other")
    args = (*node.args, *(kwargs.pop(name) for name in names[len(node.args) :] if name in kwargs))
    if kwargs or not produces_tensor(node):
        rw.skip(node, f"has arguments that {getattr(function, '__name__', function)} lacks")
        return
    rw.call_instead(node, function, args, {}, f"canonical form: {getattr(function, '__name__', function)}")
