"""Functional layers on stored parameters, ``F.conv2d(x, self.weight)``, as modules that hold the same tensors."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from fxq import Rewriter
from fxq.graph import module_of
from fxq.graph.modules import find_module, only_holds
from fxq_passes.canonical.canonical_forms import WEIGHTED, WeightedForm

_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_TORCH_BATCH_NORM = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
_BATCH_NORMS: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d,
}  # fmt: skip
_LAYERS = (*_BATCH_NORMS.values(), nn.LayerNorm, nn.RMSNorm, *(row.module for row in WEIGHTED.values()))
_TENSORS = ("weight", "bias", "running_mean", "running_var")
NORMS: Mapping[Callable[..., Any], tuple[type[nn.LayerNorm | nn.RMSNorm], tuple[str, ...]]] = MappingProxyType(
    {
        **dict.fromkeys(
            (F.layer_norm, torch.layer_norm), (nn.LayerNorm, ("input", "normalized_shape", "weight", "bias", "eps"))
        ),
        **dict.fromkeys((F.rms_norm, torch.rms_norm), (nn.RMSNorm, ("input", "normalized_shape", "weight", "eps"))),
    }
)
_RANKS = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}


class StoredLayers:
    """The layers of a model by the memory of their tensors, to find the one that an earlier call became.

    Args:
        rw: of the pass; looked through once, at the first question: most models call their layers as modules.
    """

    def __init__(self, rw: Rewriter) -> None:
        self._rw = rw

    @functools.cached_property
    def _found(self) -> dict[Any, list[tuple[str, nn.Module]]]:
        found: dict[Any, list[tuple[str, nn.Module]]] = {}
        for path, module in self._rw.gm.named_modules():
            if isinstance(module, _LAYERS):
                found.setdefault(_memory(module), []).append((path, module))
        return found

    def add(self, path: str, module: nn.Module) -> None:
        """Remember where a layer is."""
        self._found.setdefault(_memory(module), []).append((path, module))

    def like(self, module: nn.Module) -> tuple[str, nn.Module] | None:
        """Return path and module of the layer that computes the same, None if there is none."""
        return next((found for found in self._found.get(_memory(module), ()) if _is_same_layer(found[1], module)), None)


def layer_from(rw: Rewriter, node: Node, form: WeightedForm, layers: StoredLayers) -> None:
    """Replace a functional convolution or linear layer by a module with the same weight and bias."""
    given = _arguments(node, ("input", "weight", "bias", *form.options))
    source, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    weight_tensor, bias_tensor = _stored(rw, weight), _stored(rw, bias)
    if weight_tensor is None or (bias is not None and bias_tensor is None):
        rw.skip(node, "its weight or bias is computed in the graph")
        return
    if any(isinstance(value, Node) for value in torch.utils._pytree.tree_leaves(given)):
        rw.skip(node, "its options are computed in the graph")
        return
    module = _build(form, weight_tensor, bias_tensor, given)
    _call(rw, node, source, module, weight, layers)


def batch_norm_from(rw: Rewriter, node: Node, layers: StoredLayers) -> None:
    """Replace a functional batch norm at inference by a module with the same statistics."""
    given = _arguments(node, _TORCH_BATCH_NORM if node.target is torch.batch_norm else _BATCH_NORM)
    mean, var, weight, bias = (
        _stored(rw, given.get(name)) for name in ("running_mean", "running_var", "weight", "bias")
    )
    if given.get("training", False) or mean is None or var is None:
        rw.skip(node, "normalizes with the statistics of the batch")
        return
    if (weight is None) != (given.get("weight") is None) or (bias is None) != (given.get("bias") is None):
        rw.skip(node, "its parameters are computed in the graph")
        return
    rank = _rank(given["input"])
    if rank is None:
        rw.skip(node, "the rank of its input is not known; give prepare() example_inputs")
        return
    momentum, eps = given.get("momentum", 0.1), given.get("eps", 1e-5)
    module = _BATCH_NORMS[rank](len(mean), eps, momentum, affine=False, device=mean.device)
    module.running_mean, module.running_var = mean, var
    module.register_parameter("weight", _parameter(weight))
    module.register_parameter("bias", _parameter(bias))
    _call(rw, node, given["input"], module, given["running_mean"], layers)


def norm_from(rw: Rewriter, node: Node, layers: StoredLayers) -> None:
    """Replace a functional layer norm or RMS norm with a stored scale by a module with the same parameters."""
    kind, names = NORMS[node.target]  # type: ignore[index]
    given = _arguments(node, names)
    source, shape = given.pop("input"), given.pop("normalized_shape")
    tensors = {name: _stored(rw, given.get(name)) for name in ("weight", "bias")}
    weight, is_shifted = tensors["weight"], given.get("bias") is not None
    is_like = weight is not None and isinstance(shape, tuple | list) and tuple(shape) == weight.shape
    if weight is None or not is_like or is_shifted != (tensors["bias"] is not None):
        return  # nothing to change: a runtime has one operator for it, whatever its parameters are
    eps = {"eps": given["eps"]} if "eps" in given else {}
    module = kind(weight.shape, elementwise_affine=False, device="meta", **eps)
    module.elementwise_affine = True
    for name, tensor in tensors.items():
        if tensor is not None:
            module.register_parameter(name, _parameter(tensor))
    _call(rw, node, source, module, given["weight"], layers)


def _arguments(node: Node, names: tuple[str, ...]) -> dict[str, Any]:
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _call(rw: Rewriter, node: Node, source: Any, module: nn.Module, stored_at: Node, layers: StoredLayers) -> None:
    """Call ``module`` instead of ``node``: at the path of its tensors, or where an equal one is from another call.

    A container that holds more than these tensors gets it as a child.
    """
    path = str(stored_at.target).rpartition(".")[0]
    container = find_module(rw.gm, path)
    if type(container) is nn.Module and not only_holds(container, module):
        path = f"{path}.{type(module).__name__.lower()}"
    path = path or node.name
    path, module = layers.like(module) or (path, module)
    name = next(base for base in type(module).__mro__ if base.__module__.startswith("torch.nn")).__name__
    new = rw.call_module_instead(node, path, module, (source,), f"canonical form: nn.{name}")
    if layers.like(module) is None:
        layers.add(str(new.target), module)


def _build(form: WeightedForm, weight: Tensor, bias: Tensor | None, given: dict[str, Any]) -> nn.Module:
    groups = int(given.get("groups", 1))
    inputs, outputs = weight.shape[1] * (1 if form.is_transposed else groups), weight.shape[0]
    if form.is_transposed:
        inputs, outputs = weight.shape[0], weight.shape[1] * groups
    sizes = {"kernel_size": tuple(weight.shape[2:])} if weight.dim() > 2 else {}
    module = form.module(inputs, outputs, bias=bias is not None, device="meta", **sizes, **given)
    module.register_parameter("weight", _parameter(weight))
    module.register_parameter("bias", _parameter(bias))
    return module


def _stored(rw: Rewriter, value: Any) -> Tensor | None:
    """Return the parameter or buffer that a node reads, None if it does not read one."""
    if not isinstance(value, Node) or value.op != "get_attr":
        return None
    return rw.tensor(value)


def _parameter(tensor: Tensor | None) -> nn.Parameter | None:
    if tensor is None or isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=False)


def _rank(source: Node) -> int | None:
    """Return how many dimensions a tensor has: as traced, or as the convolution that computes it says."""
    value = source.meta.get("val")
    if isinstance(value, Tensor):
        return value.dim()
    layer = module_of(source) if source.op == "call_module" else None
    return next((rank for kind, rank in _RANKS.items() if isinstance(layer, kind)), None)


def _memory(layer: Any) -> tuple[type, tuple[int, ...]]:
    tensors = (getattr(layer, name, None) for name in _TENSORS)
    return type(layer), tuple(tensor.data_ptr() for tensor in tensors if isinstance(tensor, Tensor))


def _is_same_layer(found: nn.Module, module: nn.Module) -> bool:
    if type(found) is not type(module) or repr(found) != repr(module):
        return False
    return all(_is_same(getattr(found, name, None), getattr(module, name, None)) for name in _TENSORS)


def _is_same(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether two tensors are one; a buffer that became a parameter shares its memory only."""
    if first is None or second is None:
        return first is second
    return first is second or (first.data_ptr() == second.data_ptr() and first.shape == second.shape)
