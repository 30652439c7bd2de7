"""Weights that a module computes from other tensors, before each call or whenever they are read.

torch.nn.utils.parametrize puts a class with properties over the module's own, which copies of the module share; the
older weight_norm, spectral_norm and prune set a plain attribute in a hook before each call, which is stale after a
state dict was loaded, and is not copied once it has a gradient. :func:`keep_computed` brings both into one form: a
class of the module's own, with properties; :func:`store_computed` ends the computation and stores what it says.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, SpectralNormStateDictHook
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from fxq.errors import InputError
from fxq.nn.batchnorm import BatchNormFolded
from fxq.nn.overlay import Overlay

Kind = TypeVar("Kind", bound=type[nn.Module])

# Where classes are made that lie over a module's own.
_MAKERS = (parametrize.__name__, BatchNormFolded.__module__, Overlay.__module__, __name__)
_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod, SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook)


@dataclass(frozen=True)
class Computed:
    """How a module computes a tensor.

    Args:
        by: in words, such as "weight_norm".
        stored: names, in the module, of the tensors that it is computed from.
        value: the function of the module that does it.
    """

    by: str
    stored: tuple[str, ...]
    value: Callable[[Any], Tensor]

    def __str__(self) -> str:
        return f"computed by {self.by} from {', '.join(self.stored)}"


def plain_type(module: nn.Module) -> type[nn.Module]:
    """Return the module's own class, below those that only compute its weights."""
    return next(base for base in type(module).__mro__ if base.__module__ not in _MAKERS)


def computed_tensors(module: nn.Module) -> dict[str, Computed]:
    """Return, by name, the tensors that ``module`` itself (not its children) computes."""
    found = {name: how for _, name, how in _from_hooks(module)}
    found |= getattr(type(module), "_computed", {})
    if isinstance(module, BatchNormFolded):
        found |= {name: _folded(module, name) for name in ("weight", "bias")}
    if "parametrizations" in module._modules and parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        found |= {name: _from_parametrization(name, steps) for name, steps in lists.items()}
    return found


def has_other_hooks(module: nn.Module) -> bool:
    """Return whether a call of ``module`` runs hooks beside those that compute its tensors, and fxq's own."""
    if not (module._forward_hooks or module._forward_pre_hooks):
        return False  # asked of each node again and again
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(not (_computes(hook) or _is_own(hook)) for hook in hooks)


def computing_type(base: Kind, computed: Mapping[str, Computed]) -> Kind:
    """Return a subclass of ``base`` that computes these tensors whenever they are read."""
    properties = {name: property(how.value, partial(_assign, name=name)) for name, how in computed.items()}
    members = {
        **properties,
        "_computed": MappingProxyType(dict(computed)),
        "__deepcopy__": _deep_copy,
        "__getstate__": _refuse,
    }
    return type(f"Computing{base.__name__}", (base,), members)  # type: ignore[return-value]


def values_of_computed(module: nn.Module) -> dict[int, Tensor]:
    """Return, by id, values for the tensors with a gradient that a module with computed ones holds beside them."""
    if not computed_tensors(module):
        return {}
    held = (leaf for leaf in pytree.tree_leaves(list(vars(module).values())) if isinstance(leaf, Tensor))
    return {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}


def keep_computed(module: nn.Module) -> None:
    """Let ``module`` compute what hooks or parametrizations compute whenever it is read, in place.

    The stored tensors keep their names. In training mode, spectral_norm improves its estimate once a call, as before.
    """
    computed = {} if isinstance(module, BatchNormFolded) else computed_tensors(module)
    for key, name, _ in _from_hooks(module):
        hook = module._forward_pre_hooks.pop(key)
        module.__dict__.pop(name, None)
        if isinstance(hook, SpectralNorm):
            module.register_forward_pre_hook(partial(_improve_estimate, hook))
    if computed:
        module.__class__ = computing_type(plain_type(module), computed)


def at_rest(module: nn.Module, name: str) -> Tensor:
    """Return a tensor of ``module`` as it is in eval mode; in training mode, computing spectral_norm's changes it."""
    if isinstance(module, BatchNormFolded):
        return computed_tensors(module)[name].value(module)
    steps = module._modules.get("parametrizations")
    modes = [(step, step.training) for step in steps.modules()] if steps is not None else []
    try:
        for step, _ in modes:
            step.training = False
        found: Tensor = getattr(module, name)
    finally:
        for step, mode in modes:
            step.training = mode
    return found


