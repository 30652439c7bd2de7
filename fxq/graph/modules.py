"""Submodules and buffers of a GraphModule by path; each question costs no more than the path is long."""

import copy
import copyreg
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.fx import GraphModule

from fxq.calib import (
    Calibrator,
    HistogramCalibrator,
    MaxCalibrator,
    MinMaxCalibrator,
    MovingAverageMinMaxCalibrator,
)
from fxq.module_tree import has_attribute, named_modules
from fxq.nn.batchnorm import BatchNormFolded
from fxq.nn.computed import values_of_computed

Module = TypeVar("Module", bound=nn.Module)
Observer = TypeVar("Observer", bound=Calibrator)
_ATOMS = frozenset({bool, int, float, str, type(None)})  # they are their own copies
# With each batch they put a new tensor in place of what they have observed, which copies share therefore.
_REPLACING = frozenset({HistogramCalibrator, MaxCalibrator, MinMaxCalibrator, MovingAverageMinMaxCalibrator})
_STORAGES = "torch"  # where torch keeps, in the memo of a deepcopy, the storages that it has copied


def deep_copy(module: Module, known: Mapping[int, Any] = MappingProxyType({})) -> Module:
    """Return ``copy.deepcopy(module)``; ``known``: what stands for other objects in it, by their ids.

    A module has a dozen registries, most of them empty, and its attributes are numbers and names; copying those one by
    one takes longer than all the rest. What a hook computes before each call, torch does not copy where it has a
    gradient; its copy is a value.
    """
    copies: dict[Any, Any] = {**known, _STORAGES: {}}
    states: list[tuple[nn.Module, dict[str, Any]]] = []
    for part in _children_first(module, set()):
        for value in vars(part).values():
            if type(value) in (dict, OrderedDict, set) and not value:
                copies[id(value)] = type(value)()
        copies |= values_of_computed(part)
        state = None if id(part) in copies else _plain_state(part)
        if state is not None:
            copies[id(part)] = type(part).__new__(type(part))
            states.append((part, state))
    for part, state in states:
        copies[id(part)].__setstate__(_copied_items(state, copies))
    return copy.deepcopy(module, copies)


def copy_calibrator(calibrator: Observer) -> Observer:
    """Return one that has observed the same, and goes on by itself."""
    kind = type(calibrator)
    if kind not in _REPLACING:
        return copy.deepcopy(calibrator)
    copied = object.__new__(kind)
    vars(copied).update({name: one.copy() if type(one) is list else one for name, one in vars(calibrator).items()})
    return copied


def copy_graph(gm: GraphModule) -> GraphModule:
    """Return a deep copy without the meta of ``gm``, which holds what fxq remembers of it."""
    meta, gm.meta = gm.meta, {}
    try:
        return deep_copy(gm)
    finally:
        gm.meta = meta


def graphs_in(model: nn.Module) -> Iterator[tuple[str, GraphModule]]:
    """Yield each graph module in ``model``, itself among them, with its path: islands are graphs in a graph."""
    for path, module in named_modules(model):
        if isinstance(module, GraphModule):
            yield path, module


def find_module(root: nn.Module, path: str) -> nn.Module | None:
    """Return the submodule at ``path``, None where there is none."""
    found: nn.Module | None = root
    for name in path.split(".") if path else ():
        found = found._modules.get(name)  # type: ignore[union-attr]
        if found is None:
            break
    return found


def module_at(root: nn.Module, path: str) -> nn.Module:
    """Return ``root.get_submodule(path)``, which says what is missing, but asks about each step several times."""
    found = find_module(root, path)
    return root.get_submodule(path) if found is None else found


def add_module(gm: nn.Module, path: str, module: nn.Module) -> None:
    """Put ``module`` at ``path``, with plain containers on the way where there is nothing."""
    parent_path, _, name = path.rpartition(".")
    _container(gm, parent_path).add_module(name, module)


def set_tensor(gm: nn.Module, path: str, value: torch.Tensor) -> None:
    """Store ``value`` as a buffer at ``path``, with plain containers on the way where there is nothing."""
    parent_path, _, name = path.rpartition(".")
    parent = _container(gm, parent_path)
    parent._parameters.pop(name, None)
    parent.__dict__.pop(name, None)
    parent.register_buffer(name, value)


def free_path(gm: GraphModule, path: str) -> str:
    """Return ``path``, or one of path_1, path_2, ... that no attribute of the model has: the first, without gaps.

    Nothing is put below a module that is called, which may be replaced with all that it holds: a.relu becomes a_relu.
    """
    path = _beside_called(gm, path)
    if not _has(gm, path):
        return path
    taken, free = 0, 1
    while _has(gm, f"{path}_{free}"):
        taken, free = free, 2 * free
    while free - taken > 1:
        middle = (taken + free) // 2
        taken, free = (middle, free) if _has(gm, f"{path}_{middle}") else (taken, middle)
    return f"{path}_{free}"


def only_holds(container: nn.Module | None, module: nn.Module) -> bool:
    """Return whether ``container`` is a plain one whose tensors are ``module``'s own, under the same names."""
    if type(container) is not nn.Module or container._modules:
        return False
    tensors = {**container._parameters, **container._buffers}
    return all(_is_same(value, getattr(module, name, None)) for name, value in tensors.items())


