"""Modules that compute something else than their class: those with forward hooks, or a forward of their own.

They are called as they are. A pass that merged, swapped or dropped one would lose what was added to it.
"""

import functools
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from fxq.errors import TraceError
from fxq.given_model import wrappers
from fxq.module_tree import all_modules, named_modules
from fxq.nn.computed import has_other_hooks

# The methods that torch's own forwards call, and that call them.
_COMPUTING = frozenset({"forward", "_conv_forward", "_output_padding", "_check_input_dim", "_call_impl"})


def why_altered(module: nn.Module) -> str | None:
    """Return what changes the call of ``module``, None if its class alone decides, hooks that compute weights aside."""
    if (module._forward_hooks or module._forward_pre_hooks) and has_other_hooks(module):
        return "has forward hooks"
    if vars(module).keys().isdisjoint(_COMPUTING):  # not the other way round, which looks at all attributes
        return None
    return f"has its {min(_COMPUTING & vars(module).keys())} replaced on the instance"


def _replaced(module: nn.Module) -> list[Any]:
    return [value for name, value in vars(module).items() if name in _COMPUTING]


def has_backward_hooks(module: nn.Module) -> bool:
    """Return whether training calls hooks of ``module``."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def check_copyable(model: nn.Module) -> None:
    """Refuse hooks that would still see ``model`` when they are called on its copy, and those of all modules.

    Raises:
        TraceError: there is one; its module is named.
    """
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise TraceError(
            "forward hooks are registered for all modules (torch.nn.modules.module.register_module_forward_hook), "
            "which a graph cannot hold: remove them while fxq prepares"
        )
    own = {id(module) for module in all_modules(model)}
    wrapping = {id(wrapper) for wrapper, _ in wrappers(model)}  # which are not copied
    for path, module in named_modules(model):
        if id(module) in wrapping:
            continue
        added = [*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *_replaced(module)]
        if any(id(held) in own for function in added for held in _held_modules(function)):
            raise TraceError(
                f"module '{path}' ({type(module).__name__}) {why_altered(module)}, by a function that holds modules of "
                "the model in its closure: on a copy it would call those of your model. Make it a method of a module, "
                "let it use the module it gets, or define a subclass"
            )


def _held_modules(function: Any, depth: int = 3) -> Iterator[nn.Module]:
    """Yield the modules in the closure of ``function``; one that it is a method of is copied with the model."""
    if isinstance(function, MethodType):
        function = function.__func__
    held: list[Any] = []
    if isinstance(function, functools.partial):
        return  # is copied with what it holds
    if isinstance(function, FunctionType):
        held = [*(function.__defaults__ or ()), *(_content(cell) for cell in function.__closure__ or ())]
    for value in held:
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            yield value.__self__
        elif depth and isinstance(value, FunctionType | MethodType):
            yield from _held_modules(value, depth - 1)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None