def store_computed(module: nn.Module) -> dict[str, Computed]:
    """Store what ``module`` computes, as it is in eval mode, in place of what it was computed from; return what it was.

    The module gets its own class back. What it shares with other modules stays as it is.
    """
    computed = computed_tensors(module)
    if not computed:
        return {}
    if isinstance(module, BatchNormFolded):
        module.store()
        return computed
    keep_computed(module)
    sources = {name: list(_sources(module, name, computed)) for name in computed}
    with torch.no_grad():
        values = {name: at_rest(module, name).detach().clone() for name in computed}
    module.__class__ = plain_type(module)
    module._modules.pop("parametrizations", None)
    for hooks in (module._forward_pre_hooks, module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if _computes(getattr(hook, "hook", hook)):  # torch wraps some
                del hooks[key]
    for how in computed.values():
        for source in how.stored:
            module._parameters.pop(source, None)
            module._buffers.pop(source, None)
    inner = {source for how in computed.values() for source in how.stored}  # a pruned weight_v, say
    for name, value in values.items():
        if name in inner:
            continue
        parameters = [source for source in sources[name] if isinstance(source, nn.Parameter)]
        if parameters:
            setattr(module, name, nn.Parameter(value, any(source.requires_grad for source in parameters)))
        else:
            module.register_buffer(name, value)
    return computed


def _folded(module: nn.Module, name: str) -> Computed:
    stored = (name,) if module._parameters[name] is not None else ()
    return Computed(
        "folding its batch norm", (*stored, "running statistics"), lambda module: module.folded()[name == "bias"]
    )


def _from_parametrization(name: str, steps: Any) -> Computed:
    by = ", ".join(type(step).__name__.lstrip("_") for step in steps)
    originals = [key for key in (*steps._parameters, *steps._buffers) if key.startswith("original")]
    stored = tuple(f"parametrizations.{name}.{key}" for key in originals)
    return Computed(f"the parametrization {by}", stored, lambda module: module.parametrizations[name]())


def _from_hooks(module: nn.Module) -> list[tuple[int, str, Computed]]:
    """Return key of the hook, name of the tensor and how it is computed, for each hook that computes one."""
    found = []
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, WeightNorm):
            found.append((key, hook.name, _computed("weight_norm", hook.name, ("g", "v"), hook.compute_weight)))
        elif isinstance(hook, SpectralNorm):
            value = partial(hook.compute_weight, do_power_iteration=False)
            found.append((key, hook.name, _computed("spectral_norm", hook.name, ("orig", "u", "v"), value)))
        elif isinstance(hook, BasePruningMethod):
            name = hook._tensor_name
            found.append((key, name, _computed("prune", name, ("orig", "mask"), hook.apply_mask)))
    return found


def _computed(by: str, name: str, suffixes: tuple[str, ...], value: Callable[[Any], Tensor]) -> Computed:
    return Computed(by, tuple(f"{name}_{suffix}" for suffix in suffixes), value)


def _deep_copy(self: Any, memo: dict[int, Any]) -> Any:
    """Copy as Python does; tensors with a gradient, which an LSTM keeps of its computed weights, become values."""
    memo.update(values_of_computed(self))
    replica = memo[id(self)] = self.__new__(type(self))
    vars(replica).update(copy.deepcopy(vars(self), memo))
    return replica


def _refuse(self: Any) -> Any:
    raise InputError(
        f"{type(self).__name__} computes {', '.join(computed_tensors(self))} in each call and cannot be pickled: "
        "save the state_dict of the prepared model, prepare again and load it"
    )


def _assign(module: Any, value: Tensor, name: str) -> None:
    """Hand a value on to a parametrization, as torch's own property does; a hook computes it anew anyway."""
    if parametrize.is_parametrized(module, name):
        module.parametrizations[name].right_inverse(value)


def _improve_estimate(hook: Any, module: nn.Module, _args: object) -> None:
    if module.training:
        hook.compute_weight(module, do_power_iteration=True)


def _is_own(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("fxq.")


def _computes(hook: Any) -> bool:
    return isinstance(hook, _HOOKS) or (isinstance(hook, partial) and hook.func is _improve_estimate)


def _sources(module: nn.Module, name: str, computed: Mapping[str, Computed]) -> Iterator[Any]:
    """Yield the stored tensors that lead to ``name``."""
    for path in computed[name].stored:
        if path in computed:
            yield from _sources(module, path, computed)
        else:
            owner, _, own_name = path.rpartition(".")
            yield getattr(module.get_submodule(owner), own_name)