def drop_unused(gm: GraphModule) -> None:
    """Remove submodules, parameters and buffers that no node of the graph uses; what is called stays whole."""
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    called |= _folded_norms(gm, called)
    read = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    places = {place for path in called | read for place in itertools.accumulate(path.split("."), "{}.{}".format)}
    holders: list[tuple[str, nn.Module]] = [("", gm)]
    for prefix, module in holders:  # grows while it is walked
        for name in [*module._parameters, *module._buffers]:
            if prefix + name not in read:
                delattr(module, name)
        for name, child in list(module._modules.items()):
            path = prefix + name
            if child is None or path in called:
                continue
            if path in places:
                holders.append((f"{path}.", child))
            else:
                delattr(module, name)


def _children_first(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    seen.add(id(module))
    for child in module._modules.values():
        if child is not None and id(child) not in seen:
            yield from _children_first(child, seen)
    yield module


def _plain_state(value: nn.Module | Calibrator) -> dict[str, Any] | None:
    """Return the attributes that copy.deepcopy copies one by one, None where it does something else."""
    kind: Any = type(value)
    set_state = getattr(kind, "__setstate__", None)
    is_own = set_state is not None and not _is_known(set_state)
    has = partial(has_attribute, value) if isinstance(value, nn.Module) else partial(hasattr, value)
    copies_itself = has("__deepcopy__")
    if is_own or copies_itself or kind in copyreg.dispatch_table:
        return None
    reduced: Any = value.__reduce_ex__(4)
    is_plain = reduced[0] is copyreg.__newobj__ and reduced[1] == (kind,) and not any(reduced[3:])  # type: ignore[attr-defined]
    return reduced[2] if is_plain and type(reduced[2]) is dict else None


def _is_known(function: Any) -> bool:
    return str(function.__module__).partition(".")[0] in ("torch", "fxq")


def _copied_items(items: dict[str, Any], copies: dict[Any, Any]) -> dict[str, Any]:
    return {name: one if type(one) in _ATOMS else _copied(one, copies) for name, one in items.items()}


def _copied(value: Any, copies: dict[Any, Any]) -> Any:
    """Return ``copy.deepcopy(value, copies)``, with less ado for what modules are made of."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in copies:
        return copies[id(value)]
    if kind is tuple and all(type(one) in _ATOMS for one in value):
        return value
    if kind is dict and all(type(name) is str for name in value):
        found = copies[id(value)] = {}
        found.update(_copied_items(value, copies))
        return found
    if kind is torch.Tensor and _is_alone(value, copies):
        copies[id(value)] = clone = value.clone()
        copies[_STORAGES][value.untyped_storage()._cdata] = clone.untyped_storage()
        return clone
    if kind in _REPLACING:
        copies[id(value)] = observed = copy_calibrator(value)
        return observed
    state = _plain_state(value) if isinstance(value, Calibrator) else None
    if state is None:
        return copy.deepcopy(value, copies)
    copies[id(value)] = replica = object.__new__(kind)
    vars(replica).update(_copied_items(state, copies))
    return replica


def _is_alone(tensor: torch.Tensor, copies: dict[Any, Any]) -> bool:
    """Return whether ``tensor`` is plain values, in memory that no tensor copied before it shares."""
    if tensor.layout is not torch.strided or tensor.device.type not in ("cpu", "cuda") or vars(tensor):
        return False
    if tensor.requires_grad or tensor.is_quantized or tensor.is_complex() or not tensor.is_contiguous():
        return False
    storage = tensor.untyped_storage()
    return storage.nbytes() == tensor.nbytes and storage._cdata not in copies[_STORAGES]


def _folded_norms(gm: GraphModule, called: set[str]) -> set[str]:
    """Return the paths of the batch norms that called layers fold in training."""
    layers = [find_module(gm, path) for path in called]
    norms = {id(layer.batch_norm) for layer in layers if isinstance(layer, BatchNormFolded)}
    if not norms:
        return set()
    return {path for path, module in gm.named_modules(remove_duplicate=False) if id(module) in norms}


def _is_same(value: torch.Tensor | None, own: Any) -> bool:
    """Return whether two tensors are one; a buffer that became a parameter shares its memory only."""
    if value is None or not isinstance(own, torch.Tensor):
        return value is own
    return value is own or (value.shape == own.shape and value.data_ptr() == own.data_ptr() != 0)


def _container(gm: nn.Module, path: str) -> nn.Module:
    for name in path.split(".") if path else []:
        found = gm._modules.get(name)
        if found is None:
            found = nn.Module()
            gm.add_module(name, found)
        gm = found
    return gm


def _beside_called(gm: nn.Module, path: str) -> str:
    names, owner = path.split("."), gm
    for depth, name in enumerate(names[:-1]):
        found = owner._modules.get(name)
        if found is None:
            break
        if type(found) is not nn.Module:  # in a graph module, what is not called is a plain container
            return ".".join([*names[:depth], "_".join(names[depth:])])
        owner = found
    return path


def _has(gm: nn.Module, path: str) -> bool:
    owner: object = gm
    for name in path.split("."):
        if not hasattr(owner, name):
            return False
        owner = getattr(owner, name)
    return True
